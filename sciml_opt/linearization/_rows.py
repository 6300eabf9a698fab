"""Rows of a Jacobian in factored form: what the taps leave of a group of points.

A row is a sum of contributions, each on its own entries of the parameter vector:

- `Factored`: `sum_t left_t right_t^T` on a matrix of parameters, `T (rows + columns)` numbers, not `rows * columns`;
- `Explicit`: the entries themselves, where they are fewer;
- `Pulled`: rows on arrays M(theta) that are no entries of the parameters (a normalised weight), times dM/dtheta.
"""

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ._taps import Hoist
from ._views import View, assemble

# Reducing one entry of a T x T tile costs as much as this many multiply-adds of a matrix product (measured, CPU).
REDUCTION = 24.0
# Explicit rows are faster in products with a vector while they hold at most this many times the numbers of the factors:
# they take one pass through memory, the factors `T` small matrix products (measured, CPU).
PASS = 5.5


class Contribution(eqx.Module):
    """`N` rows on the entries `view`."""

    view: eqx.AbstractVar[View]

    @property
    @abc.abstractmethod
    def count(self) -> int: ...

    @abc.abstractmethod
    def mv(self, flat: Float[Array, " P"]) -> Float[Array, " N"]: ...

    @abc.abstractmethod
    def rmv(self, w: Float[Array, " N"]) -> Array:
        """The product with the transpose, shaped like the view."""

    @abc.abstractmethod
    def explicit(self) -> Float[Array, "N size"]:
        """The rows themselves, on the entries of the view only."""

    @abc.abstractmethod
    def map_rows(self, f: Callable[[Array], Any]) -> "Contribution":
        """Apply `f`, which selects rows, to every array that has them on its leading axis."""

    @abc.abstractmethod
    def row_squares(self) -> Float[Array, " N"]:
        """The squared norm of every row."""

    def column_squares(self) -> Float[Array, " size"]:
        """The squared norm of every column."""
        return jnp.sum(self.explicit() ** 2, axis=0)

    @abc.abstractmethod
    def scaled(self, weights: Float[Array, " N"]) -> "Contribution":
        """The rows times one number each."""


class Factored(Contribution):
    """`scale[n] sum_k sum_t lefts[k][n, t] rights[k][n, t]^T` on a matrix of parameters."""

    view: View = eqx.field(static=True)
    lefts: tuple[Float[Array, "N _ rows"], ...]
    rights: tuple[Float[Array, "N _ columns"], ...]
    scale: Float[Array, " N"]  # apart, since scaling the factors would be one more pass over them

    @property
    def count(self) -> int:
        return self.scale.shape[0]

    @property
    def terms(self) -> int:
        """T, the number of outer products a row."""
        return sum(left.shape[1] for left in self.lefts)

    def mv(self, flat):
        matrix = self.view.read(flat)
        products = [jnp.sum((right @ matrix.T) * left, axis=(1, 2)) for left, right in self._pairs()]
        return self.scale * _sum(products)

    def rmv(self, w):
        def flatten(a):
            return a.reshape(-1, a.shape[-1])

        w = (w * self.scale)[:, None, None]
        slim = self.view.shape[0] <= self.view.shape[1]
        pairs = [(left * w, right) if slim else (left, right * w) for left, right in self._pairs()]
        return _sum([flatten(left).T @ flatten(right) for left, right in pairs])

    def explicit(self):
        # Elementwise: a batched product of small matrices is slower on CPU, and so are rows with the points last.
        terms = [
            left[:, t, :, None] * right[:, t, None, :] for left, right in self._pairs() for t in range(left.shape[1])
        ]
        return (self.scale[:, None, None] * _sum(terms)).reshape(self.count, self.view.size)

    def map_rows(self, f):
        lefts, rights = tuple(f(a) for a in self.lefts), tuple(f(a) for a in self.rights)
        return Factored(self.view, lefts, rights, f(self.scale))

    def scaled(self, weights):
        return Factored(self.view, self.lefts, self.rights, self.scale * weights)

    def rescaled(self, rows: Array, columns: Array) -> "Factored":
        """The matrix entries times `rows[i] columns[j]`."""
        lefts = tuple(a * rows[None, None, :] for a in self.lefts)
        return Factored(self.view, lefts, tuple(a * columns[None, None, :] for a in self.rights), self.scale)

    def stacked(self) -> tuple[Float[Array, "N T rows"], Float[Array, "N T columns"]]:
        return jnp.concatenate(self.lefts, axis=1), jnp.concatenate(self.rights, axis=1)

    def row_squares(self) -> Float[Array, " N"]:
        left, right = self.stacked()
        entries = jnp.einsum("nti,nsi->nts", left, left) * jnp.einsum("nti,nsi->nts", right, right)
        return self.scale**2 * jnp.maximum(jnp.sum(entries, axis=(1, 2)), 0)  # the terms may cancel

    def column_squares(self) -> Float[Array, " size"]:
        """`sum_n scale_n^2 (sum_t l_t r_t^T)^2` expanded to `sum_ts`: matrix products, and no row is formed."""
        left, right = self.stacked()
        left = left * self.scale[:, None, None]
        terms = [
            (left[:, t] * left[:, s]).T @ (right[:, t] * right[:, s]) * (1 if t == s else 2)
            for t in range(self.terms)
            for s in range(t + 1)
        ]
        return jnp.maximum(_sum(terms), 0).reshape(-1)

    def _pairs(self):
        return zip(self.lefts, self.rights, strict=True)


