"""The Helmholtz equation on a square, with waves of several frequencies."""

from functools import partial

import jax.numpy as jnp
import numpy as np

from .._check import count
from ..calculus import forward_laplacian
from ..models import MLP, Chain, PeriodicEmbedding
from ..objective import Objective, Term
from ._points import grid, midpoints, sobol
from ._problem import Problem, Published


def helmholtz(a: tuple[int, int] = (1, 4)) -> Problem:
    """The Helmholtz equation on a square; the waves (1, 4) of the PINN papers.

        Lap u + u = f  in (-1, 1)^2,    u = 0 on the boundary,    u* = sin(a_1 pi x) sin(a_2 pi y)

    **Arguments:** `a`, the numbers of waves, positive integers. The recipe is that of (1, 4).

    **Source:** Wang, Teng and Perdikaris, arXiv:2001.04536; `helmholtz66` has the waves of arXiv:2405.04230.
    """
    a_1, a_2 = (count("a", n) for n in a)
    return _build("helmholtz", (a_1, a_2), harmonics=1, layers=(16, 16), method="target_ratio", steps=350, target=1e-9)


def helmholtz66() -> Problem:
    """The Helmholtz equation `helmholtz` with the waves (6, 6), 12 half-waves along each side."""
    return _build(
        "helmholtz66", (6, 6), harmonics=3, layers=(20, 20), method="levenberg_marquardt", steps=800, target=2e-4
    )


def _build(name, a, harmonics, layers, method, steps, target):
    norm = np.pi**2 * (a[0] ** 2 + a[1] ** 2)
    return Problem(
        name=name,
        title=f"Helmholtz equation, waves ({a[0]}, {a[1]})",
        description=(
            f"Lap u + u = f on (-1, 1)^2 with u = 0 on the boundary; exact solution sin({a[0]} pi x) sin({a[1]} pi y). "
            f"Wang, Teng and Perdikaris, arXiv:2001.04536. The network reads cos and sin of k pi x and k pi y up to "
            f"k = {harmonics} and is periodic, as in arXiv:2604.05230, so that two sides stand for four; 2048 Sobol "
            "points, 64 on each of the two. The residual is divided by the size of Lap u."
        ),
        objective=Objective(interior=Term(partial(_residual, a), weight=norm**-2), boundary=Term(_boundary)),
        domain={"x": (-1.0, 1.0), "y": (-1.0, 1.0)},
        reference=partial(_reference, a),
        training_points=_training_points,
        dense_points=_dense_points,
        layers=layers,
        method=method,
        steps=steps,
        target=target,
        tags=("linear", "elliptic", "least_squares", "multiscale"),
        network=partial(_network, harmonics),
        published=Published(2.0e-9, "SPRING", "arXiv:2604.05230") if a == (1, 4) else None,
    )


def _network(harmonics, key, layers, dtype):
    waves = PeriodicEmbedding(2, {0: 2.0, 1: 2.0}, harmonics)
    return Chain(waves, MLP(waves.out_size, layers=layers, key=key, dtype=dtype))


def _residual(a, u, x):
    value, _, second = forward_laplacian(u)(x)
    waves = jnp.pi * jnp.asarray(a, x.dtype)
    return second + value - (1 - jnp.sum(waves**2)) * jnp.prod(jnp.sin(waves * x))


def _boundary(u, x):
    return u(x)


def _reference(a, points):
    return np.prod(np.sin(np.pi * np.asarray(a) * points), axis=1)


def _training_points():
    one, s = np.ones(1), 2 * midpoints(64) - 1
    return {"interior": 2 * sobol(2, 11) - 1, "boundary": np.concatenate([grid(one, s), grid(s, one)])}


def _dense_points():
    axis = np.linspace(-1.0, 1.0, 101)
    return grid(axis, axis)
