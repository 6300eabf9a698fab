"""Random projections of the rows and of the columns of a matrix."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.fft import dct, idct
from jaxtyping import Array, Float, PRNGKeyArray


def count_sketch(key: PRNGKeyArray, matrix: Float[Array, "n k"], rows: int, hashes: int = 4) -> Float[Array, "rows k"]:
    """`C A` with a sparse random `C`: every row of `A` is added to `hashes` rows of the result, with random signs.

        E |C A x|^2 = |A x|^2

    **Arguments:** `matrix`, `A`; `rows` of the result; `hashes`: more of them spread the rows more evenly.

    **Cost:** `hashes n k` additions.

    Source: Clarkson and Woodruff, arXiv:1207.6365.

    **Example:** `count_sketch(key, J, 4 * J.shape[1])`
    """
    n = matrix.shape[0]
    where, sign = jax.random.split(key)
    buckets = jax.random.randint(where, (hashes, n), 0, rows)
    signs = jax.random.rademacher(sign, (hashes, n), matrix.dtype) / math.sqrt(hashes)

    def add(total, hashed):
        bucket, sign = hashed
        return total + jax.ops.segment_sum(matrix * sign[:, None], bucket, num_segments=rows), None

    start = jnp.zeros((rows, matrix.shape[1]), matrix.dtype)
    return jax.lax.scan(add, start, (buckets, signs))[0]


class CosineProjection(NamedTuple):
    """A subsampled random cosine transform `S`, `size` by `k`, with `S^T S = I`.

    **Fields:** `apply`: `A -> A S` on the last axis; `lift`: `x -> S x`.
    """

    apply: Callable[[Float[Array, "n size"]], Float[Array, "n k"]]
    lift: Callable[[Float[Array, " k"]], Float[Array, " size"]]


def cosine_projection(key: PRNGKeyArray, size: int, columns: int) -> CosineProjection:
    """Random signs, a permutation, an orthonormal cosine transform, and `columns` of its entries.

    Every vector of the subspace mixes all coordinates. **Cost:** `size log(size)` a row.

    Source: Avron, Maymounkov and Toledo, doi:10.1137/090767911.
    """
    sign, order, chosen = jax.random.split(key, 3)
    signs = jax.random.rademacher(sign, (size,), jnp.int8)
    order = jax.random.permutation(order, size)
    chosen = jax.random.choice(chosen, size, (columns,), replace=False)

    def apply(matrix: Array) -> Array:
        mixed = dct((matrix * signs.astype(matrix.dtype)[None, :])[:, order], norm="ortho", axis=1)
        return mixed[:, chosen]

    def lift(vector: Array) -> Array:
        mixed = idct(jnp.zeros((size,), vector.dtype).at[chosen].set(vector), norm="ortho")
        return jnp.zeros_like(mixed).at[order].set(mixed) * signs.astype(vector.dtype)

    return CosineProjection(apply, lift)
