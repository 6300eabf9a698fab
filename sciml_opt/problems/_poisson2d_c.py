"""Laplace's equation on a square with four round holes, as PINNacle specifies it."""

import numpy as np

from ..calculus import laplacian
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._points import grid, midpoints, sobol
from ._problem import Problem, Published

RADIUS, CENTRE = 0.1, 0.3


def poisson2d_c() -> Problem:
    """Laplace's equation on a square with four round holes, case Poisson 2d-C of PINNacle.

        Lap u = 0  in (-1/2, 1/2)^2 without the disks of radius 0.1 around (+-0.3, +-0.3)

        u = 1 on the sides of the square,   u = 0 on the circles

    **Source:** PINNacle, arXiv:2306.08827.
    """
    return Problem(
        name="poisson2d_c",
        title="Laplace equation, square with four holes (PINNacle 2d-C)",
        description=(
            "Lap u = 0 on (-1/2, 1/2)^2 without four disks of radius 0.1 around (+-0.3, +-0.3); u = 1 on the square, 0 "
            "on the circles. Case Poisson 2d-C of PINNacle, arXiv:2306.08827. Reference by harmonic functions fitted "
            "to the boundary values, whose worst misfit bounds the error. The network reads x^2 and y^2, so that u is "
            "even in both, and one quadrant has all points: 1800 Sobol points, 128 on two sides and 128 on the circle."
        ),
        objective=Objective(
            interior=Term(_residual),
            outer=Term(_outer, weight=1000.0),
            holes=Term(_hole, weight=1000.0),
        ),
        domain={"x": (-0.5, 0.5), "y": (-0.5, 0.5)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(20, 20),
        method="target_ratio",
        steps=300,
        target=5e-6,
        tags=("linear", "elliptic", "least_squares"),
        network=ansatz(_form, 2),
        reference_error=1e-13,
        published=Published(8.15e-3, "AdaBGDA", "OpenReview EQNp3sFrY3"),
    )


def _form(network, x):
    return network(8 * x**2 - 1)


def _residual(u, x):
    return laplacian(u)(x)


def _outer(u, x):
    return u(x) - 1


def _hole(u, x):
    return u(x)


def _reference(points):
    from .references._poisson2d_c import poisson2d_c as solution  # lazily: it fits

    return solution()(points)


def _outside(points):
    """Those points that lie in no hole."""
    return points[np.linalg.norm(np.abs(points) - CENTRE, axis=1) > RADIUS]


def _training_points(n: int = 128):
    side, s, angle = np.array([0.5]), midpoints(n // 2) / 2, 2 * np.pi * midpoints(n)
    return {
        "interior": _outside(sobol(2, 11) / 2),
        "outer": np.concatenate([grid(side, s), grid(s, side)]),
        "holes": CENTRE + RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=1),
    }


def _dense_points():
    axis = np.linspace(-0.5, 0.5, 101)
    return _outside(grid(axis, axis))