class Explicit(Contribution):
    """The rows themselves."""

    view: View = eqx.field(static=True)  # of one axis
    values: Float[Array, "N size"]

    @property
    def count(self) -> int:
        return self.values.shape[0]

    def mv(self, flat):
        return self.values @ self.view.read(flat)

    def rmv(self, w):
        return w @ self.values

    def explicit(self):
        return self.values

    def map_rows(self, f):
        return Explicit(self.view, f(self.values))

    def scaled(self, weights):
        return Explicit(self.view, self.values * weights[:, None])

    def row_squares(self) -> Float[Array, " N"]:
        return jnp.sum(self.values**2, axis=1)


class Pulled(Contribution):
    """Rows on arrays `M_k(theta)`, pulled back: `J = J_M dM/dtheta`."""

    view: View = eqx.field(static=True)  # the entries that the arrays depend on
    arrays: Hoist = eqx.field(static=True)
    structure: tuple = eqx.field(static=True)  # shapes and dtypes of the parameter leaves
    rows: tuple[Contribution, ...]  # on the raveled and concatenated arrays
    flat: Float[Array, " P"]  # the parameters
    constants: list[Array]

    @property
    def count(self) -> int:
        return self.rows[0].count

    def mv(self, flat):
        _, tangent = jax.jvp(self._arrays, (self.flat,), (flat,))
        return _sum([rows.mv(tangent) for rows in self.rows])

    def rmv(self, w):
        parts = [(rows.view, rows.rmv(w).reshape(-1)) for rows in self.rows]
        return self.view.read(self._pull(assemble(parts, self._size)))

    def explicit(self):
        cotangents = assemble([(rows.view, rows.explicit()) for rows in self.rows], self._size)
        return self.view.read(jax.vmap(self._pull)(cotangents))

    def map_rows(self, f):
        return eqx.tree_at(lambda p: p.rows, self, tuple(rows.map_rows(f) for rows in self.rows))

    def scaled(self, weights):
        return eqx.tree_at(lambda p: p.rows, self, tuple(rows.scaled(weights) for rows in self.rows))

    def row_squares(self) -> Float[Array, " N"]:
        return jnp.sum(self.explicit() ** 2, axis=1)

    @property
    def _size(self) -> int:
        return sum(math.prod(shape) for shape in self.arrays.shapes)

    def _arrays(self, flat):
        leaves, start = [], 0
        for shape, dtype in self.structure:
            stop = start + math.prod(shape)
            leaves.append(flat[start:stop].reshape(shape).astype(dtype))
            start = stop
        return jnp.concatenate([a.astype(flat.dtype).reshape(-1) for a in self.arrays(leaves, self.constants)])

    def _pull(self, cotangent):
        return jax.vjp(self._arrays, self.flat)[1](cotangent)[0]


