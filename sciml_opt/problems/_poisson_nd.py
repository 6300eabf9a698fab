"""Poisson's equation in five dimensions, as PINNacle specifies it."""

import jax.numpy as jnp
import numpy as np

from ..calculus import laplacian
from ..objective import Objective, Term
from ._points import faces, sobol
from ._problem import Problem, Published


def poisson_nd() -> Problem:
    """Poisson's equation on the five-dimensional unit cube, case PNd of PINNacle.

        -Lap u = (pi^2 / 4) sum_i sin(pi x_i / 2)  in (0, 1)^5,    u = u* on the boundary

        u* = sum_i sin(pi x_i / 2)

    **Source:** PINNacle, arXiv:2306.08827.
    """
    return Problem(
        name="poisson_nd",
        title="Poisson equation, PINNacle PNd",
        description=(
            "-Lap u = (pi^2 / 4) sum_i sin(pi x_i / 2) on (0, 1)^5 with Dirichlet data; exact solution "
            "sum_i sin(pi x_i / 2). Case PNd of PINNacle, arXiv:2306.08827. Sobol points: 2048 in the interior, 64 on "
            "each of the ten faces."
        ),
        objective=Objective(interior=Term(_residual), boundary=Term(_boundary, weight=10.0)),
        domain={f"x{i}": (0.0, 1.0) for i in range(1, 6)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(32,),
        method="target_ratio",
        steps=400,
        target=1e-6,
        tags=("linear", "elliptic", "high_dimensional", "least_squares"),
        published=Published(1.31e-4, "AdaBGDA", "OpenReview EQNp3sFrY3"),
    )


def _residual(u, x):
    return laplacian(u)(x) + (jnp.pi**2 / 4) * _solution(x)


def _boundary(u, x):
    return u(x) - _solution(x)


def _solution(x):
    return jnp.sum(jnp.sin(jnp.pi / 2 * x))


def _reference(points):
    return np.sum(np.sin(np.pi / 2 * points), axis=1)


def _training_points():
    return {"interior": sobol(5, 11), "boundary": faces(sobol(4, 6))}


def _dense_points():
    return sobol(5, 12, skip=4096)
