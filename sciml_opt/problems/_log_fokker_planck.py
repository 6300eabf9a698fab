"""The Fokker-Planck equation in nine dimensions, for the logarithm of the density."""

import math

import jax.numpy as jnp
import numpy as np

from ..calculus import forward_laplacian
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._points import sobol
from ._problem import Problem, Published

DIMENSION = 9
SIDE = 5.0


def log_fokker_planck() -> Problem:
    """The Fokker-Planck equation of an Ornstein-Uhlenbeck process, for q = log p; a point is (x_1 .. x_9, t).

        q_t = Lap q + |grad q|^2 + x . grad q / 2 + 9 / 2   in (-5, 5)^9 x (0, 1),    q(x, 0) = log N(x; 0, I)

        q* = log N(x; 0, V(t) I),    V = 2 - exp(-t)

    The density solves p_t = div(x p) / 2 + Lap p. No condition is set on the sides of the cube, from which the drift
    of the characteristics points outwards.

    **Source:** arXiv:2405.15603, appendix A, and arXiv:2505.12149.
    """
    return Problem(
        name="log_fokker_planck",
        title="Fokker-Planck equation in log space, nine dimensions",
        description=(
            "q_t = Lap q + |grad q|^2 + x . grad q / 2 + 9 / 2 for x in (-5, 5)^9, t in (0, 1), q(x, 0) the logarithm "
            "of the standard normal density, no condition on the sides; exact solution log N(x; 0, (2 - exp(-t)) I). "
            "Dangel et al., arXiv:2405.15603, and Guzman-Cordero et al., arXiv:2505.12149, whose absolute RMS of "
            "1.5e-3 is here divided by the RMS of q*, 39. The initial value is exact, q(x, 0) + 10 t N(x, t); 4096 "
            "Sobol points."
        ),
        objective=Objective(interior=Term(_residual, weight=0.01)),
        domain={f"x{i}": (-SIDE, SIDE) for i in range(1, DIMENSION + 1)} | {"t": (0.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(20, 20),
        method="levenberg_marquardt",
        steps=200,
        target=3.5e-5,
        tags=("nonlinear", "parabolic", "high_dimensional", "least_squares"),
        network=ansatz(_form, DIMENSION + 1),
        published=Published(3.9e-5, "SPRING, absolute RMS 1.5e-3 over 39", "arXiv:2505.12149"),
    )


def _form(network, x):
    x, t = x[:-1], x[-1]
    initial = -0.5 * jnp.sum(x**2) - DIMENSION / 2 * math.log(2 * math.pi)
    return initial + 10 * t * network(jnp.concatenate([x / SIDE, 2 * t[None] - 1]))


def _residual(q, x):
    # the nine directions of space as columns, minus time as the drift: `second` is Lap q - q_t
    columns = jnp.eye(DIMENSION, DIMENSION + 1, dtype=x.dtype)
    _, gradient, second = forward_laplacian(q, columns, -jnp.eye(DIMENSION + 1, dtype=x.dtype)[-1])(x)
    return second + gradient @ (gradient + x[:-1] / 2) + DIMENSION / 2


def _reference(points):
    x, variance = points[:, :-1], 2 - np.exp(-points[:, -1])
    return -0.5 * np.sum(x**2, axis=1) / variance - DIMENSION / 2 * np.log(2 * np.pi * variance)


def _scaled(points):
    return np.concatenate([SIDE * (2 * points[:, :-1] - 1), points[:, -1:]], axis=1)


def _training_points():
    return {"interior": _scaled(sobol(DIMENSION + 1, 12))}


def _dense_points():
    return _scaled(sobol(DIMENSION + 1, 13, skip=8192))