class Rows(eqx.Module):
    """A group of `N` rows of a Jacobian with `P` columns, on the flat vector of the parameters."""

    size: eqx.AbstractVar[int]
    dtype: eqx.AbstractVar[np.dtype]

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """`N`."""

    @abc.abstractmethod
    def mv(self, flat: Float[Array, " P"]) -> Float[Array, " N"]: ...

    @abc.abstractmethod
    def rmv(self, w: Float[Array, " N"]) -> Float[Array, " P"]: ...

    @abc.abstractmethod
    def take(self, indices: Int[Array, " k"]) -> "PointRows":
        """Some of the rows; indices are not checked."""

    @abc.abstractmethod
    def row_squares(self) -> Float[Array, " N"]:
        """The squared norm of every row."""

    @property
    @abc.abstractmethod
    def product_flops(self) -> float:
        """Flops of `J v` and `J^T w` together."""

    @property
    @abc.abstractmethod
    def rows_flops(self) -> float:
        """Flops of forming explicit rows."""

    @property
    def gram_flops(self) -> float:
        return float(self.count) * self.size**2

    @property
    def kernel_flops(self) -> float:
        row = jax.eval_shape(lambda: self.slice(0, 1))
        return product_flops(row, row) * self.count**2 / 2

    def own_gram(self, weights: Float[Array, " N"] | None, memory: int) -> Float[Array, "P P"] | None:
        """`J^T diag(weights) J` where the group knows better than by its rows."""
        del weights, memory
        return None

    def own_kernel(self, scale: Any, memory: int) -> Float[Array, "N N"] | None:
        """`J S J^T` where the group knows better than by tiles of its rows; `scale` takes and returns `PointRows`."""
        del scale, memory
        return None

    def explicit(self) -> Float[Array, "N P"]:
        return self.take(jnp.arange(self.count)).explicit()

    def slice(self, start: Int[Array, ""] | int, size: int) -> "PointRows":
        """`size` rows from `start` on; zero behind the last one."""
        indices = start + jnp.arange(size)
        inside = (indices < self.count).astype(self.dtype)
        return self.take(jnp.minimum(indices, self.count - 1)).scaled(inside)

    def pad(self, count: int) -> "Rows":
        """The same, ready for slices of `count` rows in all."""
        del count
        return self

    def for_products(self) -> "Rows":
        """The same, in the form that suits many products with vectors."""
        return self


class PointRows(Rows):
    """Rows as a sum of contributions, at least one."""

    parts: tuple[Contribution, ...]
    size: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    @property
    def count(self) -> int:
        return self.parts[0].count

    def mv(self, flat: Float[Array, " P"]) -> Float[Array, " N"]:
        return _sum([part.mv(flat) for part in self.parts])

    def rmv(self, w: Float[Array, " N"]) -> Float[Array, " P"]:
        return assemble([(part.view, part.rmv(w).reshape(-1)) for part in self.parts], self.size)

    def explicit(self) -> Float[Array, "N P"]:
        return assemble([(part.view, part.explicit()) for part in self.parts], self.size)

    def slice(self, start: Int[Array, ""] | int, size: int) -> "PointRows":
        return self.map_rows(lambda a: lax.dynamic_slice_in_dim(a, start, size))

    def take(self, indices: Int[Array, " k"]) -> "PointRows":
        return self.map_rows(lambda a: jnp.take(a, indices, axis=0))

    def pad(self, count: int) -> "PointRows":
        def extend(a):
            return jnp.pad(a, [(0, count - self.count), *[(0, 0)] * (a.ndim - 1)])

        return self if count == self.count else self.map_rows(extend)

    def scaled(self, weights: Float[Array, " N"]) -> "PointRows":
        return PointRows(parts=tuple(part.scaled(weights) for part in self.parts), size=self.size, dtype=self.dtype)

    def map_rows(self, f: Callable[[Array], Any]) -> "PointRows":
        """Apply `f` to every array that has the rows on its leading axis."""
        return PointRows(parts=tuple(part.map_rows(f) for part in self.parts), size=self.size, dtype=self.dtype)

    def for_products(self) -> "PointRows":
        def fast(part):
            small = isinstance(part, Factored) and part.view.size <= PASS * part.terms * sum(part.view.shape)
            return Explicit(View(part.view.indices.reshape(-1)), part.explicit()) if small else part

        return PointRows(parts=tuple(join([fast(p) for p in self.parts])), size=self.size, dtype=self.dtype)

    @property
    def terms(self) -> int:
        return max([part.terms for part in self.parts if isinstance(part, Factored)], default=1)

    @property
    def explicit_size(self) -> int:
        return sum(part.view.size for part in self.parts if not isinstance(part, Factored))

    @property
    def product_flops(self) -> float:
        return 4.0 * self.count * sum(p.view.size * (p.terms if isinstance(p, Factored) else 1) for p in self.parts)

    @property
    def rows_flops(self) -> float:
        return 2.0 * self.count * sum(p.view.size * p.terms for p in self.parts if isinstance(p, Factored))

    @property
    def disjoint(self) -> bool:
        """Whether no entry belongs to two contributions."""
        return not any(a.view.overlaps(b.view) for i, a in enumerate(self.parts) for b in self.parts[:i])

    def row_squares(self) -> Float[Array, " N"]:
        if self.disjoint:
            return _sum([part.row_squares() for part in self.parts])
        return jnp.sum(self.explicit() ** 2, axis=1)

    @property
    def separable(self) -> bool:
        """Whether `column_squares` is right, and forms no rows."""
        return self.disjoint and not any(isinstance(part, Pulled) for part in self.parts)

    def column_squares(self) -> Float[Array, " P"]:
        return assemble([(part.view, part.column_squares()) for part in self.parts], self.size)


