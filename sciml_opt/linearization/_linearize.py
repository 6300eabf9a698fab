"""Linearization of a composite function of many points: value, gradient and Jacobian in one place.

    L(theta) = sum_b sum_i w_bi ell_b(z_b(theta, x_bi), x_bi)

It knows nothing of models, terms or batches; the `objective` package supplies the blocks.
"""

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, Scalar

from .._tree import tree_dtype, tree_structure, unravel
from ._matrix_free import MatrixFreeRows, evaluate
from ._point_rows import point_rows
from ._rows import PointRows, Rows
from ._structured_jacobian import StructuredJacobian
from ._taps import Tapped

# From so many outputs of one point on, or so many bytes of dense rows (of large weights that cannot be factored), no
# rows are kept: products go through jvp and vjp.
LONG = 64
DENSE = 4 * 2**30


def half_squared_norm(z: Float[Array, " m"], x: PyTree) -> Scalar:
    """`0.5 |z|^2`, the outer function of least squares."""
    del x
    return 0.5 * jnp.sum(z * z)


def tap(
    inner: Callable[[PyTree, PyTree], PyTree], params: PyTree, point: PyTree, count: int
) -> tuple[Tapped | None, str]:
    """The map of one of `count` points with its taps; or `None` and why no rows are kept."""
    (outputs,) = jax.eval_shape(inner, params, point).shape
    if outputs >= LONG:
        return None, f"{outputs} outputs a point"
    tapped = Tapped(inner, params, point)
    size = count * outputs * sum(dense.size for dense in tapped.dense) * tree_dtype(params).itemsize
    if size > DENSE:
        return None, f"dense rows would fill {size / 2**30:.1f} GiB"
    return tapped, ""


class AbstractBlock(eqx.Module):
    """A part of a composite function: `Block`, `ProductBlock`."""

    @property
    @abc.abstractmethod
    def least_squares(self) -> bool: ...

    @abc.abstractmethod
    def value(self, params: PyTree) -> Scalar: ...

    @abc.abstractmethod
    def residual(self, params: PyTree) -> Float[Array, " N"]:
        """The whitened residual (least squares only)."""

    @abc.abstractmethod
    def linearize(self, params: PyTree, layers: bool = False) -> tuple[Any, ...]:
        """`value, gradient (P,), rows, clipped, residual (N,) or None`; `layers` as for the function `linearize`."""


class Block(AbstractBlock):
    """Points that share one inner map and one outer function.

    **Arguments:**

    - `inner`: `(params, point) -> (m,)`, for one point.
    - `outer`: `(z, point) -> scalar`, convex in `z`; `half_squared_norm` marks least squares.
    - `points`: pytree with a leading axis of length `n`.
    - `weights`: `(n,)`, the complete weight of each point in the sum.
    - `chunk`: how many points are evaluated at a time, to bound the memory; all by default. A gradient then accumulates
      over chunks, each evaluated once more on the way back.
    """

    inner: Callable[[PyTree, PyTree], Float[Array, " m"]]
    outer: Callable[[Float[Array, " m"], PyTree], Scalar]
    points: PyTree
    weights: Float[Array, " n"]
    chunk: int | None = eqx.field(static=True, default=None)

    @property
    def least_squares(self) -> bool:
        return self.outer is half_squared_norm

    def inner_map(self, params: PyTree) -> Float[Array, "n m"]:
        return evaluate(self.inner, params, self.points, self.chunk)

    def value(self, params: PyTree) -> Scalar:
        return jnp.sum(self.weights * jax.vmap(self.outer)(self.inner_map(params), self.points))

    def residual(self, params: PyTree) -> Float[Array, " nm"]:
        """Whitened residual `sqrt(w_i) z_i`, point by point (least squares only)."""
        return (jnp.sqrt(self.weights)[:, None] * self.inner_map(params)).reshape(-1)

    def linearize(self, params: PyTree, layers: bool = False) -> tuple[Any, ...]:
        return _linearize_block(self, params, layers)


class Linearization(eqx.Module):
    """A composite function near `theta`: `L(theta + s) ~ value + <grad, s> + 0.5 |J s|^2`.

    **Attributes:**

    - `value`: `L(theta)`.
    - `grad`: its gradient, shaped like the parameters.
    - `residual`: the whitened residual `rho` with `L = 0.5 |rho|^2` and `grad = J^T rho`; `None` if any block is not
      least squares (then `grad` need not lie in the range of `J^T`).
    - `jacobian`: `J`, with rows `sqrt(w_i) C_i^T dz_i/dtheta` where `C_i C_i^T` is the second derivative of the outer
      function, so that `J^T J` is the (generalised) Gauss-Newton matrix.
    - `clipped`: how many eigenvalues of outer Hessians were negative and were set to zero (a non-convex `ell`).
    """

    value: Scalar
    grad: PyTree
    residual: Float[Array, " N"] | None
    jacobian: StructuredJacobian
    clipped: Int[Array, ""]


