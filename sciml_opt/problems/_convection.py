"""The one-dimensional convection equation, a test of how far information must travel."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from .._check import number
from ..objective import Objective, Term
from ._ansatz import ansatz, waves
from ._points import grid, sobol
from ._problem import Problem, Published


def convection(beta: float = 10.0) -> Problem:
    """The one-dimensional convection equation; a point is (x, t).

        u_t + beta u_x = 0  in (0, 2 pi) x (0, 1),   u(x, 0) = sin(x),   periodic in x,   u* = sin(x - beta t)

    The model holds both conditions exactly,

        u = sin(x) + tanh(beta t) N(cos x, sin x, t, cos(k pi t) / k, sin(k pi t) / k),   k = 1 .. beta / pi + 4

    with sines as the activation of N.

    **Arguments:** `beta`, the speed, positive; 40 is the value at which PINNs were first seen to fail.

    **Source:** arXiv:2109.01050; arXiv:2402.01868, section 2.
    """
    number("beta", beta, above=0)
    return _build("convection", beta, steps=200, target=1e-5)


def convection40() -> Problem:
    """The convection equation `convection` with speed 40."""
    return _build("convection40", 40.0, 300, 2e-5, BEST)


def convection80() -> Problem:
    """The convection equation `convection` with speed 80."""
    return _build("convection80", 80.0, steps=250, target=2e-4)


BEST = Published(
    1.3e-3, "target-ratio trust region", "our calibration; published are 1.94e-3 by NysNewton-CG, arXiv:2402.01868"
)


def _build(name: str, beta: float, steps: int, target: float, published: Published | None = None) -> Problem:
    n = math.ceil(beta / np.pi) + 4
    return Problem(
        name=name,
        title=f"Convection equation, speed {beta:g}",
        description=(
            f"u_t + {beta:g} u_x = 0 for x in (0, 2 pi), t in (0, 1) with u(x, 0) = sin(x), periodic in x; exact "
            f"solution sin(x - {beta:g} t). Krishnapriyan et al., arXiv:2109.01050; Rathore et al., arXiv:2402.01868. "
            "The model is exact at t = 0 and periodic in x, and its network of sines reads waves of the time besides, "
            f"up to {n} half-waves; 2048 Sobol points."
        ),
        objective=Objective(interior=Term(partial(_residual, beta))),
        domain={"x": (0.0, 2 * np.pi), "t": (0.0, 1.0)},
        reference=partial(_reference, beta),
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(12, 12),
        method="levenberg_marquardt",
        steps=steps,
        target=target,
        tags=("linear", "hyperbolic", "least_squares"),
        network=ansatz(partial(_form, beta, n), 2 * n + 3, activation=jnp.sin),
        published=published,
    )


def _form(beta, n, network, x):
    x, t = x
    features = jnp.concatenate([waves(x, 1), waves(jnp.pi * t, n), 2 * t[None] - 1])
    return jnp.sin(x) + jnp.tanh(beta * t) * network(features)


def _residual(beta, u, x):
    slope = jnp.array([beta, 1.0], x.dtype)
    return jax.jvp(u, (x,), (slope,))[1]


def _reference(beta, points):
    x, t = points.T
    return np.sin(x - beta * t)


def _training_points():
    return {"interior": sobol(2, 11) * [2 * np.pi, 1.0]}


def _dense_points():
    return grid(np.linspace(0.0, 2 * np.pi, 100), np.linspace(0.0, 1.0, 100))
