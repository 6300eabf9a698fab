"""Chebyshev collocation on the unit interval."""

import numpy as np


def chebyshev(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The `n + 1` Chebyshev points on [0, 1], ascending, and their differentiation matrix.

    **Source:** Trefethen, Spectral Methods in MATLAB, program 6.
    """
    j = np.arange(n + 1)
    # differences of cosines without cancellation
    difference = np.sin(np.pi * (j[:, None] + j) / (2 * n)) * np.sin(np.pi * (j[:, None] - j) / (2 * n))
    np.fill_diagonal(difference, 1.0)
    weights = _weights(n)
    D = weights / weights[:, None] / difference
    np.fill_diagonal(D, 0.0)
    np.fill_diagonal(D, -D.sum(axis=1))
    return np.sin(np.pi * j / (2 * n)) ** 2, D


def interpolation(z: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """From values at the Chebyshev points `z` to those at `axis`, by the barycentric formula."""
    distance = axis[:, None] - z
    hit = np.abs(distance) < 1e-14
    M = _weights(len(z) - 1) / np.where(hit, 1.0, distance)
    M /= M.sum(axis=1, keepdims=True)
    return np.where(hit.any(axis=1, keepdims=True), hit, M)


def _weights(n: int) -> np.ndarray:
    j = np.arange(n + 1)
    return (-1.0) ** j * np.where((j == 0) | (j == n), 0.5, 1.0)
