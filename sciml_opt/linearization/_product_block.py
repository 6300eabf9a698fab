"""A product batch as a part of a composite function."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from .._tree import tree_dtype, tree_size
from ._linearize import AbstractBlock, half_squared_norm, second_order
from ._matrix_free import evaluate
from ._point_rows import point_rows
from ._product_rows import ProductRows, combined
from ._shared import Outputs
from ._taps import Tapped

Map = Callable[[PyTree, PyTree], Float[Array, " m"]]


class ProductBlock(AbstractBlock):
    """All pairs of left and right points that share two inner maps, their combination and one outer function.

        sum_ij w_ij ell(z_ij, pair_ij),        z_ij = combine(left(theta, x_i), right(theta, y_j), pair_ij)

    The same interface as `Block`.

    **Arguments:**

    - `left`, `right`: `(params, point) -> (p,)` and `(q,)`, for one point.
    - `combine`: `(b, t, pair) -> (m,)`, free of parameters, a pytree.
    - `outer`: `(z, pair) -> scalar`, convex in `z`; `half_squared_norm` marks least squares.
    - `left_points`, `right_points`: pytrees with leading axes `Nl`, `Nr`.
    - `pairs`: pytree with leading axes `(Nl, Nr)`, or `None`.
    - `weights`: `(Nl, Nr)`, the complete weight of each pair in the sum.
    - `chunk`: how many points of each side are evaluated at a time; all by default.

    **Cost:** a value or a gradient is that of both maps at their own points and of the combination, `Nl + Nr` points,
    not `Nl Nr`. The linearization backpropagates every output, `Nl p + Nr q` gradients of a point.
    """

    left: Map
    right: Map
    combine: Callable[[Array, Array, PyTree], Float[Array, " m"]]
    outer: Callable[[Float[Array, " m"], PyTree], Scalar]
    left_points: PyTree
    right_points: PyTree
    pairs: PyTree
    weights: Float[Array, "Nl Nr"]
    chunk: int | None = eqx.field(static=True, default=None)

    @property
    def least_squares(self) -> bool:
        return self.outer is half_squared_norm

    def inner_map(self, params: PyTree) -> Float[Array, "Nl Nr m"]:
        b = evaluate(self.left, params, self.left_points, self.chunk)
        t = evaluate(self.right, params, self.right_points, self.chunk)
        return combined(self.combine, b, t, self.pairs)

    def value(self, params: PyTree) -> Scalar:
        return self._weighted_sum(self.inner_map(params))

    def residual(self, params: PyTree) -> Float[Array, " N"]:
        """Whitened residual `sqrt(w_ij) z_ijk`, in the order `(i, j, k)` (least squares only)."""
        return self._whitened(self.inner_map(params))

    def linearize(self, params: PyTree, layers: bool = False) -> tuple[Any, ...]:
        del layers  # matrices are always factored here, and biases stay apart
        b, left = self._outputs(self.left, params, self.left_points)
        t, right = self._outputs(self.right, params, self.right_points)
        z = combined(self.combine, b, t, self.pairs)

        def rows_of(scale, mix=None):
            size, dtype, m = tree_size(params), tree_dtype(params), z.shape[2]
            return ProductRows(size, dtype, m, left, right, b, t, self.pairs, self.combine, scale, mix)

        if self.least_squares:
            rows, residual = rows_of(jnp.sqrt(self.weights)), self._whitened(z)
            return self._weighted_sum(z), rows.rmv(residual), rows, jnp.zeros((), jnp.int32), residual
        m = z.shape[2]
        pairs = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), self.pairs)
        ell, slopes, factors, clipped = second_order(self.outer, z.reshape(-1, m), pairs)
        value = jnp.sum(self.weights * ell.reshape(self.weights.shape))
        gradient = rows_of(self.weights).rmv(slopes.reshape(-1))
        return value, gradient, rows_of(jnp.sqrt(self.weights), factors.reshape(*z.shape, m)), clipped, None

    def _weighted_sum(self, z: Float[Array, "Nl Nr m"]) -> Scalar:
        return jnp.sum(self.weights * jax.vmap(jax.vmap(self.outer))(z, self.pairs))

    def _whitened(self, z: Float[Array, "Nl Nr m"]) -> Float[Array, " N"]:
        return (jnp.sqrt(self.weights)[:, :, None] * z).reshape(-1)

    def _outputs(self, f: Map, params: PyTree, points: PyTree) -> tuple[Float[Array, "n m"], Outputs]:
        point = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), points)
        tapped = Tapped(f, params, point)
        values, arrays = tapped.evaluate(params, points, self.chunk)
        rows = point_rows(tapped, arrays, params, jnp.ones(values.shape[:1], values.dtype), shared=True)
        return values, Outputs(rows, tapped.size)
