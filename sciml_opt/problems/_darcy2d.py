"""Darcy flow through a medium of varying permeability."""

import jax
import jax.numpy as jnp
import numpy as np

from ..calculus import forward_laplacian
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._points import grid, sobol
from ._problem import Problem
from .references import tabulated


def darcy2d() -> Problem:
    """Darcy flow on the unit square, the permeability between 0.22 and 4.5.

        -div(a grad u) = 1  in (0, 1)^2,    u = 0 on the boundary

        log a = sin(2 pi x) cos(pi y) + cos(3 pi x + pi y) / 2

    **Source:** the equation of the Darcy data of arXiv:2010.08895, with a smooth formula in place of random fields.
    """
    return Problem(
        name="darcy2d",
        title="Darcy flow, smooth permeability",
        description=(
            "-div(a grad u) = 1 on (0, 1)^2 with u = 0 on the boundary and log a = sin(2 pi x) cos(pi y) + "
            "cos(3 pi x + pi y) / 2, a smooth case of the Darcy flow of Li et al., arXiv:2010.08895. Reference by "
            "Chebyshev collocation. The boundary values are exact, u = x (1 - x) y (1 - y) N(x, y); 2048 Sobol points."
        ),
        objective=Objective(interior=Term(_residual)),
        domain={"x": (0.0, 1.0), "y": (0.0, 1.0)},
        reference=tabulated("darcy2d", ("x", "y")),
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(16, 16),
        method="levenberg_marquardt",
        steps=500,
        target=3e-5,
        tags=("linear", "elliptic", "least_squares"),
        network=ansatz(_form, 2),
        reference_error=5e-9,
    )


def _form(network, x):
    return jnp.prod(x * (1 - x)) * network(2 * x - 1)


def log_permeability(x, xp=jnp):
    x, y = np.pi * x[0], np.pi * x[1]
    return xp.sin(2 * x) * xp.cos(y) + 0.5 * xp.cos(3 * x + y)


def _residual(u, x):
    log_a, slope = jax.value_and_grad(log_permeability)(x)
    _, gradient, second = forward_laplacian(u)(x)
    return jnp.exp(log_a) * (second + slope @ gradient) + 1


def _training_points():
    return {"interior": sobol(2, 11)}


def _dense_points():
    axis = np.linspace(0.0, 1.0, 101)
    return grid(axis, axis)