def linearize(
    blocks: Sequence[AbstractBlock], params: PyTree, mesh: Mesh | None = None, *, layers: bool = False
) -> Linearization:
    """Value, gradient, whitened residual and Jacobian of `sum_b sum_i w_bi ell_b(z_b(theta, x_bi), x_bi)` at `params`.

    **Arguments:**

    - `blocks`: the groups of points.
    - `params`: the parameters, a pytree of floating arrays.
    - `mesh`: of one axis, the devices over which the points of every block are sharded.
    - `layers`: whether every matrix keeps its factors, and has the bias of its layer as one more column, whatever the
      cost: the same rows in the form from which curvature is read layer by layer (`sciml_opt.curvature`).

    **Returns:** a `Linearization`.

    **Cost:** about one gradient for scalar residuals: one pass with taps, one vjp, and the products `J^T rho`. Memory
    `N T (rows + columns)` a weight matrix.
    """
    parts = [block.linearize(params, layers) for block in blocks]
    values, gradients, rows, clipped, residuals = zip(*parts, strict=True)
    return Linearization(
        value=functools.reduce(jnp.add, values),
        grad=unravel(functools.reduce(jnp.add, gradients), params),
        residual=jnp.concatenate(residuals) if all(block.least_squares for block in blocks) else None,
        jacobian=StructuredJacobian([_placed(group, mesh) for group in rows], tree_structure(params), mesh),
        clipped=functools.reduce(jnp.add, clipped),
    )


def _placed(rows: Rows, mesh: Mesh | None) -> Rows:
    if mesh is None or not isinstance(rows, PointRows):
        return rows
    sharding = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    return rows.map_rows(lambda a: lax.with_sharding_constraint(a, sharding))


def _linearize_block(block: Block, params: PyTree, layers: bool) -> tuple[Any, ...]:
    """`value, gradient (P,), rows, clipped, residual (n m,) or None` of one block."""
    point = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), block.points)
    tapped, _ = tap(block.inner, params, point, block.weights.shape[0])
    z, arrays = (block.inner_map(params), []) if tapped is None else tapped.evaluate(params, block.points, block.chunk)

    def rows_of(scale: Array, mix: Array | None = None) -> Rows:
        if tapped is None:
            return MatrixFreeRows(block.inner, params, block.points, scale, mix, block.chunk)
        return point_rows(tapped, arrays, params, scale, mix, layers=layers)

    if block.least_squares:
        scale = jnp.sqrt(block.weights)
        residual = (scale[:, None] * z).reshape(-1)
        rows = rows_of(scale)
        value = jnp.sum(block.weights * jax.vmap(block.outer)(z, block.points))
        return value, rows.rmv(residual), rows, jnp.zeros((), jnp.int32), residual
    ell, slopes, factors, clipped = second_order(block.outer, z, block.points)
    gradient = rows_of(block.weights).rmv(slopes.reshape(-1))
    whitened = rows_of(jnp.sqrt(block.weights), factors)
    return jnp.sum(block.weights * ell), gradient, whitened, clipped, None


def second_order(
    outer: Callable[[Array, PyTree], Scalar], z: Float[Array, "n m"], points: PyTree
) -> tuple[Float[Array, " n"], Float[Array, "n m"], Float[Array, "n m m"], Int[Array, ""]]:
    """Value, slope and a factor `C` of the second derivative `C C^T` of the outer function at every point.

    **Returns:** the three, and how many negative eigenvalues were set to zero.
    """
    ell, slopes = jax.vmap(jax.value_and_grad(outer))(z, points)
    curvature = jax.vmap(jax.hessian(outer))(z, points)
    eigenvalues, eigenvectors = jnp.linalg.eigh(curvature)
    # Rounding leaves singular blocks (0.5 |grad u|^2 has a zero row for u) slightly negative: that is no clipping.
    floor = -z.dtype.type(100) * jnp.finfo(z.dtype).eps * jnp.max(jnp.abs(eigenvalues), axis=1, keepdims=True)
    clipped = jnp.sum(eigenvalues < floor, dtype=jnp.int32)
    factors = eigenvectors * jnp.sqrt(jnp.maximum(eigenvalues, 0))[:, None, :]
    return ell, slopes, factors, clipped
