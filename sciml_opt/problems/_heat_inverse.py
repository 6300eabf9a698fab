"""The conductivity of a plate from noisy measurements of its temperature as it cools."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..calculus import forward_laplacian, laplacian
from ..models import MLP, HardConstraint, PositiveField
from ..objective import Objective, Term
from ._points import grid, sobol
from ._poisson_inverse import FieldModel, misfit, prediction
from ._problem import Problem, Published


def heat_inverse(noise_seed: int = 0) -> Problem:
    """The heat equation with an unknown conductivity field, HInv of PINNacle; a point is (x, y, t).

        u_t = div(a grad u) + f  in (-1, 1)^2 x (0, 1),     a = 2 + sin(pi x) sin(pi y) given on the boundary only
        d_j = u(x_j) + N(0, 0.1^2)  at 2500 random points,  u = exp(-t) sin(pi x) sin(pi y)

    Nothing else is known of u, neither initial nor boundary values.

    **Arguments:** `noise_seed`: of the noise; the sensors stay where they are.

    **Source:** arXiv:2306.08827 (its 2500 sensors are random, too; these are ours).
    """
    return Problem(
        name="heat_inverse",
        title="Heat equation, unknown conductivity field",
        description=(
            "u_t = div(a grad u) + f on (-1, 1)^2 x (0, 1) with a(x, y) > 0 unknown inside and given on the boundary "
            "(a = 2); u = exp(-t) sin(pi x) sin(pi y) measured at 2500 random points with errors of standard deviation "
            "0.1. Error over u and a together. HInv of PINNacle, arXiv:2306.08827. a is 2 exp of a network that "
            "vanishes on the boundary; a weak penalty of its curvature keeps the noise out of it."
        ),
        objective=Objective(
            interior=Term(_residual), data=Term(misfit, weight=30.0), smoothness=Term(_curvature, weight=2.4e-4)
        ),
        domain={"x": (-1.0, 1.0), "y": (-1.0, 1.0), "t": (0.0, 1.0)},
        reference=_reference,
        training_points=lambda: _training_points(noise_seed),
        dense_points=_dense_points,
        layers=(12, 12),
        method="levenberg_marquardt",
        steps=250,
        target=3e-2,
        tags=("parabolic", "inverse", "system", "least_squares"),
        outputs=("u", "a"),
        network=_network,
        prediction=prediction,
        published=Published(3.77e-2, "PELINE", "github.com/Saitama32/PINNacle"),
    )


def _network(key, layers, dtype):
    keys = jax.random.split(key)
    u, a = (MLP(d, "scalar", layers, key=k, dtype=dtype) for d, k in zip((3, 2), keys, strict=True))
    a = eqx.tree_at(lambda net: net.weights[-1], a, replace_fn=jnp.zeros_like)  # the field starts at 2
    return FieldModel(u, PositiveField(HardConstraint(a, _distance, _boundary)))


def _distance(x):
    return jnp.prod(1 - x**2)


def _boundary(x):
    del x
    return math.log(2)


def _residual(model, x):
    a, slope = jax.value_and_grad(model.a)(x[:2])
    # div(a grad u) - u_t = a (u_xx + u_yy + grad(log a) . grad u - u_t / a): four channels.
    columns, drift = jnp.eye(2, 3, dtype=x.dtype), jnp.append(slope, -1.0) / a
    return a * forward_laplacian(model.u, columns, drift)(x).second + _source(x)


def _curvature(model, x):
    return laplacian(model.a.log)(x)


def _source(x):
    """`u_t - div(a grad u)`."""
    (sx, sy), (cx, cy) = jnp.sin(jnp.pi * x[:2]), jnp.cos(jnp.pi * x[:2])
    diffusion = 2 * (2 + sx * sy) * sx * sy - (cx * sy) ** 2 - (sx * cy) ** 2
    return jnp.exp(-x[2]) * (jnp.pi**2 * diffusion - sx * sy)


def _reference(points):
    mode = np.prod(np.sin(np.pi * points[:, :2]), axis=1)
    return np.stack([np.exp(-points[:, 2]) * mode, 2 + mode], axis=1)


def _training_points(seed):
    points = np.random.default_rng(1).random((2500, 3)) * [2, 2, 1] - [1, 1, 0]
    errors = 0.1 * np.random.default_rng([2, seed]).standard_normal(len(points))
    return {
        "interior": sobol(3, 11) * [2, 2, 1] - [1, 1, 0],
        "data": (points, _reference(points)[:, 0] + errors),
        "smoothness": 2 * sobol(2, 9) - 1,
    }


def _dense_points():
    side = np.linspace(-1.0, 1.0, 21)
    return grid(side, side, np.linspace(0.0, 1.0, 11))
