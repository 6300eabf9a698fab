"""The Kuramoto-Sivashinsky equation: chaos, by windows of time."""

import math
from functools import partial

import numpy as np

from .._check import number
from ..calculus import partial as derivative
from ..objective import Objective, Term
from ._fourier_series import fourier_series, initial, restart, slab_points
from ._points import grid
from ._problem import Problem, Published
from .references import tabulated

ADVECTION, GROWTH, DECAY = 100 / 16, 100 / 16**2, 100 / 16**4
PUBLISHED = {0.1: Published(1.42e-4, "jaxpi", "arXiv:2308.08468"), 1.0: Published(3.9e-2, "SOAP", "arXiv:2502.00604")}


def kuramoto_sivashinsky(until: float = 0.1) -> Problem:
    """The Kuramoto-Sivashinsky equation; a point is (x, t).

        u_t + 100/16 u u_x + 100/16^2 u_xx + 100/16^4 u_xxxx = 0  in (0, 2 pi) x (0, until),   periodic in x
        u(x, 0) = cos x (1 + sin x)

    The wave steepens until t = 0.1; then cells emerge, which move chaotically: an error grows by e every 0.09.

    The model, one in each slab of the time (about 1 / 40), is a Fourier series of 88 waves in x, whose coefficients are
    a network of the time.

    **Arguments:** `until`, the end of the time, above 0 and at most 1, where the reference ends. The literature has 0.1
    and 1.

    **Source:** arXiv:2203.07404, section 5; jaxpi, arXiv:2308.08468.
    """
    number("until", until, above=0, below=1 + 1e-12)
    slabs = max(1, round(40 * until))
    length = until / slabs
    return Problem(
        name="kuramoto_sivashinsky",
        title=f"Kuramoto-Sivashinsky equation, t <= {until:g}",
        description=(
            "u_t + 100/16 u u_x + 100/16^2 u_xx + 100/16^4 u_xxxx = 0 for x in (0, 2 pi), t in "
            f"(0, {until:g}) with u(x, 0) = cos x (1 + sin x), periodic in x. Wang, Sankaran and Perdikaris, "
            f"arXiv:2203.07404; arXiv:2308.08468. Reference by a Fourier method and ETDRK4. Time marching in {slabs} "
            "slabs; the model of a slab is a Fourier series of 88 waves in x, whose coefficients are a network of the "
            "time. (For t <= 1, DSGNAR reports 5.12e-7 after 5227 s of a GPU, arXiv:2607.02194.)"
        ),
        objective=Objective(interior=Term(_residual), initial=Term(initial, weight=1e4)),
        domain={"x": (0.0, 2 * np.pi), "t": (0.0, until)},
        reference=tabulated("kuramoto_sivashinsky", ("x", "t")),
        training_points=partial(slab_points, 0.0, 2 * np.pi, 180, 12, length, lambda x: np.cos(x) * (1 + np.sin(x))),
        dense_points=partial(_dense_points, until),
        layers=(7,),
        method="levenberg_marquardt",
        steps=30,
        target=5e-5 * math.exp(max(until - 0.1, 0) / 0.09),
        tags=("nonlinear", "parabolic", "chaotic", "stiff", "least_squares"),
        network=fourier_series(2 * np.pi, 88, length, 7.0),
        reference_error=7e-9,
        published=PUBLISHED.get(until),
        slabs=slabs,
        restart=restart,
    )


def _residual(u, x):
    fourth = derivative(u, 0, 0, 0, 0)(x)
    transport = derivative(u, 1)(x) + ADVECTION * u(x) * derivative(u, 0)(x)
    return transport + GROWTH * derivative(u, 0, 0)(x) + DECAY * fourth


def _dense_points(until):
    return grid(np.linspace(0.0, 2 * np.pi, 129), np.linspace(0.0, until, math.ceil(100 * until - 1e-9) + 1))
