"""The lid-driven cavity."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..calculus import bundle
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._corner import Corner, uniform_lid
from ._points import grid
from ._problem import Network, Problem
from .references import tabulated

VISCOSITY = 0.01


def cavity() -> Problem:
    """Steady flow in the unit square under a sliding lid, Re = 100; a point is (x, y).

        (u . grad) u + grad p = nu Lap u,   div u = 0   in (0, 1)^2,   nu = 1 / 100
        u = (1, 0) on the lid y = 1,   u = 0 on the other sides

    The velocity jumps in the corners under the lid. The model holds the boundary values, and the Stokes flow of these
    corners: see `flow`.

    **Source:** Ghia, Ghia and Shin (1982), doi:10.1016/0021-9991(82)90058-4.
    """
    return Problem(
        name="cavity",
        title="Lid-driven cavity, Re = 100",
        description=(
            "Navier-Stokes equations in the unit square, nu = 1/100, lid y = 1 with velocity (1, 0), the other sides "
            "at rest; u and v are measured on 101 x 101 nodes. Ghia, Ghia and Shin, doi:10.1016/0021-9991(82)90058-4. "
            "Reference by Chebyshev collocation of the stream function, corner singularities subtracted. The model is "
            "exact on the boundary, and holds the Stokes flow of the two corners, where the velocity jumps; the "
            "residual is weighted by the distance from them, since it is not square integrable there."
        ),
        objective=Objective(interior=Term(_residual), pressure=Term(pressure_at_origin)),
        domain={"x": (0.0, 1.0), "y": (0.0, 1.0)},
        reference=tabulated("cavity", ("x", "y"), ("u", "v")),
        training_points=training_points,
        dense_points=dense_points,
        layers=(20, 20, 20),
        method="levenberg_marquardt",
        steps=250,
        target=2e-3,
        tags=("nonlinear", "elliptic", "system", "least_squares"),
        outputs=("u", "v"),
        network=flow(uniform_lid, 1.0, lambda x: jnp.ones_like(x)),
        prediction=_velocity,
        reference_error=2.8e-5,
    )


def _residual(model, x):
    r = jnp.sqrt(jnp.minimum(x[0], 1 - x[0]) ** 2 + (1 - x[1]) ** 2)
    return r / (r + 0.1) * momentum_and_mass(model, x)


def _velocity(model, x):
    return model(x)[:2]


def flow(corner: Callable[..., Corner], strength: float, lid: Callable[..., Any]) -> Network:
    """The network of a cavity: velocity and pressure (u, v, p), exact on the boundary.

        u = u_c + y^2 (lid - u_c(x, 1)) + d N_1,   v = v_c + d N_2,   p = p_c + N_3,   d = 16 x (1 - x) y (1 - y)

    where (u_c, v_c, p_c) are the Stokes flows of the two corners under the lid, each times `(1 - r^2)^4` for r < 1:
    what is left for the network N is smooth.

    **Arguments:** `corner`, the Stokes flow; `strength`, the speed of the lid there, or its slope; `lid`, its speed.
    """
    return ansatz(partial(_form, corner, strength, lid), 2, 3)


def _form(corner, strength, lid, network, x):
    x, y = x
    distance = 16 * x * (1 - x) * y * (1 - y)
    net = network(jnp.stack([2 * x - 1, 2 * y - 1])) * jnp.stack([distance, distance, jnp.ones_like(distance)])
    stokes = _stokes(corner, strength, x, y)
    on_lid = lid(x) - _stokes(corner, strength, x, jnp.ones_like(y))[0]
    return net + stokes + jnp.stack([y**2 * on_lid, jnp.zeros_like(y), jnp.zeros_like(y)])


def _stokes(corner, strength, x, y):
    # under the right corner the flow is the mirror image, run backwards
    left, right = (corner(jnp.maximum(a, 1e-12), 1 - y, jnp) for a in (x, 1 - x))  # above 0: no 0 / 0 in the corner
    near, far = (jnp.maximum(1 - a**2 - (1 - y) ** 2, 0) ** 4 for a in (x, 1 - x))
    return strength * jnp.stack(
        [
            near * left.psi_b + far * right.psi_b,
            near * left.psi_a - far * right.psi_a,
            VISCOSITY * (near * left.pressure - far * right.pressure),
        ]
    )


def momentum_and_mass(model, x):
    """The two components of the momentum equation and the divergence."""
    (u, v, _), (d_x, d_y), (d_xx, d_yy) = bundle(model, (0, 0), (1, 1))(x)
    transport = u * d_x + v * d_y - VISCOSITY * (d_xx + d_yy)
    return jnp.stack([transport[0] + d_x[2], transport[1] + d_y[2], d_x[0] + d_y[1]])


def pressure_at_origin(model, x):
    """The pressure in the corner (0, 0), which is 0 there."""
    return model(x)[2]


def training_points(n: int = 40):
    """One point in each cell of a grid, narrower towards the walls."""
    jitter = np.random.default_rng(0).random((n * n, 2))
    s = (grid(np.arange(n), np.arange(n)) + jitter) / n
    return {"interior": (s + np.sin(np.pi * s / 2) ** 2) / 2, "pressure": np.zeros((1, 2))}


def dense_points():
    """101 x 101 nodes, but for the two corners under the lid, where the solution has no value."""
    axis = np.linspace(0.0, 1.0, 101)
    points = grid(axis, axis)
    return points[(points[:, 1] < 1) | (np.abs(points[:, 0] - 0.5) < 0.5)]
