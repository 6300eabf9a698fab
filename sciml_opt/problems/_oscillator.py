"""A damped harmonic oscillator of high frequency."""

import jax.numpy as jnp
import numpy as np

from ..calculus import bundle
from ..objective import Objective, Term
from ._ansatz import ansatz, waves
from ._points import midpoints
from ._problem import Problem

DAMPING = 2.0
FREQUENCY = 80.0
WAVES = 30  # half-waves on (0, 1); the solution has 25.5


def oscillator() -> Problem:
    """A damped harmonic oscillator of high frequency; a point is (t,).

        u'' + 4 u' + 80^2 u = 0  in (0, 1),   u(0) = 1,   u'(0) = 0
        u* = e^(-2 t) (cos(w t) + 2 / w sin(w t)),   w^2 = 80^2 - 2^2

    The model holds both conditions at t = 0 exactly, and reads waves,

        u = 1 + tanh(80 t)^2 N(t, cos(k pi t) / k, sin(k pi t) / k),   k = 1 .. 30

    with sines as the activation of N.

    **Source:** an example of FBPINN (Moseley, Markham and Nissen-Meyer, arXiv:2107.07871), with frequencies 20 to 80.
    """
    return Problem(
        name="oscillator",
        title="Damped harmonic oscillator, frequency 80",
        description=(
            "u'' + 4 u' + 6400 u = 0 for t in (0, 1) with u(0) = 1, u'(0) = 0: 13 periods of a damped oscillation, "
            "with a closed form, after FBPINN, arXiv:2107.07871. The model is exact at "
            "t = 0 (value and velocity), and its network of sines reads 30 half-waves of the time; 1000 even points. "
            "The residual is divided by 6400."
        ),
        objective=Objective(interior=Term(_residual, weight=FREQUENCY**-4)),
        domain={"t": (0.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(8, 8),
        method="levenberg_marquardt",
        steps=200,
        target=3e-6,
        tags=("linear", "ordinary", "multiscale", "least_squares"),
        network=ansatz(_form, 2 * WAVES + 1, activation=jnp.sin),
    )


def _form(network, x):
    t = x[0]
    return 1 + jnp.tanh(FREQUENCY * t) ** 2 * network(jnp.append(waves(jnp.pi * t, WAVES), 2 * t - 1))


def _residual(u, x):
    value, (slope,), (curvature,) = bundle(u, (0, 0))(x)
    return curvature + 2 * DAMPING * slope + FREQUENCY**2 * value


def _reference(points):
    t = points[:, 0]
    omega = (FREQUENCY**2 - DAMPING**2) ** 0.5
    return np.exp(-DAMPING * t) * (np.cos(omega * t) + DAMPING / omega * np.sin(omega * t))


def _training_points():
    return {"interior": midpoints(1000)[:, None]}


def _dense_points():
    return np.linspace(0.0, 1.0, 1001)[:, None]
