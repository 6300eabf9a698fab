"""The Korteweg-de Vries equation, from a cosine to a train of solitons."""

from functools import partial

import numpy as np

from ..calculus import partial as derivative
from ..objective import Objective, Term
from ._fourier_series import fourier_series, initial, restart, slab_points
from ._points import grid
from ._problem import Problem, Published
from .references import tabulated

DISPERSION = 0.022**2
SLABS = 20


def kdv() -> Problem:
    """The Korteweg-de Vries equation of Zabusky and Kruskal; a point is (x, t).

        u_t + u u_x + 0.022^2 u_xxx = 0  in (-1, 1) x (0, 1),   u(x, 0) = cos(pi x),   periodic in x

    The wave steepens until t = 0.3 and breaks up into a train of solitons.

    The model, one in each of 20 slabs of the time, is a Fourier series of 88 waves in x, whose coefficients are a
    network of the time.

    **Source:** Raissi, Perdikaris and Karniadakis, doi:10.1016/j.jcp.2018.10.045.
    """
    return Problem(
        name="kdv",
        title="Korteweg-de Vries equation, from a cosine to solitons",
        description=(
            "u_t + u u_x + 0.022^2 u_xxx = 0 for x in (-1, 1), t in (0, 1) with u(x, 0) = cos(pi x), periodic in x. "
            "Raissi, Perdikaris and Karniadakis, doi:10.1016/j.jcp.2018.10.045. Reference by a Fourier method and "
            "ETDRK4. Time marching in 20 slabs; the model of a slab is a Fourier series of 88 waves in x, whose "
            "coefficients are a network of the time. (DSGNAR reports 8.24e-11 after 1210 s of a GPU, arXiv:2607.02194.)"
        ),
        objective=Objective(interior=Term(_residual), initial=Term(initial, weight=1e4)),
        domain={"x": (-1.0, 1.0), "t": (0.0, 1.0)},
        reference=tabulated("kdv", ("x", "t")),
        training_points=partial(slab_points, -1.0, 1.0, 180, 11, 1 / SLABS, lambda x: np.cos(np.pi * x)),
        dense_points=_dense_points,
        layers=(7,),
        method="levenberg_marquardt",
        steps=40,
        target=5e-4,
        tags=("nonlinear", "dispersive", "least_squares"),
        network=fourier_series(2.0, 88, 1 / SLABS, 12.0),
        reference_error=1.7e-10,
        published=Published(
            8.24e-11,
            "DSGNAR, time slabs",
            "arXiv:2607.02194, 1210 s of an H100; 2.17e-6 by SS-Broyden, arXiv:2509.14198",
        ),
        slabs=SLABS,
        restart=restart,
    )


def _residual(u, x):
    return derivative(u, 1)(x) + u(x) * derivative(u, 0)(x) + DISPERSION * derivative(u, 0, 0, 0)(x)


def _dense_points():
    return grid(np.linspace(-1.0, 1.0, 257), np.linspace(0.0, 1.0, 101))
