"""The Deep Ritz method on an L-shaped domain, whose corner makes the solution singular."""

import jax
import jax.numpy as jnp
import numpy as np

from ..objective import Objective, Term, Weighted
from ._ansatz import ansatz
from ._points import grid
from ._problem import Problem

GAMMA = 1e4
SQUARES = np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])  # signs: three unit squares that meet in the corner


def deep_ritz_l_shape() -> Problem:
    """Laplace's equation on an L-shape as an energy, with a singular corner; the boundary values enter by a penalty.

        E(u) = int 1/2 |grad u|^2 dx + (gamma / 2) int_boundary (u - u*)^2 ds    over (-1, 1)^2 without [0, 1) x (-1, 0]

        u* = r^(2/3) sin(2 theta / 3)    in polar coordinates around the corner (0, 0)

    u* is harmonic and vanishes on the two sides that meet in the corner, where its gradient is infinite. The minimiser
    of the penalised energy differs from u* by about |du*/dn| / gamma.

    **Source:** E and Yu, arXiv:1710.00211; Grisvard, Elliptic Problems in Nonsmooth Domains.
    """
    return Problem(
        name="deep_ritz_l_shape",
        title="Deep Ritz energy on an L-shape, singular corner",
        description=(
            "Minimise int |grad u|^2 / 2 over (-1, 1)^2 without [0, 1) x (-1, 0], with the boundary values of "
            "r^(2/3) sin(2 theta / 3), the minimiser, by the penalty gamma / 2 (u - u*)^2, gamma = 1e4. Deep Ritz: "
            "E and Yu, arXiv:1710.00211. Gauss points graded to the corner, in two panels an octave; beside x the "
            "network reads x / r^(2/3), coordinates that are stretched at the corner as a graded mesh is."
        ),
        objective=Objective(energy=Term(_gradient, outer=_dirichlet), boundary=Term(_misfit, weight=GAMMA)),
        domain={"x": (-1.0, 1.0), "y": (-1.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(16, 16),
        method="levenberg_marquardt",
        steps=200,
        target=1.5e-3,
        tags=("linear", "elliptic", "energy", "singular"),
        network=ansatz(_form, 4),
    )


def _form(network, x):
    stretched = x / (jnp.sum(x**2) + 1e-12) ** (1 / 3)  # r^(1/3) in the direction of x: a graded mesh does the same
    return network(jnp.concatenate([x, stretched]))


def _gradient(u, x):
    return jax.jacfwd(u)(x)


def _dirichlet(z, x):
    return 0.5 * jnp.sum(z**2)


def _misfit(u, x):
    return u(x) - _solution(x, jnp)


def _solution(points, xp):
    x, y = points[..., 0], points[..., 1]
    theta = xp.arctan2(y, x)
    theta = xp.where(theta < 0, theta + 2 * np.pi, theta)
    return (x**2 + y**2) ** (1 / 3) * xp.sin(2 / 3 * theta)


def _reference(points):
    return _solution(points, np)


def _graded(levels: int = 7, order: int = 3):
    """Gauss points and weights on (0, 1), in two panels an octave: as fine at 0 as `2^-levels`."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    octaves = 2.0 ** -np.arange(levels)
    edges = np.sort(np.concatenate([[0.0], octaves, 0.75 * octaves]))
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (1 + nodes)).ravel(), (half * weights).ravel()


def _training_points():
    s, w = _graded()
    square, area = grid(s, s), np.prod(grid(w, w), axis=1)
    inner = [grid(s, np.zeros(1)), grid(np.zeros(1), -s)]
    one = np.ones(1)
    outer = [grid(one, s), grid(s, one), grid(-s, one), grid(-one, s), grid(-one, -s), grid(-s, -one)]
    return {
        "energy": Weighted(np.concatenate([sign * square for sign in SQUARES]), np.tile(area, 3)),
        "boundary": Weighted(np.concatenate(inner + outer), np.tile(w, 8)),
    }


def _dense_points():
    axis = np.linspace(-1.0, 1.0, 121)
    points = grid(axis, axis)
    return points[(points[:, 0] <= 0) | (points[:, 1] >= 0)]
