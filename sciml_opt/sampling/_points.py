"""Point sets on the unit cube, in float64 NumPy: built without jax."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from .._check import count as positive
from .._check import one_of

Kind = Literal["grid", "uniform", "latin_hypercube", "sobol", "halton", "hammersley"]


def midpoints(n: int) -> Float[np.ndarray, " n"]:
    """`(i + 1/2) / n`, i = 0 .. n-1: shape `(n,)`, inside (0, 1)."""
    return (np.arange(n) + 0.5) / n


def grid(*axes: np.ndarray) -> np.ndarray:
    """The tensor product of the axes, shape `(prod of lengths, d)`; the last axis runs fastest."""
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def unit_points(
    dimension: int, count: int, kind: Kind = "sobol", seed: int | Sequence[int] = 0
) -> Float[np.ndarray, "count d"]:
    """`count` points in the unit cube, the same ones for the same seed.

        |1/N sum_i f(x_i) - int f|  =  O(1/sqrt(N)) for random points,  O(log(N)^d / N) for low discrepancy

    **Arguments:**

    - `dimension` `d`; `count` `N`.
    - `kind`: `"grid"`, midpoints of n^d equal cells, with the least n that yields at least `count` points (so there may
      be more); `"uniform"`, independent and random; `"latin_hypercube"`, one point in each of the N slices of every
      axis; `"sobol"`, scrambled, best with N a power of two; `"halton"`, scrambled; `"hammersley"`, of N midpoints on
      the first axis and Halton points on the others, in random order.
    - `seed` of the scrambling: a number, or several.

    **Returns:** `(count, d)`, float64.

    **Errors:** `ValueError` for a count that is not positive or another kind.

    **Cost:** `N d` numbers; scipy is imported for Sobol and Halton points (half a second).

    Source: scipy.stats.qmc; Owen, doi:10.1006/jcom.1998.0487.

    **Example:** `so.sampling.unit_points(2, 1024, "sobol")`
    """
    count, kind = positive("count", count), one_of("kind", kind, get_args(Kind))
    if dimension == 0:  # the end of an interval is such a face
        return np.empty((count, 0))
    rng = np.random.default_rng(seed)
    if kind == "grid":
        side = round(count ** (1 / dimension))
        side += side**dimension < count
        return grid(*[midpoints(side)] * dimension)
    if kind == "uniform":
        return rng.random((count, dimension))
    if kind == "latin_hypercube":
        slices = np.tile(np.arange(count), (dimension, 1))
        return (rng.permuted(slices, axis=1).T + rng.random((count, dimension))) / count
    if kind == "hammersley":
        first = midpoints(count)[:, None]
        others = [_halton(dimension - 1, count, rng)] if dimension > 1 else []
        return rng.permutation(np.hstack([first, *others]))
    return _halton(dimension, count, rng) if kind == "halton" else _sobol(dimension, count, rng)


def _halton(dimension: int, count: int, rng: np.random.Generator) -> np.ndarray:
    from scipy.stats import qmc  # lazily: half a second

    # `seed` is `rng` from scipy 1.15 on, which still takes it
    return qmc.Halton(dimension, seed=rng).random(count)  # pyright: ignore[reportCallIssue]


def _sobol(dimension: int, count: int, rng: np.random.Generator) -> np.ndarray:
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimension, seed=rng)  # pyright: ignore[reportCallIssue]
    return sequence.random_base2((count - 1).bit_length())[:count]
