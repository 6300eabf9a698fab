"""Laplace's equation in ten dimensions."""

import jax.numpy as jnp
import numpy as np

from ..calculus import laplacian
from ..objective import Objective, Term
from ._points import faces, sobol
from ._problem import Problem, Published

NORM = 1.34  # the L2 norm of sum_k x_{2k-1} x_{2k}, as the papers round it


def poisson10d() -> Problem:
    """Laplace's equation on the ten-dimensional unit cube, with the data of a harmonic polynomial.

        Lap u = 0  in (0, 1)^10,    u = u* on the boundary,    u* = (1 / 1.34) sum_{k=1}^5 x_{2k-1} x_{2k}

    **Source:** E and Yu, arXiv:1710.00211; normalised in arXiv:2405.15603 and arXiv:2505.12149.
    """
    return Problem(
        name="poisson10d",
        title="Laplace equation, ten dimensions",
        description=(
            "Lap u = 0 on (0, 1)^10 with Dirichlet data; exact solution the harmonic polynomial "
            "sum_k x_(2k-1) x_(2k) / 1.34, of L2 norm 1. E and Yu, arXiv:1710.00211; Guzman-Cordero et al., "
            "arXiv:2505.12149, whose figure is an absolute RMS, here the same as a relative one. Sobol points: 2048 in "
            "the interior, 64 on each of the twenty faces."
        ),
        objective=Objective(interior=Term(_residual), boundary=Term(_boundary, weight=10.0)),
        domain={f"x{i}": (0.0, 1.0) for i in range(1, 11)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(32,),
        method="target_ratio",
        steps=300,
        target=1e-5,
        tags=("linear", "elliptic", "high_dimensional", "least_squares"),
        published=Published(1.2e-5, "SPRING, absolute RMS of a solution of norm 1", "arXiv:2505.12149"),
    )


def _residual(u, x):
    return laplacian(u)(x)


def _boundary(u, x):
    return u(x) - jnp.sum(x[::2] * x[1::2]) / NORM


def _reference(points):
    return np.sum(points[:, ::2] * points[:, 1::2], axis=1) / NORM


def _training_points():
    return {"interior": sobol(10, 11), "boundary": faces(sobol(9, 6))}


def _dense_points():
    return sobol(10, 12, skip=4096)