def product(a: PointRows, b: PointRows) -> Float[Array, "Na Nb"]:
    """`J_a J_b^T`, contribution by contribution, each in the cheaper of its forms."""
    terms = []
    for x in a.parts:
        for y in b.parts:
            if (pair := _factored(x, y)) is not None:
                terms.append(_factor_product(*pair))
            elif x.view == y.view:
                terms.append(x.explicit() @ y.explicit().T)
            elif x.view.overlaps(y.view):
                start, stop = min(x.view.start, y.view.start), max(x.view.stop, y.view.stop)
                left, right = (assemble([(p.view, p.explicit())], a.size)[:, start:stop] for p in (x, y))
                terms.append(left @ right.T)
    return _sum(terms) if terms else jnp.zeros((a.count, b.count), a.dtype)


def _factored(x: Contribution, y: Contribution) -> tuple[Factored, Factored] | None:
    """Both, if `sum_ts (l_t . l_s)(r_t . r_s)` costs less than the product of explicit rows.

    Flops a pair of points: `2 T_x T_y (rows + columns)` and the reduction, against `2 rows columns`.
    """
    if not (isinstance(x, Factored) and isinstance(y, Factored) and x.view == y.view):
        return None
    rows, columns = x.view.shape
    return (x, y) if x.terms * y.terms * (rows + columns + REDUCTION) < rows * columns else None


def product_flops(a: PointRows, b: PointRows) -> float:
    """What `product` costs a pair of points."""
    total = 0.0
    for x in a.parts:
        for y in b.parts:
            if (pair := _factored(x, y)) is not None:
                total += 2 * pair[0].terms * pair[1].terms * (sum(x.view.shape) + REDUCTION)
            elif x.view.overlaps(y.view):
                total += 2.0 * x.view.size
    return total


def expand(a: PointRows, b: PointRows, budget: int) -> PointRows:
    """`a` with explicit rows, joined, where its product with `b` forms them anyway and they fit into the budget."""
    parts = []
    for x in a.parts:
        pays = any(_factored(x, y) is not None for y in b.parts)
        size = a.count * x.view.size * a.dtype.itemsize
        if not pays and not isinstance(x, Explicit) and size <= budget:
            budget -= size
            x = Explicit(View(x.view.indices.reshape(-1)), x.explicit())
        parts.append(x)
    return PointRows(parts=tuple(join(parts)), size=a.size, dtype=a.dtype)


def join(parts: Sequence[Contribution]) -> list[Contribution]:
    """All explicit rows on disjoint entries as one block, in the order of the entries: one matrix product, not many."""
    explicit = sorted((p for p in parts if isinstance(p, Explicit)), key=lambda p: p.view.start)
    rest: list[Contribution] = [p for p in parts if not isinstance(p, Explicit)]
    joined: list[Explicit] = []
    for part in explicit:
        if any(part.view.overlaps(other.view) for other in joined):
            rest.append(part)
        else:
            joined.append(part)
    if len(joined) < 2:
        return [*joined, *rest]
    view = View(np.concatenate([part.view.indices for part in joined]))
    return [Explicit(view, jnp.concatenate([part.values for part in joined], axis=1)), *rest]


def _factor_product(x: Factored, y: Factored) -> Float[Array, "Na Nb"]:
    def gram(a, b):
        return a.reshape(-1, a.shape[-1]) @ b.reshape(-1, b.shape[-1]).T

    (left_x, right_x), (left_y, right_y) = x.stacked(), y.stacked()
    entries = gram(left_x, left_y) * gram(right_x, right_y)
    products = jnp.sum(entries.reshape(x.count, x.terms, y.count, y.terms), axis=(1, 3))
    return x.scale[:, None] * products * y.scale[None, :]


def _sum(terms: Sequence[Array]) -> Array:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
