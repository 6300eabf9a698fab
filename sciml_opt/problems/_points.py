"""Deterministic point sets on the unit interval and cube, in float64 NumPy: built without jax, on first use."""

import numpy as np

from ..sampling._points import grid as grid
from ..sampling._points import midpoints as midpoints


def sobol(d: int, log2_n: int, skip: int = 0) -> np.ndarray:
    """A block of `n = 2^log2_n` points of the Sobol sequence on (0, 1)^d, no randomness, shape `(n, d)`.

    With `skip` a multiple of n, every one-dimensional projection is the set of n midpoints.
    """
    from scipy.stats import qmc  # lazily: half a second

    sequence = qmc.Sobol(d, scramble=False)
    if skip:
        sequence.fast_forward(skip)
    n = 2**log2_n
    return (np.floor(sequence.random(n) * n) + 0.5) / n


def faces(points: np.ndarray) -> np.ndarray:
    """Points `(n, d - 1)` on every face of the unit cube: shape `(2 d n, d)`."""
    d = points.shape[1] + 1
    return np.concatenate([np.insert(points, axis, side, axis=1) for axis in range(d) for side in (0.0, 1.0)])
