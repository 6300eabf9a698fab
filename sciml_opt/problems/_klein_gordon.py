"""The Klein-Gordon equation with a cubic term."""

import jax.numpy as jnp
import numpy as np

from ..calculus import bundle
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._points import grid, midpoints, sobol
from ._problem import Problem

FREQUENCY = 5 * np.pi


def klein_gordon() -> Problem:
    """The Klein-Gordon equation with a cubic term; a point is (x, t).

        u_tt - u_xx + u^3 = f  in (0, 1)^2,   u* = x cos(5 pi t) + (x t)^3
        u(x, 0) = x,   u_t(x, 0) = 0,   u(0, t) = 0,   u(1, t) = cos(5 pi t) + t^3

    The model holds the conditions at t = 0 and at x = 0 exactly,

        u = x + x tanh(5 pi t)^2 N(x, t)

    and that at x = 1 is a term: a lift linear in x would be the solution itself but for a small cubic.

    **Source:** Wang, Teng and Perdikaris, arXiv:2001.04536.
    """
    return Problem(
        name="klein_gordon",
        title="Klein-Gordon equation, cubic",
        description=(
            "u_tt - u_xx + u^3 = f for (x, t) in (0, 1)^2 with initial value, initial velocity and Dirichlet data of "
            "the exact solution x cos(5 pi t) + (x t)^3. Wang, Teng and Perdikaris, arXiv:2001.04536. The model is "
            "exact at t = 0 (value and velocity) and at x = 0; the value at x = 1 is a term. 1024 Sobol points and 64 "
            "on the side."
        ),
        objective=Objective(interior=Term(_residual), boundary=Term(_boundary, weight=1000.0)),
        domain={"x": (0.0, 1.0), "t": (0.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(16, 16),
        method="levenberg_marquardt",
        steps=400,
        target=1e-6,
        tags=("nonlinear", "hyperbolic", "least_squares"),
        network=ansatz(_form, 2),
    )


def _form(network, x):
    x, t = x
    return x + x * jnp.tanh(FREQUENCY * t) ** 2 * network(jnp.stack([x, 2 * t - 1]))


def _residual(u, x):
    value, _, (u_xx, u_tt) = bundle(u, (0, 0), (1, 1))(x)
    return u_tt - u_xx + value**3 - _forcing(x)


def _forcing(x):
    x, t = x
    wave = x * jnp.cos(FREQUENCY * t)
    return -(FREQUENCY**2) * wave + 6 * x**3 * t - 6 * x * t**3 + (wave + (x * t) ** 3) ** 3


def _boundary(u, x):
    t = x[1]
    return u(x) - jnp.cos(FREQUENCY * t) - t**3


def _reference(points):
    x, t = points.T
    return x * np.cos(FREQUENCY * t) + (x * t) ** 3


def _training_points():
    return {"interior": sobol(2, 10), "boundary": grid(np.ones(1), midpoints(64))}


def _dense_points():
    axis = np.linspace(0.0, 1.0, 101)
    return grid(axis, axis)
