"""The Jacobian of stacked per-point residuals, as a lineax operator."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree, Scalar

from .._tree import ravel, tree_dtype, tree_size, tree_structure, unravel
from ._contributions import Contribution, Explicit, Factored
from ._rows import PointRows, Rows, expand, product, product_flops
from ._sharded import over_devices, ring_kernel
from ._views import View, leaf_views

MEMORY = 2**28  # bytes that one operation may take for its temporaries, unless told otherwise


class Cost(NamedTuple):
    """Predicted flops: `product` is `J v` and `J^T w` together, `rows` the forming of explicit rows."""

    product: float
    gram: float
    kernel: float
    rows: float


class StructuredJacobian(lx.AbstractLinearOperator):
    """The Jacobian `J` of `N` whitened residuals with respect to the parameters, a lineax operator.

    `J` maps a parameter-shaped pytree to a vector of length `N`. Each group of rows is held in factored form:

        row_n, restricted to a weight matrix W  =  sum_t g_nt z_nt^T,        t = 1 .. T,

    `T (rows + columns)` numbers a matrix and a point; weights with fewer entries than that, and what is no matrix,
    keep explicit rows. Every operation picks the cheaper form, matrix by matrix, from the flops of both; temporaries
    stay below `memory` bytes.

    **Arguments:**

    - `rows`: groups of rows, as `linearize` makes them; or an array, `J^T` explicitly, of shape `(P, N)`.
    - `structure`: a pytree of arrays or `jax.ShapeDtypeStruct` shaped like the parameters, `P` entries in all.
    - `mesh`: of the devices that hold the rows, if they are sharded.

    **Cost:** see `cost`. Memory `N T (rows + columns)` a matrix.
    """

    rows: tuple[Rows, ...]
    _structure: tuple = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)

    def __init__(self, rows: Float[Array, "P N"] | Sequence[Rows], structure: PyTree, mesh: Mesh | None = None):
        leaves, treedef = jax.tree.flatten(tree_structure(structure))
        self._structure = (tuple(leaves), treedef)
        if isinstance(rows, jax.Array):
            size = rows.shape[0]
            explicit = Explicit(View(np.arange(size)), rows.T)
            rows = [PointRows(parts=(explicit,), size=size, dtype=rows.dtype)]
        self.rows = tuple(rows)
        self.mesh = mesh

    def mv(self, vector: PyTree) -> Float[Array, " N"]:
        """`J v` for a parameter-shaped `v`."""
        flat = ravel(vector).astype(self._dtype)
        return _join([group.mv(flat) for group in self.rows])

    def rmv(self, vector: Float[Array, " N"]) -> PyTree:
        """`J^T w` as a parameter-shaped pytree; the same as `J.T.mv(w)`."""
        flat = functools.reduce(jnp.add, [group.rmv(w) for group, w in self._split(vector)])
        return unravel(flat, self.in_structure())

    def as_matrix(self) -> Float[Array, "N P"]:
        rows = [group.explicit() for group in self.rows]
        return rows[0] if len(rows) == 1 else jnp.concatenate(rows)

    def transpose(self) -> lx.FunctionLinearOperator:
        return lx.FunctionLinearOperator(self.rmv, self.out_structure())

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        leaves, treedef = self._structure
        return jax.tree.unflatten(treedef, leaves)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((sum(group.count for group in self.rows),), self._dtype)

    def gram(self, weights: Float[Array, " N"] | None = None, *, memory: int = MEMORY) -> Float[Array, "P P"]:
        """`J^T J`, or `J^T diag(weights) J`. **Cost:** `N P^2` flops."""

        def block(rows, w):
            return symmetric_product(rows.T) if w is None else (rows.T * w[None, :]) @ rows

        if all(isinstance(group, PointRows) for group in self.rows):
            return self._accumulate(block, weights, memory)
        if len(self.rows) == 1:
            own = self.rows[0].own_gram(weights, memory)
            return self._accumulate(block, weights, memory) if own is None else own
        groups = ((group, None) for group in self.rows) if weights is None else self._split(weights)
        alone = [(StructuredJacobian([group], self.in_structure(), self.mesh), w) for group, w in groups]
        return _total([jacobian.gram(w, memory=memory) for jacobian, w in alone])

    def gram_blocks(
        self, blocks: Sequence[Int[np.ndarray, " _"]], *, memory: int = MEMORY
    ) -> list[Float[Array, "_ _"]]:
        """Diagonal blocks of `J^T J`: `J_b^T J_b`, where `J_b` has the columns `b` (entries of the flat parameters).

        **Cost:** `N sum_b k_b^2` flops.
        """
        views = [View(block) for block in blocks]

        def products(rows, w):
            return [symmetric_product(view.read(rows).T) for view in views]

        return self._accumulate(products, None, memory)

    def kernel(self, inverse_scale: PyTree | None = None, *, memory: int = MEMORY) -> Float[Array, "N N"]:
        """`J J^T`, or `J S J^T` with a diagonal `S`; no row of `J` is formed where the factors are cheaper.

            K_nm = sum_matrices sum_ts (g_nt . g_ms) (z_nt . z_ms)

        tile by tile, the lower half only.

        **Arguments:**

        - `inverse_scale`: `S`, a pytree like the parameters with one scalar a leaf, or for a matrix a tuple `(r, c)` of
          vectors, `S = r c^T`.
        - `memory`: bytes for temporaries, which sets the tiles.

        **Cost:** `N^2 sum_matrices min(T^2 (rows + columns), rows columns)` flops.
        """
        scale = None if inverse_scale is None else _Scale(inverse_scale, self.in_structure())
        blocks: list[list[Array]] = [[] for _ in self.rows]
        for i, a in enumerate(self.rows):
            for j, b in enumerate(self.rows[:i]):
                block = self._pair(a, b, scale, memory)
                blocks[i].append(block)
                blocks[j].append(block.T)
            blocks[i].append(self._pair(a, a, scale, memory))
        return blocks[0][0] if len(blocks) == 1 else jnp.block(blocks)

    def column_norms(self, *, memory: int = MEMORY) -> PyTree:
        """Euclidean norms of the columns, `sqrt(diag(J^T J))`, as a parameter-shaped pytree. **Cost:** `N P` flops."""

        def squares(rows, w):
            return jnp.sum(rows**2, axis=0)

        return unravel(jnp.sqrt(self._accumulate(squares, None, memory)), self.in_structure())

    def largest_column_square(self, *, memory: int = MEMORY) -> Scalar:
        """The largest entry of `diag(J^T J)`, the natural unit of a damping."""
        groups = [group for group in self.rows if isinstance(group, PointRows) and group.separable]
        rows = self._size * self.out_structure().shape[0] * self._dtype.itemsize
        if rows > memory and len(groups) == len(self.rows):
            # Expanded in the factors, where no row is formed. Small norms lose digits, the largest one does not.
            return jnp.max(_total([group.column_squares() for group in groups]))
        return jnp.max(ravel(self.column_norms(memory=memory))).astype(self._dtype) ** 2

    def row_norms(self) -> Float[Array, " N"]:
        """Euclidean norms of the rows, `sqrt(diag(J J^T))`, from the factors."""
        return jnp.sqrt(_join([group.row_squares() for group in self.rows]))

    def blocks(self, *, memory: int = MEMORY) -> PyTree:
        """The diagonal blocks of `J^T J`, one matrix a leaf. **Cost:** `N sum_leaves size^2` flops."""
        leaves, treedef = self._structure
        splits = np.cumsum([math.prod(leaf.shape) for leaf in leaves])[:-1]

        def grams(rows, w):
            return [symmetric_product(part.T) for part in jnp.split(rows, splits, axis=1)]

        return jax.tree.unflatten(treedef, self._accumulate(grams, None, memory))

    def take(self, indices: Int[Array, " k"]) -> "StructuredJacobian":
        """The Jacobian of some residuals, in the order of `indices` (which may be traced); factored as before.

        Negative indices count from the end; the row of an index out of range is zero.
        """
        start, parts = 0, []
        indices = jnp.where(indices < 0, indices + self.out_structure().shape[0], indices)
        for group in self.rows:
            local = indices - start
            inside = (local >= 0) & (local < group.count)
            chosen = group.take(jnp.clip(local, 0, group.count - 1))
            parts += chosen.scaled(inside.astype(self._dtype)).parts
            start += group.count
        return StructuredJacobian(
            [PointRows(parts=tuple(parts), size=self._size, dtype=self._dtype)], self.in_structure()
        )

    def row_scaled(self, weights: Float[Array, " N"]) -> "StructuredJacobian":
        """`diag(weights) J`, in the same form. **Cost:** that of a pass through the factors."""
        return StructuredJacobian(
            [group.scaled(w) for group, w in self._split(weights)], self.in_structure(), self.mesh
        )

    def for_products(self) -> "StructuredJacobian":
        """The same, in the form in which many products `J v` and `J^T w` cost least.

        Explicit rows of a small matrix take one pass through memory, its factors `T` small products: rows are faster up
        to about 45 x 45 entries for `T = 4`, but forming them costs as much as a few products.
        """
        return StructuredJacobian([group.for_products() for group in self.rows], self.in_structure(), self.mesh)

    @property
    def cost(self) -> Cost:
        """What the operations cost, in flops, from shapes alone."""
        pairs = [(a, b) for i, a in enumerate(self.rows) for b in self.rows[:i]]
        kernel = sum(_pair_flops(a, b) * a.count * b.count for a, b in pairs)
        return Cost(
            product=sum(group.product_flops for group in self.rows),
            gram=sum(group.gram_flops for group in self.rows),
            kernel=kernel + sum(group.kernel_flops for group in self.rows),
            rows=sum(group.rows_flops for group in self.rows),
        )

    @property
    def _dtype(self) -> np.dtype:
        return self.rows[0].dtype

    @property
    def _size(self) -> int:
        return tree_size(self.in_structure())

    def _split(self, w: Float[Array, " N"]):
        stops = np.cumsum([group.count for group in self.rows])[:-1]
        return zip(self.rows, jnp.split(w, stops), strict=True)

    def _pair(self, a: Rows, b: Rows, scale: "_Scale | None", memory: int) -> Array:
        if self.mesh is None or not (isinstance(a, PointRows) and isinstance(b, PointRows)):
            return kernel_block(a, b, scale, memory)
        return ring_kernel(lambda x, y: kernel_block(x, y, scale, memory), a, b, self.mesh)

    def _accumulate(self, f, weights, memory: int):
        """The sum of `f(rows, weights)` over chunks of rows that fit into the memory."""
        chunk = max(1, memory // (self._size * self._dtype.itemsize))
        if self.mesh is None and self.out_structure().shape[0] <= chunk:
            return f(self.as_matrix(), weights)
        groups = ((group, None) for group in self.rows) if weights is None else self._split(weights)

        def total(group, w):
            if self.mesh is not None and isinstance(group, PointRows):
                return over_devices(lambda rows, w: _over_chunks(f, rows, w, chunk), group, w, self.mesh)
            return _over_chunks(f, group, w, chunk)

        return _total([total(group, w) for group, w in groups])


def _total(parts: Sequence[PyTree]) -> PyTree:
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)


def _join(pieces: Sequence[Array]) -> Array:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces)


def _over_chunks(f, group: Rows, weights, chunk: int):
    if group.count <= chunk:
        return f(group.explicit(), weights)
    number = -(-group.count // chunk)
    padded = group.pad(number * chunk)
    weights = None if weights is None else jnp.pad(weights, (0, number * chunk - group.count))

    def step(total, i):
        w = None if weights is None else lax.dynamic_slice_in_dim(weights, i * chunk, chunk)
        return jax.tree.map(jnp.add, total, f(padded.slice(i * chunk, chunk).explicit(), w)), None

    like = jax.eval_shape(lambda: f(padded.slice(0, chunk).explicit(), None if weights is None else weights[:chunk]))
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return lax.scan(step, zero, jnp.arange(number))[0]


def symmetric_product(
    a: Float[Array, "n k"], parts: int = 4, least: int = 64, other: Float[Array, "n k"] | None = None
) -> Float[Array, "n n"]:
    """`A A^T`, or a symmetric `A B^T`, the lower block triangle only: XLA has no symmetric product on CPU."""
    b = a if other is None else other
    n = a.shape[0]
    parts = min(parts, n // least)
    if parts < 2:
        return a @ b.T
    stops = [round(n * k / parts) for k in range(parts + 1)]
    edges = list(itertools.pairwise(stops))
    lower = [[a[i:j] @ b[s:t].T for s, t in edges[: k + 1]] for k, (i, j) in enumerate(edges)]
    return jnp.block([[lower[i][j] if j <= i else lower[j][i].T for j in range(parts)] for i in range(parts)])


def kernel_block(a: Rows, b: Rows, scale: "_Scale | None", memory: int) -> Array:
    """`J_a S J_b^T`: explicit rows in one product, the factored ones tile by tile."""
    same = a is b
    if not (isinstance(a, PointRows) and isinstance(b, PointRows)):
        own = a.own_kernel(scale, memory) if same else None
        return _tiled(a, b, same, scale, memory) if own is None else own
    a, b = expand(a, b, memory), a if same else expand(b, a, memory)
    if same:
        b = a
    apart = [(x, y) for x in _alone(a, b) for y in _alone(b, a) if x.view == y.view]
    if len(apart) == 1:  # one block of entries that no other contribution touches
        ((x, y),) = apart
        rest_a, rest_b = (tuple(p for p in group.parts if p is not gone) for group, gone in ((a, x), (b, y)))
        if same and scale is None:
            block = symmetric_product(x.values)
        else:
            block = (x if scale is None else scale.apply(x)).explicit() @ y.values.T
        if not (rest_a and rest_b):
            return block
        a, b = PointRows(parts=rest_a, size=a.size, dtype=a.dtype), PointRows(parts=rest_b, size=b.size, dtype=b.dtype)
        return block + _tiled(a, b, same, scale, memory)
    return _tiled(a, b, same, scale, memory)


def _alone(a: PointRows, b: PointRows) -> list[Explicit]:
    """The explicit rows of `a` whose entries meet one contribution of `b` only."""
    return [x for x in a.parts if isinstance(x, Explicit) and sum(x.view.overlaps(y.view) for y in b.parts) == 1]


def _tiled(a: Rows, b: Rows, symmetric: bool, scale: "_Scale | None", memory: int) -> Array:
    """`J_a S J_b^T` tile by tile; of a symmetric product the lower half, mirrored."""
    tile = _tile(a, b, memory)
    (number_a, rows_a), (number_b, rows_b) = _even(a.count, tile), _even(b.count, tile)

    def block(x, y):
        return product(x if scale is None else scale(x), y)

    if number_a == number_b == 1:
        return block(a.slice(0, a.count), b.slice(0, b.count))
    size_a, size_b = a.count, b.count
    a, b = a.pad(number_a * rows_a), b.pad(number_b * rows_b)
    pairs = [(i, j) for i in range(number_a) for j in range(i + 1 if symmetric else number_b)]
    first, second = jnp.asarray(np.array(pairs, np.int32).T)

    def place(whole, pair):  # in place: tiles collected first would be one more copy of the product
        i, j = pair[0] * rows_a, pair[1] * rows_b
        tile = block(a.slice(i, rows_a), b.slice(j, rows_b))
        whole = lax.dynamic_update_slice(whole, tile, (i, j))
        return lax.dynamic_update_slice(whole, tile.T, (j, i)) if symmetric else whole, None

    whole = jnp.zeros((number_a * rows_a, number_b * rows_b), a.dtype)
    return lax.scan(place, whole, (first, second))[0][:size_a, :size_b]


def _pair_flops(a: Rows, b: Rows) -> float:
    return product_flops(*(jax.eval_shape(lambda g=group: g.slice(0, 1)) for group in (a, b)))


def _even(count: int, tile: int) -> tuple[int, int]:
    """Tiles of nearly equal size: their number and their rows."""
    number = max(1, round(count / tile))
    return number, -(-count // number)


def _tile(a: Rows, b: Rows, memory: int) -> int:
    """Rows of one tile: large enough for the matrix products, small enough for cache and memory."""
    sample = [jax.eval_shape(lambda g=group: g.slice(0, 1)) for group in (a, b)]
    terms = max(rows.terms for rows in sample)
    explicit = max(1, *(rows.explicit_size for rows in sample))
    entry = a.dtype.itemsize
    tile = 256 if terms == 1 else max(32, 512 // terms)
    most = math.isqrt(max(1, memory // (4 * entry * terms * terms)))
    return max(1, min(tile, most, memory // (4 * entry * explicit)))


class _Scale:
    """A diagonal of the parameter space: one scalar, or rows times columns, a leaf."""

    def __init__(self, tree: PyTree, structure: PyTree):
        leaves, treedef = jax.tree.flatten(structure)
        self._dtype = tree_dtype(structure)
        self._scales = treedef.flatten_up_to(tree)
        self._views = [View(indices) for indices in leaf_views([leaf.shape for leaf in leaves])]
        spread = []
        for scale, leaf in zip(self._scales, leaves, strict=True):
            full = (
                scale[0][:, None] * scale[1][None, :]
                if isinstance(scale, tuple)
                else jnp.broadcast_to(scale, leaf.shape)
            )
            spread.append(full.astype(self._dtype).reshape(-1))
        self._flat = jnp.concatenate(spread)

    def __call__(self, rows: PointRows) -> PointRows:
        return PointRows(parts=tuple(self.apply(part) for part in rows.parts), size=rows.size, dtype=rows.dtype)

    def apply(self, part: Contribution) -> Contribution:
        for view, scale in zip(self._views, self._scales, strict=True):
            if isinstance(scale, tuple) and part.view == view and isinstance(part, Factored):
                return part.rescaled(*(s.astype(self._dtype) for s in scale))
            if not isinstance(scale, tuple) and view.start <= part.view.start and part.view.stop <= view.stop:
                return part.scaled(jnp.broadcast_to(scale, part.count).astype(self._dtype))
        flat = View(part.view.indices.reshape(-1))
        return Explicit(flat, part.explicit() * flat.read(self._flat)[None, :])


def _itself(operator: StructuredJacobian) -> StructuredJacobian:
    return operator


# lineax asks these questions of every operator; a Jacobian of a non-linear residual has no special structure.
lx.linearise.register(StructuredJacobian)(_itself)
lx.materialise.register(StructuredJacobian)(_itself)
lx.conj.register(StructuredJacobian)(_itself)
lx.diagonal.register(StructuredJacobian)(lambda operator: jnp.diagonal(operator.as_matrix()))
for _question in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
):
    _question.register(StructuredJacobian)(lambda operator: False)
