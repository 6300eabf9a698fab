"""Kovasznay flow, a closed form of the stationary Navier-Stokes equations."""

import jax.numpy as jnp
import numpy as np

from ..calculus import bundle
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._points import faces, grid, midpoints, sobol
from ._problem import Problem, Published

REYNOLDS = 40.0
LAMBDA = REYNOLDS / 2 - (REYNOLDS**2 / 4 + 4 * np.pi**2) ** 0.5


def kovasznay() -> Problem:
    """Kovasznay flow behind a grid; a point is (x, y), the model yields (u, v, p).

        u u_x + v u_y + p_x = Lap u / Re,   u v_x + v v_y + p_y = Lap v / Re,   u_x + v_y = 0,   Re = 40
        u* = 1 - e^(l x) cos(2 pi y),   v* = l / (2 pi) e^(l x) sin(2 pi y),   p* = (1 - e^(2 l x)) / 2
        l = Re / 2 - sqrt(Re^2 / 4 + 4 pi^2),   on (-0.5, 1) x (-0.5, 1.5)

    The velocity is given on the boundary, and the pressure at one corner. The error is that of (u, v).

    **Source:** Kovasznay (1948), doi:10.1017/S0305004100023999; the box of DeepXDE and of arXiv:2003.06496.
    """
    return Problem(
        name="kovasznay",
        title="Kovasznay flow, Re = 40",
        description=(
            "The stationary Navier-Stokes equations at Re = 40 on (-0.5, 1) x (-0.5, 1.5) with the velocity given on "
            "the boundary and the pressure at one corner; exact solution of Kovasznay (1948), "
            "doi:10.1017/S0305004100023999. The error is that of the velocity. 1024 Sobol points and 64 on each side; "
            "coordinates scaled to (-1, 1)."
        ),
        objective=Objective(interior=Term(_residual), boundary=Term(_boundary, weight=10.0), pressure=Term(_pressure)),
        domain={"x": (-0.5, 1.0), "y": (-0.5, 1.5)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(16, 16),
        method="target_ratio",
        steps=700,
        target=2e-6,
        tags=("nonlinear", "elliptic", "system", "least_squares"),
        outputs=("u", "v"),
        network=ansatz(_form, 2, 3),
        prediction=_velocity,
        published=Published(5.0e-7, "self-scaled Broyden", "our calibration, 50 s of one core"),
    )


def _form(network, x):
    x, y = x
    return network(jnp.stack([(x - 0.25) / 0.75, y - 0.5]))


def _velocity(model, x):
    return model(x)[:2]


def _residual(flow, x):
    value, (d_x, d_y), (d_xx, d_yy) = bundle(flow, (0, 0), (1, 1))(x)
    u, v, _ = value
    momentum = (u * d_x + v * d_y - (d_xx + d_yy) / REYNOLDS)[:2] + jnp.stack([d_x[2], d_y[2]])
    return jnp.append(momentum, d_x[0] + d_y[1])


def _boundary(flow, x):
    return flow(x)[:2] - _exact(x)[:2]


def _pressure(flow, x):
    return flow(x)[2] - _exact(x)[2]


def _exact(x):
    x, y = x
    growth = jnp.exp(LAMBDA * x)
    u = 1 - growth * jnp.cos(2 * jnp.pi * y)
    v = LAMBDA / (2 * jnp.pi) * growth * jnp.sin(2 * jnp.pi * y)
    return jnp.stack([u, v, (1 - growth**2) / 2])


def _reference(points):
    x, y = points.T
    growth = np.exp(LAMBDA * x)
    u = 1 - growth * np.cos(2 * np.pi * y)
    v = LAMBDA / (2 * np.pi) * growth * np.sin(2 * np.pi * y)
    return np.stack([u, v], axis=1)


def _box(points):
    return points * [1.5, 2.0] - 0.5


def _training_points():
    return {
        "interior": _box(sobol(2, 10)),
        "boundary": _box(faces(midpoints(64)[:, None])),
        "pressure": np.array([[1.0, -0.5]]),
    }


def _dense_points():
    axis = np.linspace(0.0, 1.0, 101)
    return _box(grid(axis, axis))
