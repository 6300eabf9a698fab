"""The one-dimensional convection equation, a test of how far information must travel."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .._check import number
from ..objective import Objective, Term
from ._points import grid, midpoints
from ._problem import Problem


def convection(beta: float = 10.0) -> Problem:
    """The one-dimensional convection equation; a point is (x, t).

        u_t + beta u_x = 0  in (0, 2 pi) x (0, 1),   u(x, 0) = sin(x),   periodic in x,   u* = sin(x - beta t)

    **Arguments:** `beta`, the speed, positive; 40 is the value at which PINNs were first seen to fail.

    **Source:** arXiv:2109.01050; arXiv:2402.01868, section 2.
    """
    number("beta", beta, above=0)
    return Problem(
        name="convection",
        title=f"Convection equation, speed {beta:g}",
        description=(
            f"u_t + {beta:g} u_x = 0 for x in (0, 2 pi), t in (0, 1) with u(x, 0) = sin(x), periodic in x; exact "
            f"solution sin(x - {beta:g} t). Krishnapriyan et al., arXiv:2109.01050; Rathore et al., arXiv:2402.01868."
        ),
        objective=Objective(
            interior=Term(partial(_residual, beta)),
            initial=Term(_initial, weight=10.0),
            boundary=Term(_periodic, weight=10.0),
        ),
        domain={"x": (0.0, 2 * np.pi), "t": (0.0, 1.0)},
        reference=partial(_reference, beta),
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(16, 16, 16),
        method="levenberg_marquardt",
        steps=300,
        target=1e-5,
        tags=("linear", "hyperbolic", "least_squares"),
    )


def _residual(beta, u, x):
    slope = jnp.array([beta, 1.0], x.dtype)
    return jax.jvp(u, (x,), (slope,))[1]


def _initial(u, x):
    return u(x) - jnp.sin(x[0])


def _periodic(u, pair):
    return u(pair[0]) - u(pair[1])


def _reference(beta, points):
    x, t = points.T
    return np.sin(x - beta * t)


def _training_points(n: int = 40):
    x, t = 2 * np.pi * midpoints(n), midpoints(n)
    left, right = grid(np.zeros(1), t), grid(np.array([2 * np.pi]), t)
    return {
        "interior": grid(x, t),
        "initial": grid(2 * np.pi * midpoints(2 * n), np.zeros(1)),
        "boundary": np.stack([left, right], axis=1),
    }


def _dense_points():
    return grid(np.linspace(0.0, 2 * np.pi, 100), np.linspace(0.0, 1.0, 100))
