"""The wave equation in one space dimension, with two standing waves."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from .._check import count
from ..calculus import bundle
from ..objective import Objective, Term
from ._ansatz import ansatz, waves
from ._points import grid, sobol
from ._problem import Problem, Published

SPEED = 2


def wave(beta: int = 5) -> Problem:
    """The wave equation in one space dimension; a point is (x, t).

        u_tt = 4 u_xx  in (0, 1)^2,   u(x, 0) = sin(pi x) + sin(beta pi x) / 2,   u_t(x, 0) = 0,   u(0, t) = u(1, t) = 0
        u* = sin(pi x) cos(2 pi t) + sin(beta pi x) cos(2 beta pi t) / 2

    The model holds all conditions exactly, and the solution is odd and periodic in x as it is,

        u = u(x, 0) + sin(pi x) tanh(beta pi t)^2 N(cos(pi x), t, cos(k pi t) / k^2, sin(k pi t) / k^2),
        k = 1 .. 2 beta + 4

    **Arguments:** `beta`, the number of half-waves of the second wave, a positive integer.

    **Source:** arXiv:2402.01868, section 2.
    """
    source = "our calibration; published are 1.27e-2 by NysNewton-CG, arXiv:2402.01868"
    best = Published(6.2e-3, "target-ratio trust region", source) if beta == 5 else None
    return _build("wave", count("beta", beta), best)


def wave1d_c() -> Problem:
    """The wave equation `wave` with beta = 4: "Wave 1d-C" of PINNacle, arXiv:2306.08827."""
    source = "arXiv:2607.02194, 635 s of an H100; on PINNacle 1.63e-2 by AdaBGDA, openreview.net EQNp3sFrY3"
    return _build("wave1d_c", 4, Published(1.2e-15, "DSGNAR, time slabs", source))


def _build(name: str, beta: int, published: Published | None) -> Problem:
    n = SPEED * beta + 4
    return Problem(
        name=name,
        title=f"Wave equation, beta = {beta}",
        description=(
            f"u_tt = 4 u_xx for (x, t) in (0, 1)^2 with u(x, 0) = sin(pi x) + sin({beta} pi x) / 2, u_t(x, 0) = 0 and "
            f"u = 0 at x = 0 and x = 1; exact solution sin(pi x) cos(2 pi t) + sin({beta} pi x) cos({2 * beta} pi t) / "
            "2. Rathore et al., arXiv:2402.01868; PINNacle, arXiv:2306.08827 (beta = 4). The model is exact at t = 0 "
            "(value and velocity) and odd and periodic in x, and its network reads waves of the time besides, up to "
            f"{n} half-waves; 2048 Sobol points."
        ),
        objective=Objective(interior=Term(_residual)),
        domain={"x": (0.0, 1.0), "t": (0.0, 1.0)},
        reference=partial(_reference, beta),
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(12, 12),
        method="levenberg_marquardt",
        steps=700,
        target=5e-5,
        tags=("linear", "hyperbolic", "multiscale", "least_squares"),
        network=ansatz(partial(_form, beta, n), 2 * n + 2),
        published=published,
    )


def _form(beta, n, network, x):
    x, t = x
    start = jnp.sin(jnp.pi * x) + jnp.sin(beta * jnp.pi * x) / 2
    features = jnp.concatenate([jnp.cos(jnp.pi * x)[None], waves(jnp.pi * t, n, order=2), 2 * t[None] - 1])
    return start + jnp.sin(jnp.pi * x) * jnp.tanh(beta * jnp.pi * t) ** 2 * network(features)


def _residual(u, x):
    u_xx, u_tt = bundle(u, (0, 0), (1, 1))(x).second
    return u_tt - SPEED**2 * u_xx


def _reference(beta, points):
    x, t = np.pi * points.T
    return np.sin(x) * np.cos(SPEED * t) + np.sin(beta * x) * np.cos(SPEED * beta * t) / 2


def _training_points():
    return {"interior": sobol(2, 11)}


def _dense_points():
    axis = np.linspace(0.0, 1.0, 101)
    return grid(axis, axis)
