"""Rows of a Jacobian in factored form: what the taps leave of a group of points.

A row is a sum of contributions, each on its own entries of the parameter vector:

- `Factored`: `sum_t left_t right_t^T` on a matrix of parameters, `T (rows + columns)` numbers, not `rows * columns`;
- `Explicit`: the entries themselves, where they are fewer;
- `Pulled`: rows on arrays M(theta) that are no entries of the parameters (a normalised weight), times dM/dtheta.
"""

import abc
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._split import Hoist
from ._views import View, assemble


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
        return self.scale * total(products)

    def rmv(self, w):
        def flatten(a):
            return a.reshape(-1, a.shape[-1])

        w = (w * self.scale)[:, None, None]
        slim = self.view.shape[0] <= self.view.shape[1]
        pairs = [(left * w, right) if slim else (left, right * w) for left, right in self._pairs()]
        return total([flatten(left).T @ flatten(right) for left, right in pairs])

    def explicit(self):
        # Elementwise: a batched product of small matrices is slower on CPU, and so are rows with the points last.
        terms = [
            left[:, t, :, None] * right[:, t, None, :] for left, right in self._pairs() for t in range(left.shape[1])
        ]
        return (self.scale[:, None, None] * total(terms)).reshape(self.count, self.view.size)

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
        return jnp.maximum(total(terms), 0).reshape(-1)

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
        return total([rows.mv(tangent) for rows in self.rows])

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


def total(terms: Sequence[Array]) -> Array:
    """The sum, without a zero to start from."""
    return functools.reduce(operator.add, terms)
