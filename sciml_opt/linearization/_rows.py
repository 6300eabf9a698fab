"""Groups of rows of a Jacobian, and their products `J_a J_b^T` in the cheaper form, matrix by matrix."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ._contributions import Contribution, Explicit, Factored, Pulled, total
from ._views import View, assemble

# Reducing one entry of a T x T tile costs as much as this many multiply-adds of a matrix product (measured, CPU).
REDUCTION = 24.0
# Explicit rows are faster in products with a vector while they hold at most this many times the numbers of the factors:
# they take one pass through memory, the factors `T` small matrix products (measured, CPU).
PASS = 5.5


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
    def scaled(self, weights: Float[Array, " N"]) -> "Rows":
        """Every row times its weight."""

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
        return total([part.mv(flat) for part in self.parts])

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
            return total([part.row_squares() for part in self.parts])
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
    return total(terms) if terms else jnp.zeros((a.count, b.count), a.dtype)


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
    flops = 0.0
    for x in a.parts:
        for y in b.parts:
            if (pair := _factored(x, y)) is not None:
                flops += 2 * pair[0].terms * pair[1].terms * (sum(x.view.shape) + REDUCTION)
            elif x.view.overlaps(y.view):
                flops += 2.0 * x.view.size
    return flops


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
