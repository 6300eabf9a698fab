"""Poisson's equation on the unit square."""

import jax.numpy as jnp
import numpy as np

from ..calculus import laplacian
from ..objective import Objective, Term
from ._points import faces, grid, midpoints
from ._problem import Problem, Published


def poisson2d() -> Problem:
    """Poisson's equation on the unit square, the standard small PINN.

        -Lap u = 2 pi^2 sin(pi x) sin(pi y)  in (0, 1)^2,    u = 0 on the boundary,    u* = sin(pi x) sin(pi y)

    **Source:** arXiv:2302.13163, section 4.1.
    """
    return Problem(
        name="poisson2d",
        title="Poisson equation on the unit square",
        description=(
            "-Lap u = 2 pi^2 sin(pi x) sin(pi y) on (0, 1)^2 with u = 0 on the boundary; exact solution "
            "sin(pi x) sin(pi y). 900 interior midpoints, 120 boundary points and boundary weight 4, the length of the "
            "boundary, as in Mueller and Zeinhofer, Achieving High Accuracy with PINNs via Energy Natural Gradients, "
            "arXiv:2302.13163. (Weight 100 halves the steps of Levenberg-Marquardt.)"
        ),
        objective=Objective(interior=Term(_residual), boundary=Term(_boundary, weight=4.0)),
        domain={"x": (0.0, 1.0), "y": (0.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(32,),
        method="levenberg_marquardt",
        steps=2500,
        target=1e-6,
        tags=("linear", "elliptic", "least_squares"),
        published=Published(1.2e-7, "ENGD, one layer at a time", "arXiv:2405.15603, 6.1e-8 absolute"),
    )


def _residual(u, x):
    return laplacian(u)(x) + 2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * x))


def _boundary(u, x):
    return u(x)


def _reference(points):
    return np.prod(np.sin(np.pi * points), axis=1)


def _training_points():
    axis = midpoints(30)
    return {"interior": grid(axis, axis), "boundary": faces(axis[:, None])}


def _dense_points():
    axis = np.linspace(0.0, 1.0, 60)
    return grid(axis, axis)
