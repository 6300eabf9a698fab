"""The conductivity of a square plate from noisy measurements of its temperature."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..calculus import forward_laplacian
from ..models import MLP, HardConstraint, PositiveField
from ..objective import Objective, Term
from ._points import grid, midpoints
from ._problem import Problem, Published


class FieldModel(eqx.Module):
    """The temperature and the conductivity."""

    u: MLP
    a: PositiveField


def poisson_inverse(noise_seed: int = 0) -> Problem:
    """Poisson's equation with an unknown conductivity field, PInv of PINNacle.

        div(a grad u) = -f  in (0, 1)^2,     a = 1 / (1 + x^2 + y^2 + (x - 1)^2 + (y - 1)^2) given on the boundary only
        d_j = u(x_j) + N(0, 0.1^2)  on a grid of 50 x 50 points,     u = sin(pi x) sin(pi y)

    Nothing else is known of u, not even its boundary values.

    **Arguments:** `noise_seed`: of the noise.

    **Source:** arXiv:2306.08827. The code of PINNacle has (2x + 1, 2y + 1) for (2x - 1, 2y - 1) in f, which is then not
    the source of this u and a; here it is.
    """
    return Problem(
        name="poisson_inverse",
        title="Poisson equation, unknown conductivity field",
        description=(
            "div(a grad u) = -f on (0, 1)^2 with a > 0 unknown inside and given on the boundary; u = sin(pi x) "
            "sin(pi y) measured on a grid of 50 x 50 points with errors of standard deviation 0.1. Error over u and a "
            "together. PInv of PINNacle, arXiv:2306.08827, with the source term that belongs to its solution (the one "
            "of its code has two wrong signs). log a interpolates its boundary values (which alone is within 2.2 % of "
            "a), plus a network that vanishes there; a weak smoothness term keeps the noise out of it. Over draws of "
            "the noise the error is 8e-3 (the default one) to 1.6e-2; the posterior expects 1.3e-2."
        ),
        objective=Objective(interior=Term(_residual), data=Term(misfit), smoothness=Term(_slope, weight=0.01)),
        domain={"x": (0.0, 1.0), "y": (0.0, 1.0)},
        reference=_reference,
        training_points=lambda: _training_points(noise_seed),
        dense_points=_dense_points,
        layers=(6, 6),
        method="levenberg_marquardt",
        steps=150,
        target=9.5e-3,
        tags=("elliptic", "inverse", "system", "least_squares"),
        outputs=("u", "a"),
        network=_network,
        prediction=prediction,
        published=Published(1.53e-2, "PELINE", "github.com/Saitama32/PINNacle, whose source term has two wrong signs"),
    )


def _network(key, layers, dtype):
    u, a = (MLP(2, "scalar", layers, key=k, dtype=dtype) for k in jax.random.split(key))
    return FieldModel(u, PositiveField(HardConstraint(a, _distance, _interpolation)))


def _distance(x):
    return 16 * jnp.prod(x * (1 - x))


def _interpolation(x):
    """Coons patch of log a on the boundary: `-log g` along each side, g(s) = 2 + s^2 + (1 - s)^2, -log 3 in corners."""
    return math.log(3) - jnp.sum(jnp.log(2 + x**2 + (1 - x) ** 2))


def _residual(model, x):
    a, slope = jax.value_and_grad(model.a)(x)
    # div(a grad u) = a (Lap u + grad(log a) . grad u)
    return a * forward_laplacian(model.u, drift=slope / a)(x).second + _source(x)


def misfit(model, measurement):
    x, value = measurement
    return model.u(x) - value


def _slope(model, x):
    return jax.grad(model.a.log.net)(x)


def prediction(model, x):
    return jnp.stack([model.u(x), model.a(x[:2])])


def _a(x: Any) -> Any:
    return 1 / (1 + x[0] ** 2 + x[1] ** 2 + (x[0] - 1) ** 2 + (x[1] - 1) ** 2)


def _source(x):
    """`-div(a grad u)`, where `a_x = -2 (2x - 1) a^2`."""
    a, (sx, sy), (cx, cy) = _a(x), jnp.sin(jnp.pi * x), jnp.cos(jnp.pi * x)
    slopes = (2 * x[0] - 1) * cx * sy + (2 * x[1] - 1) * sx * cy
    return 2 * jnp.pi**2 * sx * sy * a + 2 * jnp.pi * slopes * a**2


def _reference(points):
    return np.stack([np.prod(np.sin(np.pi * points), axis=1), _a(points.T)], axis=1)


def _training_points(seed, n: int = 30):
    axis, sensors = midpoints(n), np.linspace(0.0, 1.0, 50)
    interior, points = grid(axis, axis), grid(sensors, sensors)
    errors = 0.1 * np.random.default_rng(seed).standard_normal(len(points))
    data = points, _reference(points)[:, 0] + errors
    return {"interior": interior, "data": data, "smoothness": interior}


def _dense_points():
    axis = np.linspace(0.0, 1.0, 50)
    return grid(axis, axis)
