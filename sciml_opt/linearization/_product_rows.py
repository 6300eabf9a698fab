"""Rows of a product batch: every pair of a left point and a right point, in two-sided form.

    z_ij = combine(b_i, t_j, pair_ij),      J_ij = C_ij J^b_i + D_ij J^t_j,      C_ij = dz_ij/db_i,  D_ij = dz_ij/dt_j

`Nl p` rows of the left map and `Nr q` rows of the right map stand for `Nl Nr m` rows; the pairs share them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from ._rows import PointRows, Rows, expand, product, product_flops
from ._shared import Outputs
from ._structured_jacobian import kernel_block, symmetric_product
from ._views import View, assemble

Scaling = Callable[[PointRows], PointRows]

TILE = 512  # rows of a tile of the kernel, as far as the memory allows
UPDATE = 24.0  # what adding to one entry of the kernel costs, in multiply-adds of a matrix product (measured, CPU)


class ProductRows(Rows):
    """Rows `s_ij sum_l mix_ijlk dz_ijl / dtheta` of all pairs, in the order `(i, j, k)`.

    **Arguments:**

    - `left`, `right`: the Jacobians of the maps at their points, `p` and `q` outputs.
    - `b`, `t`: their values.
    - `pairs`: pytree with leading axes `(Nl, Nr)`, or `None`.
    - `combine`: `(b_i, t_j, pair_ij) -> (m,)`; free of parameters.
    - `scale`: `s`.
    - `mix`: the identity by default.

    **Cost:** of `J v` (and the same of `J^T w`): `2 n T rows (columns + outputs)` a matrix for the `n = Nl, Nr` points
    of both sides and, with `m = 1` and a dot product, `2 Nl Nr (p + q)`, two matrix products: about a jvp of both maps.
    """

    size: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)
    m: int = eqx.field(static=True)
    left: Outputs
    right: Outputs
    b: Float[Array, "Nl p"]
    t: Float[Array, "Nr q"]
    pairs: PyTree
    combine: Callable[[Array, Array, PyTree], Array]
    scale: Float[Array, "Nl Nr"]
    mix: Float[Array, "Nl Nr m m"] | None

    @property
    def count(self) -> int:
        return self.scale.size * self.m

    def mv(self, flat: Float[Array, " P"]) -> Float[Array, " N"]:
        _, dz = jax.jvp(self._combined, (self.b, self.t), (self.left.mv(flat), self.right.mv(flat)))
        if self.mix is not None:
            dz = jnp.einsum("ijlk,ijl->ijk", self.mix, dz)
        return (self.scale[:, :, None] * dz).reshape(-1)

    def rmv(self, w: Float[Array, " N"]) -> Float[Array, " P"]:
        w = w.reshape(*self.scale.shape, self.m) * self.scale[:, :, None]
        if self.mix is not None:
            w = jnp.einsum("ijlk,ijk->ijl", self.mix, w)
        b, t = jax.vjp(self._combined, self.b, self.t)[1](w)
        return self.left.rmv(b) + self.right.rmv(t)

    def take(self, indices: Int[Array, " k"]) -> PointRows:
        i, j, k = jnp.unravel_index(indices, (*self.scale.shape, self.m))
        if self.mix is None:
            cotangents = (k[:, None] == jnp.arange(self.m)[None, :]).astype(self.dtype)
        else:
            cotangents = self.mix[i, j, :, k]

        def pull(b, t, pair, w):
            return jax.vjp(lambda b, t: self.combine(b, t, pair), b, t)[1](w)

        pairs = jax.tree.map(lambda leaf: leaf[i, j], self.pairs)
        c, d = jax.vmap(pull)(self.b[i], self.t[j], pairs, cotangents * self.scale[i, j][:, None])
        return self._both(self.left.take(i, c), self.right.take(j, d))

    def scaled(self, weights: Float[Array, " N"]) -> "ProductRows":
        weights = weights.reshape(*self.scale.shape, self.m)
        if self.m == 1:
            return eqx.tree_at(lambda rows: rows.scale, self, self.scale * weights[:, :, 0])
        mix = jnp.eye(self.m, dtype=self.dtype)[None, None] if self.mix is None else self.mix
        mix = mix * weights[:, :, None, :]
        return eqx.tree_at(lambda rows: rows.mix, self, mix, is_leaf=lambda leaf: leaf is None)

    def explicit(self) -> Float[Array, "N P"]:
        c, d = self.partials()
        return self._both(self.left.contract(c, 0), self.right.contract(d, 1)).explicit()

    def row_squares(self) -> Float[Array, " N"]:
        if not self.overlapping:
            c, d = self.partials()
            squares = [
                jnp.einsum("ijka,iab,ijkb->ijk", c, _own_kernels(self.left), c),
                jnp.einsum("ijka,jab,ijkb->ijk", d, _own_kernels(self.right), d),
            ]
            return jnp.maximum(squares[0] + squares[1], 0).reshape(-1)
        rows = math.prod((self.scale.shape[1], self.m))
        return lax.map(lambda i: self.slice(i * rows, rows).row_squares(), jnp.arange(self.scale.shape[0])).reshape(-1)

    @property
    def product_flops(self) -> float:
        combine = 4.0 * self.count * (self.left.m + self.right.m)
        return self.left.product_flops + self.right.product_flops + combine

    @property
    def rows_flops(self) -> float:
        return jax.eval_shape(lambda: self.slice(0, 1)).rows_flops * self.count

    @property
    def overlapping(self) -> bool:
        """Whether both maps see a parameter."""
        return self.left.overlaps(self.right)

    def partials(self, axis: int = 0, start: Array | int = 0, size: int | None = None) -> tuple[Array, Array]:
        """`C` and `D`, scaled and mixed, `(Nl, Nr, m, p)` and `(Nl, Nr, m, q)`; or of `size` points of one axis."""

        def window(a, axis=axis):
            return a if size is None else lax.dynamic_slice_in_dim(a, start, size, axis)

        def pull(b, t, pair, scale, mix):
            cotangents = scale * (jnp.eye(self.m, dtype=self.dtype) if mix is None else mix.T)
            return jax.vmap(jax.vjp(lambda b, t: self.combine(b, t, pair), b, t)[1])(cotangents)

        b, t = (window(self.b, 0), self.t) if axis == 0 else (self.b, window(self.t, 0))
        pairs, scale, mix = jax.tree.map(window, (self.pairs, self.scale, self.mix))
        return jax.vmap(jax.vmap(pull, (None, 0, 0, 0, 0)), (0, None, 0, 0, 0))(b, t, pairs, scale, mix)

    @property
    def kernel_flops(self) -> float:
        """Flops of `J J^T`, or a half of all pairs of rows."""
        return self._kernel_plan.flops

    def own_kernel(self, scale: Any, memory: int) -> Float[Array, "N N"] | None:
        """`J S J^T` from the kernels of both sides; `None` where rows are cheaper.

            K_(ij)(kl) = C_ij (J^b_i S J^b_k^T) C_kl^T + D_ij (J^t_j S J^t_l^T) D_kl^T

        and cross terms where the maps share parameters.

        **Cost:** a side with `n` points, `p` outputs and `R` rows a point: its kernel of `(n p)^2` entries and
        `n^2 R p (R + p)` flops for both combinations, or, where that is cheaper, a kernel of `(n R)^2` entries. Memory
        beyond `K`: the factors, the derivatives `C` and `D` (`Nl Nr m (p + q)` numbers), and tiles below `memory`.
        """
        plan = self._kernel_plan
        if not plan.two_sided:
            return None
        c, d = self.partials()
        whole = jnp.zeros((*self.scale.shape, self.m, *self.scale.shape, self.m), self.dtype)
        for outputs, partials, axis, from_outputs in ((self.left, c, 0, plan.left), (self.right, d, 1, plan.right)):
            if from_outputs:
                whole = _add_side(whole, outputs, partials, axis, scale, memory)
            else:
                rows = outputs.contract(partials, axis)
                whole = whole + kernel_block(rows, rows, scale, memory).reshape(whole.shape)
        if self.overlapping:
            whole = _add_cross(whole, self.left, c, self.right, d, scale, memory)
        return whole.reshape(self.count, self.count)

    @property
    def gram_flops(self) -> float:
        return min(self._gram_flops, float(self.count) * self.size**2)

    def own_gram(self, weights: Float[Array, " N"] | None, memory: int) -> Float[Array, "P P"] | None:
        """`J^T diag(weights) J` from `Nl p` rows of the left and `Nr q` of the right; `None` where rows are cheaper.

            sum_i J^b_i^T (sum_j C_ij^T W_ij C_ij) J^b_i + the same of the right + J^b^T X J^t + its transpose

        **Cost:** with `P_b` and `P_t` parameters `Nl p P_b^2 + Nr q P_t^2 + 2 min(Nl p, Nr q) P_b P_t` flops.
        """
        if self._gram_flops >= float(self.count) * self.size**2:
            return None
        w = None if weights is None else weights.reshape(*self.scale.shape, self.m)
        total = jnp.zeros((self.size, self.size), self.dtype)
        crossing = 0 if self.left.rows.count <= self.right.rows.count else 1
        seen = [axis for axis, side in enumerate((self.left, self.right)) if side.entries[0] < side.entries[1]]
        for axis in seen:  # a map with no parameter of its own, all of them frozen, adds nothing
            total = self._add_side_gram(total, axis, w, memory, cross=len(seen) == 2 and axis == crossing)
        return total

    @property
    def _gram_flops(self) -> float:
        sides = [(outputs.rows.count, outputs.entries[1] - outputs.entries[0]) for outputs in (self.left, self.right)]
        cross = 2.0 * min(n for n, _ in sides) * sides[0][1] * sides[1][1]
        partials = 2.0 * self.count * (self.left.m + self.right.m) * max(size for _, size in sides)
        return sum(float(n) * size**2 for n, size in sides) + cross + partials

    def _add_side_gram(self, total, axis: int, w, memory: int, cross: bool):
        """Adds the block of one side and, if asked, the cross blocks, some points of the side at a time."""
        side, other = (self.left, self.right) if axis == 0 else (self.right, self.left)
        (a0, a1), (b0, b1) = side.entries, other.entries
        rows_of_point = self.count // side.points
        numbers = 2 * side.m * (a1 - a0) + (rows_of_point + side.m) * (b1 - b0) * cross
        chunk = max(1, min(side.points, memory // (2 * numbers * self.dtype.itemsize)))

        def add(total, number):
            start, keep = _window(number, chunk, side.points, self.dtype)
            own, others = self.partials(axis, start, chunk)[:: 1 if axis == 0 else -1]
            weighted = own * (keep[:, None, None, None] if axis == 0 else keep[None, :, None, None])
            if w is not None:
                weighted = weighted * lax.dynamic_slice_in_dim(w, start, chunk, axis)[..., None]
            point = "ij"[axis]
            inner = jnp.einsum(f"ijka,ijkb->{point}ab", weighted, own)
            rows = _explicit(side.window(start, chunk).spread(), a0, a1).reshape(chunk, side.m, a1 - a0)
            mixed = jnp.einsum("nab,nbx->nax", inner, rows)
            flat = rows.reshape(-1, a1 - a0)
            total = total.at[a0:a1, a0:a1].add(symmetric_product(mixed.reshape(flat.shape).T, other=flat.T))
            if cross:
                them = _explicit(other.contract(others, 1 - axis), b0, b1).reshape(*others.shape[:3], b1 - b0)
                combined = jnp.einsum(f"ijka,ijkx->{point}ax", weighted, them)
                block = flat.T @ combined.reshape(len(flat), b1 - b0)
                total = total.at[a0:a1, b0:b1].add(block)
                total = total.at[b0:b1, a0:a1].add(block.T)
            return total, None

        return lax.scan(add, total, jnp.arange(-(-side.points // chunk), dtype=jnp.int32))[0]

    @property
    def _kernel_plan(self) -> "_Plan":
        left, right = (jax.eval_shape(lambda o=o: o.spread().slice(0, 1)) for o in (self.left, self.right))
        points, pair = self.scale.shape, float(self.count) ** 2
        flops, choices = 0.0, []
        for outputs, row, n in ((self.left, left, points[0]), (self.right, right, points[1])):
            rows = self.count // n
            entry = product_flops(row, row)
            combining = 2.0 * n * n * rows * outputs.m * (rows + outputs.m)
            from_outputs = (n * outputs.m) ** 2 * entry + combining + UPDATE * pair
            choices.append(from_outputs < entry * pair)
            flops += min(from_outputs, entry * pair) / 2
        cross = product_flops(left, right) if self.overlapping else 0.0
        if cross:
            rows_left, rows_right = self.count // points[0], self.count // points[1]
            p, q = self.left.m, self.right.m
            flops += points[0] * p * points[1] * q * cross + UPDATE * pair
            flops += 2.0 * points[0] * points[1] * rows_left * q * (p + rows_right)
        generic = pair * (product_flops(left, left) + product_flops(right, right) + 2 * cross) / 2
        return _Plan(*choices, two_sided=flops < generic or not cross, flops=min(flops, generic))

    def _both(self, left: PointRows, right: PointRows) -> PointRows:
        return PointRows(parts=(*left.parts, *right.parts), size=self.size, dtype=self.dtype)

    def _combined(self, b: Float[Array, "Nl p"], t: Float[Array, "Nr q"]) -> Float[Array, "Nl Nr m"]:
        return combined(self.combine, b, t, self.pairs)


def combined(combine: Callable[[Array, Array, PyTree], Array], b: Array, t: Array, pairs: PyTree) -> Array:
    """`combine(b_i, t_j, pair_ij)` of all pairs, `(Nl, Nr, m)`; a dot product becomes one matrix product."""
    return jax.vmap(jax.vmap(combine, (None, 0, 0)), (0, None, 0))(b, t, pairs)


class _Plan(NamedTuple):
    """How a kernel is made: of each side from the kernel of its outputs, or from combined rows."""

    left: bool
    right: bool
    two_sided: bool
    flops: float


def _own_kernels(outputs: Outputs) -> Float[Array, "n m m"]:
    """`J_i J_i^T` of every point."""

    def one(i):
        rows = outputs.window(i, 1).spread()
        return product(rows, rows)

    return lax.map(one, jnp.arange(outputs.points))


def _explicit(rows: PointRows, start: int, stop: int) -> Float[Array, "N size"]:
    """Explicit rows on a range of the parameters that holds all that they touch."""
    parts = [(View(part.view.indices.reshape(-1) - start), part.explicit()) for part in rows.parts if part.view.size]
    return assemble(parts, stop - start) if parts else jnp.zeros((rows.count, stop - start), rows.dtype)


def _window(number, size: int, count: int, dtype) -> tuple[Array, Array]:
    """Where window `number` starts, and 1 for what belongs to it: the last one is moved back over the one before."""
    start = jnp.minimum(number * size, count - size)
    return start, (start + jnp.arange(size, dtype=jnp.int32) >= number * size).astype(dtype)


def _tile_points(points: int, outputs: int, rows: int, terms: int, itemsize: int, memory: int) -> int:
    """Points of a tile."""
    most = math.isqrt(max(1, memory // (4 * itemsize * (max(rows, outputs * terms) ** 2))))
    return max(1, min(points, TILE // max(outputs, rows), most))


def _sided(partials: Array, axis: int) -> Array:
    """`(i, j, k, p)` as point, its rows, outputs."""
    a = jnp.moveaxis(partials, axis, 0)
    return a.reshape(a.shape[0], -1, a.shape[-1])


def _add_side(whole, outputs: Outputs, partials, axis: int, scale: Scaling | None, memory: int):
    """Adds `C_ij (J_i S J_k^T) C_kl^T`, tile by tile of points: both of a pair of tiles at once."""
    c, m = _sided(partials, axis), outputs.m
    rows = outputs.spread()
    rows = expand(rows, rows, memory)
    n = outputs.points
    tile = _tile_points(n, m, c.shape[1], rows.terms, whole.dtype.itemsize, memory)
    number = -(-n // tile)

    def window(k):
        start, keep = _window(k, tile, n, whole.dtype)
        own = lax.dynamic_slice_in_dim(c, start, tile) * keep[:, None, None]
        return start, own, rows.slice(start * m, tile * m)

    def add(whole, pair):
        (start_a, c_a, a), (start_b, c_b, b) = window(pair[0]), window(pair[1])
        block = _combine_tile(c_a, product(a if scale is None else scale(a), b), c_b)
        # A diagonal tile is its own transpose: half of it at each place, symmetric to the last bit.
        block = jnp.where(pair[0] == pair[1], (block + block.transpose(2, 3, 0, 1)) / 4, block)
        block = _placed(block, whole.shape, axis, axis)
        whole = _update(whole, block, axis, start_a, axis, start_b)
        return _update(whole, block.transpose(3, 4, 5, 0, 1, 2), axis, start_b, axis, start_a), None

    pairs = np.array([(a, b) for a in range(number) for b in range(a + 1)], np.int32)
    return lax.scan(add, whole, jnp.asarray(pairs))[0]


def _add_cross(whole, left: Outputs, c, right: Outputs, d, scale: Scaling | None, memory: int):
    """Adds `C_ij (J^b_i S J^t_l^T) D_kl^T` and its transpose: the maps share parameters."""
    sides = []
    for outputs, partials, axis in ((left, c, 0), (right, d, 1)):
        partials, rows = _sided(partials, axis), outputs.spread()
        tile = _tile_points(outputs.points, outputs.m, partials.shape[1], rows.terms, whole.dtype.itemsize, memory)
        sides.append((outputs, partials, rows, tile))

    def window(side, k):
        outputs, partials, rows, tile = side
        start, keep = _window(k, tile, outputs.points, whole.dtype)
        own = lax.dynamic_slice_in_dim(partials, start, tile) * keep[:, None, None]
        return start, own, rows.slice(start * outputs.m, tile * outputs.m)

    def add(whole, pair):
        (start_a, c_a, a), (start_b, d_b, b) = window(sides[0], pair[0]), window(sides[1], pair[1])
        block = _combine_tile(c_a, product(a if scale is None else scale(a), b), d_b)
        block = _placed(block, whole.shape, 0, 1)
        whole = _update(whole, block, 0, start_a, 1, start_b)
        return _update(whole, block.transpose(3, 4, 5, 0, 1, 2), 1, start_b, 0, start_a), None

    numbers = [-(-outputs.points // tile) for outputs, _, _, tile in sides]
    pairs = np.array([(a, b) for a in range(numbers[0]) for b in range(numbers[1])], np.int32)
    return lax.scan(add, whole, jnp.asarray(pairs))[0]


def _combine_tile(c: Float[Array, "a R p"], inner: Float[Array, "ap bq"], d: Float[Array, "b S q"]) -> Array:
    """`C_a Theta_ab D_b^T`: `(a, R, b, S)`."""
    first = jnp.einsum("arp,apy->ary", c, inner.reshape(*c.shape[:1], c.shape[2], -1))
    return jnp.einsum("arbq,bsq->arbs", first.reshape(*c.shape[:2], d.shape[0], d.shape[2]), d)


def _placed(block: Float[Array, "a R b S"], shape: tuple[int, ...], axis_a: int, axis_b: int) -> Array:
    """With the axes `(i, j, k, i, j, k)`; of each side one of `i`, `j` is the tile and the other one complete."""
    a, _, b, _ = block.shape
    block = block.reshape(a, shape[1 - axis_a], shape[2], b, shape[1 - axis_b], shape[2])
    return jnp.moveaxis(jnp.moveaxis(block, 0, axis_a), 3, 3 + axis_b)


def _update(whole, block, axis_a: int, start_a, axis_b: int, start_b):
    starts = [jnp.int32(0)] * 6
    starts[axis_a], starts[3 + axis_b] = start_a.astype(jnp.int32), start_b.astype(jnp.int32)
    return lax.dynamic_update_slice(whole, lax.dynamic_slice(whole, starts, block.shape) + block, starts)
