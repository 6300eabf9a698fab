"""The heat equation on the five-dimensional ball, with Neumann data."""

import jax
import jax.numpy as jnp
import numpy as np

from ..calculus import forward_laplacian
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._points import sobol
from ._problem import Problem, Published

DIMENSION = 5


def heat_nd() -> Problem:
    """The heat equation on the five-dimensional unit ball, with Neumann data; a point is (x1, .., x5, t).

        u_t = Lap u / 5 - |x|^2 / 5 exp(|x|^2 / 2 + t)  for |x| < 1, t in (0, 1),   u(x, 0) = exp(|x|^2 / 2)
        du/dn = exp(1 / 2 + t)  for |x| = 1,   u* = exp(|x|^2 / 2 + t)

    The model is exact at t = 0, and its network reads |x|^2 beside the coordinates: `u = u*(x, 0) + t N(x, t, |x|^2)`.

    **Source:** "HNd" of PINNacle, arXiv:2306.08827.
    """
    return Problem(
        name="heat_nd",
        title="Heat equation on the unit ball, five space dimensions",
        description=(
            "u_t = Lap u / 5 + f on the unit ball of five dimensions for t in (0, 1), with initial value and Neumann "
            "data of the exact solution exp(|x|^2 / 2 + t). HNd of PINNacle, arXiv:2306.08827. The model is exact at "
            "t = 0, and its network reads |x|^2 beside the coordinates (Levenberg-Marquardt reached 4e-9 in 10 s with "
            "it, 2e-3 in 9 s without). Points from a Sobol sequence, uniform in volume and surface: 2048 in the ball, "
            "1024 on the sphere."
        ),
        objective=Objective(interior=Term(_residual), boundary=Term(_neumann)),
        domain={**{f"x{i}": (-1.0, 1.0) for i in range(1, DIMENSION + 1)}, "t": (0.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(32,),
        method="levenberg_marquardt",
        steps=200,
        target=5e-7,
        tags=("linear", "parabolic", "high_dimensional", "least_squares"),
        network=ansatz(_form, DIMENSION + 2),
        published=Published(1.19e-4, "L-BFGS", "PINNacle, arXiv:2306.08827"),
    )


def _form(network, x):
    t, square = x[DIMENSION], _square(x)
    return jnp.exp(square / 2) + t * network(jnp.append(x.at[DIMENSION].set(2 * t - 1), square))


def _square(x):
    return jnp.sum(x[:DIMENSION] ** 2)


def _residual(u, x):
    # Space as the columns, MINUS time as the drift: `second` is Lap u / d - u_t.
    axes = jnp.eye(DIMENSION + 1)
    second = forward_laplacian(u, DIMENSION**-0.5 * axes[:DIMENSION], -axes[DIMENSION])(x).second
    return second - _square(x) / DIMENSION * jnp.exp(_square(x) / 2 + x[DIMENSION])


def _neumann(u, x):
    outward = x.at[DIMENSION].set(0.0)
    return jax.jvp(u, (x,), (outward,))[1] - jnp.exp(0.5 + x[DIMENSION])


def _reference(points):
    return np.exp(np.sum(points[:, :DIMENSION] ** 2, axis=1) / 2 + points[:, DIMENSION])


def _directions(cube):
    """Points of the cube to points of the unit sphere."""
    from scipy.special import ndtri  # lazily

    normal = ndtri(cube)
    return normal / np.linalg.norm(normal, axis=1, keepdims=True)


def _ball(cube):
    """Uniform points `(n, d + 2)` of the cube to uniform ones of the ball x (0, 1): radius, direction, time."""
    radius = cube[:, :1] ** (1 / DIMENSION)
    return np.concatenate([radius * _directions(cube[:, 1:-1]), cube[:, -1:]], axis=1)


def _training_points():
    sphere = sobol(DIMENSION + 1, 10)
    return {
        "interior": _ball(sobol(DIMENSION + 2, 11)),
        "boundary": np.concatenate([_directions(sphere[:, :-1]), sphere[:, -1:]], axis=1),
    }


def _dense_points():
    return _ball(sobol(DIMENSION + 2, 12, skip=4096))
