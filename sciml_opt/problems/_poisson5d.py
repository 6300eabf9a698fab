"""Poisson's equation on the five-dimensional unit cube."""

import jax.numpy as jnp
import numpy as np

from ..calculus import laplacian
from ..objective import Objective, Term
from ._points import faces, sobol
from ._problem import Problem, Published


def poisson5d() -> Problem:
    """Poisson's equation on the five-dimensional unit cube.

        -Lap u = pi^2 sum_i cos(pi x_i)  in (0, 1)^5,    u = u* on the boundary,    u* = sum_i cos(pi x_i)

    **Source:** arXiv:2302.13163, section 4.3, and arXiv:2405.15603.
    """
    return Problem(
        name="poisson5d",
        title="Poisson equation, five dimensions",
        description=(
            "-Lap u = pi^2 sum_i cos(pi x_i) on (0, 1)^5 with Dirichlet data; exact solution sum_i cos(pi x_i). Sobol "
            "points: 2048 in the interior, 64 on each of the ten faces. After Mueller and Zeinhofer, arXiv:2302.13163."
        ),
        objective=Objective(interior=Term(_residual), boundary=Term(_boundary, weight=10.0)),
        domain={f"x{i}": (0.0, 1.0) for i in range(1, 6)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(48,),
        method="levenberg_marquardt",
        steps=3000,
        target=1e-5,
        tags=("linear", "elliptic", "high_dimensional", "least_squares"),
        published=Published(3e-16, "DSGNAR, Gabor features", "arXiv:2607.02194"),
    )


def _residual(u, x):
    return laplacian(u)(x) + jnp.pi**2 * _solution(x)


def _boundary(u, x):
    return u(x) - _solution(x)


def _solution(x):
    return jnp.sum(jnp.cos(jnp.pi * x))


def _reference(points):
    return np.sum(np.cos(np.pi * points), axis=1)


def _training_points():
    return {"interior": sobol(5, 11), "boundary": faces(sobol(4, 6))}


def _dense_points():
    return sobol(5, 12, skip=4096)
