"""Steady advection and diffusion with two boundary layers."""

import math

import jax.numpy as jnp
import numpy as np

from ..calculus import bundle
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._points import grid, sobol
from ._problem import Problem

DIFFUSIVITY = 0.02


def advection_diffusion() -> Problem:
    """Steady advection and diffusion with two boundary layers; a point is (x, y).

        -eps Lap u + u_x + u_y = g(x) + g(y)  in (0, 1)^2,   u = 0 on the boundary,   u* = g(x) g(y),   eps = 0.02
        -eps g'' + g' = 1,   g(0) = g(1) = 0,   g(s) = s - (e^((s - 1) / eps) - e^(-1 / eps)) / (1 - e^(-1 / eps))

    The layers, of width eps, lie at x = 1 and y = 1. The model vanishes on the boundary, and its network reads the
    coordinates and stretched ones,

        u = x y X Y N(x, y, X, Y),   X = tanh((1 - x) / (2 eps)),   Y = tanh((1 - y) / (2 eps))

    **Source:** a product of the one-dimensional solutions, as usual for singularly perturbed problems: Roos, Stynes and
    Tobiska, doi:10.1007/978-3-540-34467-4.
    """
    return Problem(
        name="advection_diffusion",
        title="Advection and diffusion, eps = 0.02, two boundary layers",
        description=(
            "-eps Lap u + u_x + u_y = g(x) + g(y) on the unit square with u = 0 on the boundary and eps = 0.02; exact "
            "solution g(x) g(y), where -eps g'' + g' = 1. Layers of width eps at x = 1 and y = 1; after Roos, Stynes "
            "and Tobiska, doi:10.1007/978-3-540-34467-4. The model vanishes on the boundary, and its network reads "
            "stretched coordinates; 2048 Sobol points, half of them within 0.1 of each layer."
        ),
        objective=Objective(interior=Term(_residual)),
        domain={"x": (0.0, 1.0), "y": (0.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(16, 16),
        method="levenberg_marquardt",
        steps=250,
        target=3e-6,
        tags=("linear", "elliptic", "stiff", "least_squares"),
        network=ansatz(_form, 4),
    )


def _form(network, x):
    layer = jnp.tanh((1 - x) / (2 * DIFFUSIVITY))
    return jnp.prod(x * layer) * network(jnp.concatenate([2 * x - 1, 2 * layer - 1]))


def _residual(u, x):
    _, gradient, second = bundle(u, (0, 0), (1, 1))(x)
    return jnp.sum(gradient) - DIFFUSIVITY * jnp.sum(second) - jnp.sum(_profile(x))


def _profile(s):
    """g"""
    tail = math.exp(-1 / DIFFUSIVITY)
    return s - (jnp.exp((s - 1) / DIFFUSIVITY) - tail) / (1 - tail)


def _reference(points):
    tail = np.exp(-1 / DIFFUSIVITY)
    return np.prod(points - (np.exp((points - 1) / DIFFUSIVITY) - tail) / (1 - tail), axis=1)


def _graded(s):
    """Half of the points in the last tenth of the interval."""
    return np.where(s < 0.5, 1.8 * s, 0.9 + 0.2 * (s - 0.5))


def _training_points():
    return {"interior": _graded(sobol(2, 11))}


def _dense_points():
    axis = np.linspace(0.0, 1.0, 101)
    return grid(axis, axis)
