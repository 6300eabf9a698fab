"""The heat equation in one space dimension."""

import jax.numpy as jnp
import numpy as np

from ..calculus import forward_laplacian
from ..objective import Objective, Term
from ._points import grid, midpoints
from ._problem import Problem, Published

DIFFUSIVITY = 0.25


def heat1d() -> Problem:
    """The heat equation in one space dimension; a point is (x, t).

        u_t = u_xx / 4  in (0, 1)^2,   u(x, 0) = sin(pi x),   u(0, t) = u(1, t) = 0,   u* = exp(-pi^2 t / 4) sin(pi x)

    **Source:** arXiv:2302.13163, section 4.2.
    """
    return Problem(
        name="heat1d",
        title="Heat equation, one space dimension",
        description=(
            "u_t = u_xx / 4 for (x, t) in (0, 1)^2 with u(x, 0) = sin(pi x) and u = 0 at x = 0 and x = 1; exact "
            "solution exp(-pi^2 t / 4) sin(pi x). After Mueller and Zeinhofer, arXiv:2302.13163, with two "
            "hidden layers in place of one: with one of 32 neurons Levenberg-Marquardt needs three times the steps."
        ),
        objective=Objective(
            interior=Term(_residual), initial=Term(_initial, weight=10.0), boundary=Term(_boundary, weight=10.0)
        ),
        domain={"x": (0.0, 1.0), "t": (0.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(16, 16),
        method="levenberg_marquardt",
        steps=2500,
        target=1e-6,
        tags=("linear", "parabolic", "least_squares"),
        published=Published(6.3e-8, "KFAC", "arXiv:2405.15603, 2.0e-8 absolute"),
    )


def _residual(u, x):
    # A parabolic operator in three channels: space as the column, MINUS time as the drift.
    columns, drift = jnp.array([[DIFFUSIVITY**0.5, 0.0]]), jnp.array([0.0, -1.0])
    return -forward_laplacian(u, columns, drift)(x).second


def _initial(u, x):
    return u(x) - jnp.sin(jnp.pi * x[0])


def _boundary(u, x):
    return u(x)


def _reference(points):
    x, t = points.T
    return np.exp(-DIFFUSIVITY * np.pi**2 * t) * np.sin(np.pi * x)


def _training_points():
    axis = midpoints(30)
    return {
        "interior": grid(axis, axis),
        "initial": grid(axis, np.zeros(1)),
        "boundary": grid(np.array([0.0, 1.0]), axis),
    }


def _dense_points():
    axis = np.linspace(0.0, 1.0, 60)
    return grid(axis, axis)
