"""The heat equation with two scales in space."""

import jax.numpy as jnp
import numpy as np

from ..calculus import bundle
from ..objective import Objective, Term
from ._ansatz import ansatz, waves
from ._points import grid, sobol
from ._problem import Problem, Published

HORIZON = 5.0
DIFFUSIVITIES = (1 / (500 * np.pi) ** 2, 1 / np.pi**2)
RATE = 1.0 + 20.0**2 / 500.0**2
WAVES = 24  # half-waves in x; the solution has 20


def heat2d_ms() -> Problem:
    """The heat equation with two scales in space; a point is (x, y, t).

        u_t = u_xx / (500 pi)^2 + u_yy / pi^2  in (0, 1)^2 x (0, 5),   u = 0 on the sides
        u(x, y, 0) = sin(20 pi x) sin(pi y),   u* = u(x, y, 0) exp(-(1 + 0.04^2) t)

    The model holds all conditions exactly, and reads waves of x,

        u = u(x, y, 0) + t / (1 + t) X(x) X(1 - x) sin(pi y) N(x, y, t, cos(k pi x) / k, sin(k pi x) / k),
        X(x) = tanh(20 x),   k = 1 .. 24

    **Source:** "Heat 2d-MS" of PINNacle, arXiv:2306.08827.
    """
    return Problem(
        name="heat2d_ms",
        title="Heat equation, two scales in space",
        description=(
            "u_t = u_xx / (500 pi)^2 + u_yy / pi^2 on the unit square for t in (0, 5) with zero Dirichlet data and "
            "u = sin(20 pi x) sin(pi y) at t = 0; exact solution that times exp(-1.0016 t). Heat 2d-MS of PINNacle, "
            "arXiv:2306.08827. The model is exact at t = 0 and on the sides, and its network reads 24 half-waves of x; "
            "2048 Sobol points."
        ),
        objective=Objective(interior=Term(_residual)),
        domain={"x": (0.0, 1.0), "y": (0.0, 1.0), "t": (0.0, HORIZON)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(8, 8),
        method="levenberg_marquardt",
        steps=200,
        target=5e-5,
        tags=("linear", "parabolic", "multiscale", "stiff", "least_squares"),
        network=ansatz(_form, 2 * WAVES + 3),
        published=Published(1.40e-2, "AdaBGDA", "OpenReview EQNp3sFrY3"),
    )


def _form(network, x):
    x, y, t = x
    u0 = jnp.sin(20 * jnp.pi * x) * jnp.sin(jnp.pi * y)
    distance = t / (1 + t) * jnp.tanh(20 * x) * jnp.tanh(20 * (1 - x)) * jnp.sin(jnp.pi * y)
    features = jnp.concatenate([waves(jnp.pi * x, WAVES), jnp.stack([2 * x - 1, 2 * y - 1, t / 2.5 - 1])])
    return u0 + distance * network(features)


def _residual(u, x):
    _, (_, _, u_t), (u_xx, u_yy) = bundle(u, (0, 0), (1, 1))(x)
    return u_t - DIFFUSIVITIES[0] * u_xx - DIFFUSIVITIES[1] * u_yy


def _reference(points):
    x, y, t = points.T
    return np.sin(20 * np.pi * x) * np.sin(np.pi * y) * np.exp(-RATE * t)


def _training_points():
    return {"interior": sobol(3, 11) * [1.0, 1.0, HORIZON]}


def _dense_points():
    return grid(np.linspace(0.0, 1.0, 101), np.linspace(0.0, 1.0, 21), np.linspace(0.0, HORIZON, 11))
