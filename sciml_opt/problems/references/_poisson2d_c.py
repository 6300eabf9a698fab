"""Laplace's equation on a square with four holes, by harmonic functions fitted to the boundary values."""

from collections.abc import Callable
from functools import cache

import numpy as np

CENTRE, RADIUS = 0.3 + 0.3j, 0.1
IMAGES = (0.7 + 0.3j, 0.7 + 0.7j)  # of the hole around CENTRE in the lines x = 1/2, then y = 1/2


@cache
def poisson2d_c(terms: int = 24) -> Callable[[np.ndarray], np.ndarray]:
    """The solution of problem `poisson2d_c`, a function of points `(N, 2) -> (N,)`.

        u = Re [ c_0 + sum_m c_m z^(4m) + sum over holes and their images of  a_0 log(z - z_j) + sum_m a_m w_j^-m ]

    with w_j = (z - z_j) / 0.1, and coefficients that the eight symmetries of the domain share out. They are fitted in
    least squares to the values on an eighth of the square and on a half of one circle. The images, reflections of the
    holes in the sides, are not part of the domain; without them the powers of z converge slowly at the corners.

    **Arguments:** `terms`, powers of each kind.

    **Accuracy:** by the maximum principle the error nowhere exceeds the worst misfit on the boundary: see `misfit`.
    """
    z = _boundary(400)
    coefficients = np.linalg.lstsq(_basis(z, terms), (np.abs(z - CENTRE) > 1.5 * RADIUS).astype(float), rcond=1e-15)[0]
    return lambda points: _basis(points[:, 0] + 1j * points[:, 1], terms) @ coefficients


def misfit(solution: Callable[[np.ndarray], np.ndarray]) -> float:
    """The largest error on the boundary, on other points than those of the fit."""
    z = _boundary(1501)
    exact = np.abs(z - CENTRE) > 1.5 * RADIUS
    return float(np.max(np.abs(solution(np.stack([np.real(z), np.imag(z)], axis=1)) - exact)))


def _boundary(n: int) -> np.ndarray:
    """Points on x = 1/2, 0 <= y <= 1/2, and on the half circle on one side of the diagonal, denser at the ends."""
    s = 0.5 - 0.5 * np.cos(np.pi * (np.arange(n) + 0.5) / n)
    return np.concatenate([0.5 + 0.5j * s, CENTRE + RADIUS * np.exp(1j * np.pi * (s + 0.25))])


def _basis(z: np.ndarray, terms: int) -> np.ndarray:
    """The functions that have the eight symmetries, a column each."""
    m = np.arange(1, terms + 1)
    columns = [np.ones((len(z), 1)), np.real((z[:, None] / 0.75) ** (4 * m))]
    columns.append(np.real(_orbit(z, CENTRE, np.exp(0.25j * np.pi) * RADIUS, m, mirrored=False)))
    beside, across = IMAGES
    series = _orbit(z, beside, RADIUS, m, mirrored=True)
    columns += [np.real(series), np.imag(series[:, 1:])]
    columns.append(np.real(_orbit(z, across, np.exp(0.25j * np.pi) * RADIUS, m, mirrored=False)))
    return np.concatenate(columns, axis=1)


def _orbit(z: np.ndarray, centre: complex, scale: complex, m: np.ndarray, mirrored: bool) -> np.ndarray:
    """`log` and inverse powers around `centre`, summed over its rotations by 90 degrees (and their mirror images)."""
    turned = [z * 1j**k for k in range(4)]
    if mirrored:
        turned += [1j * np.conj(w) for w in turned]
    total = np.zeros((len(z), len(m) + 1), complex)
    for w in turned:
        w = (w - centre) / scale
        total += np.concatenate([np.log(np.abs(w))[:, None], w[:, None] ** -m], axis=1)
    return total
