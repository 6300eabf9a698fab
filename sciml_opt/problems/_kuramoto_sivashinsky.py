"""The Kuramoto-Sivashinsky equation: chaos, by windows of time."""

from functools import partial

import numpy as np

from ..calculus import partial as derivative
from ..objective import Objective, Term
from ._fourier_series import fourier_series, initial, restart, slab_points
from ._points import grid
from ._problem import Problem, Published
from .references import tabulated

ADVECTION, GROWTH, DECAY = 100 / 16, 100 / 16**2, 100 / 16**4
SLABS = 40


def kuramoto_sivashinsky() -> Problem:
    """The Kuramoto-Sivashinsky equation; a point is (x, t).

        u_t + 100/16 u u_x + 100/16^2 u_xx + 100/16^4 u_xxxx = 0  in (0, 2 pi) x (0, 1),   periodic in x
        u(x, 0) = cos x (1 + sin x)

    Sixteen cells emerge at t = 0.3 and move chaotically: an error grows by a factor of about 1e4 until t = 1.

    The model, one in each of 40 slabs of the time, is a Fourier series of 88 waves in x, whose coefficients are a
    network of the time.

    **Source:** arXiv:2203.07404, section 5; jaxpi, arXiv:2308.08468.
    """
    return Problem(
        name="kuramoto_sivashinsky",
        title="Kuramoto-Sivashinsky equation, chaotic",
        description=(
            "u_t + 100/16 u u_x + 100/16^2 u_xx + 100/16^4 u_xxxx = 0 for x in (0, 2 pi), t in (0, 1) with u(x, 0) = "
            "cos x (1 + sin x), periodic in x. Wang, Sankaran and Perdikaris, arXiv:2203.07404; arXiv:2308.08468. "
            "Reference by a Fourier method and ETDRK4. Time marching in 40 slabs; the model of a slab is a Fourier "
            "series of 88 waves in x, whose coefficients are a network of the time. (jaxpi reports 1.4e-4 on t <= 0.1 "
            "alone; DSGNAR 5.12e-7 after 5227 s of a GPU, arXiv:2607.02194.)"
        ),
        objective=Objective(interior=Term(_residual), initial=Term(initial, weight=1e4)),
        domain={"x": (0.0, 2 * np.pi), "t": (0.0, 1.0)},
        reference=tabulated("kuramoto_sivashinsky", ("x", "t")),
        training_points=partial(slab_points, 0.0, 2 * np.pi, 180, 12, 1 / SLABS, lambda x: np.cos(x) * (1 + np.sin(x))),
        dense_points=_dense_points,
        layers=(7,),
        method="levenberg_marquardt",
        steps=30,
        target=9e-3,
        tags=("nonlinear", "parabolic", "chaotic", "stiff", "least_squares"),
        network=fourier_series(2 * np.pi, 88, 1 / SLABS, 7.0),
        reference_error=7e-9,
        published=Published(
            5.12e-7, "DSGNAR, time slabs", "arXiv:2607.02194, 5227 s of an H100; 3.9e-2 by SOAP, arXiv:2502.00604"
        ),
        slabs=SLABS,
        restart=restart,
    )


def _residual(u, x):
    fourth = derivative(u, 0, 0, 0, 0)(x)
    transport = derivative(u, 1)(x) + ADVECTION * u(x) * derivative(u, 0)(x)
    return transport + GROWTH * derivative(u, 0, 0)(x) + DECAY * fourth


def _dense_points():
    return grid(np.linspace(0.0, 2 * np.pi, 129), np.linspace(0.0, 1.0, 101))
