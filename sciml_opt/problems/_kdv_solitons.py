"""Two solitons of the Korteweg-de Vries equation, of which one overtakes the other."""

import jax.numpy as jnp
import numpy as np

from ..calculus import partial
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._points import grid, midpoints
from ._problem import Problem

SPEEDS, STARTS = (6.0, 2.0), (-2.0, 2.0)


def kdv_solitons() -> Problem:
    """Two solitons of the Korteweg-de Vries equation; a point is (x, t).

        u_t + 6 u u_x + u_xxx = 0  in (0, 20) x (0, 5),   u(x, 0), u(0, t), u(20, t) and u_x(20, t) given
        u* = 2 (c - d) (c cosh^2 q + d sinh^2 p) / ((sqrt c - sqrt d) cosh(p + q) + (sqrt c + sqrt d) cosh(p - q))^2
        p = sqrt c (x - c t + 2) / 2,   q = sqrt d (x - d t - 2) / 2,   c = 6,   d = 2

    The faster one enters from the left and overtakes the slower one at t = 1.

    The model is a network of x, t and of the coordinates that move with the solitons, `tanh((x - c t + 2) / 2)` and
    `tanh((x - d t - 2) / 2)`.

    **Source:** arXiv:2405.04230; Kiyani et al., arXiv:2501.16371.
    """
    return Problem(
        name="kdv_solitons",
        title="Korteweg-de Vries equation, two solitons",
        description=(
            "u_t + 6 u u_x + u_xxx = 0 for x in (0, 20), t in (0, 5), with the initial and boundary values (and the "
            "slope at x = 20) of the exact two-soliton solution of speeds 6 and 2, which start at x = -2 and x = 2. "
            "arXiv:2405.04230, arXiv:2501.16371. Inputs of the network are x, t and the two coordinates that move with "
            "the solitons, through tanh. Points are denser along their paths."
        ),
        objective=Objective(
            interior=Term(_residual),
            initial=Term(_value, weight=100.0),
            boundary=Term(_value, weight=100.0),
            slope=Term(_slope, weight=10.0),
        ),
        domain={"x": (0.0, 20.0), "t": (0.0, 5.0)},
        reference=lambda points: two_solitons(*points.T, xp=np),
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(20, 20),
        method="levenberg_marquardt",
        steps=400,
        target=1e-4,
        tags=("nonlinear", "dispersive", "least_squares"),
        network=ansatz(_form, 4),
    )


def _moving(x, t):
    return [(x - speed * t - start) / 2 for speed, start in zip(SPEEDS, STARTS, strict=True)]


def _form(network, x):
    x, t = x
    p, q = _moving(x, t)
    return network(jnp.stack([jnp.tanh(p), jnp.tanh(q), x / 10 - 1, t / 2.5 - 1]))


def two_solitons(x, t, xp=jnp):
    """The exact solution at x, t of one shape, by `numpy` or `jax.numpy`."""
    c, d = SPEEDS
    p, q = (speed**0.5 * z for speed, z in zip(SPEEDS, _moving(x, t), strict=True))
    # over e^(2 m), m = |p| + |q|: cosh overflows
    m = xp.abs(p) + xp.abs(q)
    cosh_q, sinh_p = (xp.exp(q - m) + xp.exp(-q - m)) / 2, (xp.exp(p - m) - xp.exp(-p - m)) / 2
    sum_, difference = ((xp.exp(z - m) + xp.exp(-z - m)) / 2 for z in (p + q, p - q))
    below = (c**0.5 - d**0.5) * sum_ + (c**0.5 + d**0.5) * difference
    return 2 * (c - d) * (c * cosh_q**2 + d * sinh_p**2) / below**2


def _residual(u, x):
    return partial(u, 1)(x) + 6 * u(x) * partial(u, 0)(x) + partial(u, 0, 0, 0)(x)


def _value(u, x):
    return u(x) - two_solitons(*x)


def _slope(u, x):
    return partial(u, 0)(x) - partial(lambda x: two_solitons(*x), 0)(x)


def _training_points(columns: int = 80, rows: int = 40, n: int = 80):
    """One point in each cell of a grid, with cells six times narrower along the paths of the solitons."""
    s, t = (grid(np.arange(columns), np.arange(rows)) + np.random.default_rng(0).random((columns * rows, 2))).T
    s, t = s / columns, 5 * t / rows
    x = np.linspace(0.0, 20.0, 1001)
    density = 1 + sum(5 / np.cosh(z) ** 2 for z in _moving(x, t[:, None]))
    cumulative = np.cumsum(density, axis=1)
    cumulative = (cumulative - cumulative[:, :1]) / (cumulative[:, -1:] - cumulative[:, :1])
    path = np.array([np.interp(a, c, x) for a, c in zip(s, cumulative, strict=True)])
    return {
        "interior": np.stack([path, t], axis=1),
        "initial": grid(20 * midpoints(2 * n), np.zeros(1)),
        "boundary": grid(np.array([0.0, 20.0]), 5 * midpoints(n)),
        "slope": grid(np.array([20.0]), 5 * midpoints(n)),
    }


def _dense_points():
    return grid(np.linspace(0.0, 20.0, 201), np.linspace(0.0, 5.0, 101))
