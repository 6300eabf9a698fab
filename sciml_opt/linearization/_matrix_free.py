"""Rows of points whose factors or rows would be too large (a long output): products by jvp and vjp, nothing stored."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from .._tree import ravel, tree_dtype, tree_size, unravel
from ._contributions import Explicit
from ._rows import PointRows, Rows
from ._views import View


def evaluate(
    inner: Callable[[PyTree, PyTree], Float[Array, " m"]], params: PyTree, points: PyTree, chunk: int | None
) -> Float[Array, "n m"]:
    """The inner map at all points; with `chunk` so many at a time, and once more on the way back of a gradient."""

    def one(point):
        return inner(params, point)

    if chunk is None:
        return jax.vmap(one)(points)
    return lax.map(jax.checkpoint(one), points, batch_size=chunk)


class MatrixFreeRows(Rows):
    """The rows `scale_nk sum_j mix_njk dz_nj / dtheta`, `k = 1 .. m`, of maps `z` with many outputs.

    **Cost:** `J v` one jvp and `J^T w` one vjp of the inner map a point, each about two evaluations; a row one vjp.
    Memory: that of the map itself.
    """

    inner: Callable[[PyTree, PyTree], Float[Array, " m"]]  # a pytree, such as a bound term
    params: PyTree
    points: PyTree
    scale: Float[Array, "n m"]
    mix: Float[Array, "n m m"] | None
    outputs: int = eqx.field(static=True)
    chunk: int | None = eqx.field(static=True)
    size: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, inner, params: PyTree, points: PyTree, scale: Array, mix: Array | None, chunk: int | None):
        self.inner, self.params, self.points, self.mix, self.chunk = inner, params, points, mix, chunk
        self.size, self.dtype = tree_size(params), tree_dtype(params)
        point = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), points)
        (self.outputs,) = jax.eval_shape(inner, params, point).shape
        self.scale = jnp.broadcast_to(scale[:, None], (scale.shape[0], self.outputs))

    @property
    def count(self) -> int:
        return self.scale.size

    def mv(self, flat):
        tangent = unravel(flat, self.params)
        _, z = jax.jvp(self._values, (self.params,), (tangent,))
        z = z if self.mix is None else jnp.einsum("nj,njk->nk", z, self.mix)
        return (self.scale * z).reshape(-1)

    def rmv(self, w):
        cotangent = self.scale * w.reshape(-1, self.outputs)
        cotangent = cotangent if self.mix is None else jnp.einsum("nk,njk->nj", cotangent, self.mix)
        _, pull = jax.vjp(self._values, self.params)
        return ravel(pull(cotangent)[0])

    def take(self, indices: Int[Array, " k"]) -> PointRows:
        def row(index):
            n, k = index // self.outputs, index % self.outputs
            point = jax.tree.map(lambda leaf: leaf[n], self.points)
            _, pull = jax.vjp(lambda p: self.inner(p, point), self.params)
            unit = jnp.zeros(self.outputs, self.dtype).at[k].set(1) if self.mix is None else self.mix[n, :, k]
            return ravel(pull(self.scale[n, k] * unit)[0])

        rows = Explicit(View(np.arange(self.size)), jax.vmap(row)(indices))
        return PointRows(parts=(rows,), size=self.size, dtype=self.dtype)

    def scaled(self, weights):
        return eqx.tree_at(lambda rows: rows.scale, self, self.scale * weights.reshape(-1, self.outputs))

    def row_squares(self):
        return lax.map(lambda i: self.take(i[None]).row_squares()[0], jnp.arange(self.count))

    def _values(self, params: PyTree) -> Float[Array, "n m"]:
        return evaluate(self.inner, params, self.points, self.chunk)

    @property
    def product_flops(self) -> float:
        return 8.0 * self.scale.shape[0] * self.size  # a jvp and a vjp use every parameter twice, at least

    @property
    def rows_flops(self) -> float:
        return 4.0 * self.count * self.size
