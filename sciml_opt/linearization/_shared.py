"""Rows of many outputs of one point: they differ in the cotangents, and share the inputs."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ._contributions import Contribution, Explicit, Factored, Pulled
from ._rows import PointRows, join
from ._views import View


class Shared(Contribution):
    """`sum_t g[n, k, t] z[n, t]^T` on a matrix of parameters, a row for each of the `m` outputs `k` of each point `n`.

    As `Factored` rows, with the inputs `z` once a point: for `m` outputs the products cost `2 n T rows (columns + m)`
    in place of `2 n m T rows columns`, about what jvp and vjp cost.
    """

    view: View = eqx.field(static=True)
    cotangents: tuple[Float[Array, "n m _ free"], ...]
    inputs: tuple[Float[Array, "n _ contracted"], ...]
    upright: tuple[bool, ...] = eqx.field(static=True)  # whether the cotangent runs along the rows of the matrix

    @property
    def count(self) -> int:
        return self.cotangents[0].shape[0] * self.cotangents[0].shape[1]

    def mv(self, flat):
        matrix = self.view.read(flat)
        total = jnp.zeros((), flat.dtype)
        for g, z, upright in self._pairs():
            y = z @ (matrix.T if upright else matrix)
            total = total + jnp.einsum("nktf,ntf->nk", g, y)
        return total.reshape(-1)

    def rmv(self, w):
        total = jnp.zeros((), w.dtype)
        for g, z, upright in self._pairs():
            n, m, terms, free = g.shape
            h = w.reshape(n, 1, m) @ g.reshape(n, m, terms * free)  # three times faster than as an einsum
            h, z = h.reshape(-1, free), z.reshape(-1, z.shape[-1])
            total = total + (h.T @ z if upright else z.T @ h)
        return total

    def explicit(self):
        return self.spread().explicit()

    def map_rows(self, f):
        return self.spread().map_rows(f)

    def row_squares(self):
        return self.spread().row_squares()

    def scaled(self, weights):
        cotangents = tuple(g * weights.reshape(g.shape[:2])[:, :, None, None] for g in self.cotangents)
        return Shared(self.view, cotangents, self.inputs, self.upright)

    def spread(self) -> Factored:
        """The same with the inputs repeated."""
        m = self.cotangents[0].shape[1]
        return self.combined(lambda g: g.reshape(-1, *g.shape[2:]), lambda z: jnp.repeat(z, m, axis=0))

    def combined(self, contract: Callable[[Array], Array], repeat: Callable[[Array], Array]) -> Factored:
        lefts, rights = [], []
        for g, z, upright in self._pairs():
            g, z = contract(g), repeat(z)
            lefts.append(g if upright else z)
            rights.append(z if upright else g)
        return Factored(self.view, tuple(lefts), tuple(rights), jnp.ones(lefts[0].shape[:1], lefts[0].dtype))

    @property
    def product_flops(self) -> float:
        """Flops of `J v` and `J^T w` together."""
        return 4.0 * sum(g.size + z.size * g.shape[-1] for g, z, _ in self._pairs())

    def _pairs(self):
        return zip(self.cotangents, self.inputs, self.upright, strict=True)


class Outputs(eqx.Module):
    """The Jacobian of a map with `m` outputs at `n` points, ready to be combined linearly, point by point.

    **Arguments:** `rows`, of all outputs, point by point, as `point_rows(..., shared=True)` makes them; `m`.
    """

    rows: PointRows
    m: int = eqx.field(static=True)

    @property
    def points(self) -> int:
        return self.rows.count // self.m

    def window(self, start: Int[Array, ""] | int, count: int) -> "Outputs":
        """`count` points from `start` on."""

        def window(part: Contribution) -> Contribution:
            if isinstance(part, Pulled):
                return eqx.tree_at(lambda p: p.rows, part, tuple(window(rows) for rows in part.rows))
            step = 1 if isinstance(part, Shared) else self.m
            return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start * step, count * step), part)

        parts = tuple(window(part) for part in self.rows.parts)
        return Outputs(PointRows(parts=parts, size=self.rows.size, dtype=self.rows.dtype), self.m)

    def mv(self, flat: Float[Array, " P"]) -> Float[Array, "n m"]:
        return self.rows.mv(flat).reshape(-1, self.m)

    def rmv(self, w: Float[Array, "n m"]) -> Float[Array, " P"]:
        return self.rows.rmv(w.reshape(-1))

    def spread(self) -> PointRows:
        """All `n m` rows."""

        def flat(a):  # no `-1`: a side may see no parameter
            return a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])

        return self._combined(flat, lambda a: jnp.repeat(a, self.m, axis=0))

    def take(self, points: Int[Array, " k"], coefficients: Float[Array, "k m"]) -> PointRows:
        """`k` rows, each a combination of the outputs of one point."""

        def contract(a):  # elementwise, which fuses with the gather; the gathered array is m times the result
            return jnp.sum(_unsqueeze(coefficients, a.ndim - 2) * jnp.take(a, points, axis=0), axis=1)

        return self._combined(contract, lambda a: jnp.take(a, points, axis=0))

    def contract(self, coefficients: Float[Array, "i j k m"], axis: int) -> PointRows:
        """Rows `i, j, k` in this order; the point is `i` or `j` by the `axis`."""
        i, j, k, _ = coefficients.shape

        def contract(a):
            tail = a.reshape(a.shape[0], self.m, math.prod(a.shape[2:]))
            rows = jnp.einsum("ijkm,imx->ijkx" if axis == 0 else "ijkm,jmx->ijkx", coefficients, tail)
            return rows.reshape(i * j * k, *a.shape[2:])

        def repeat(a):
            a = a[:, None, None] if axis == 0 else a[None, :, None]
            return jnp.broadcast_to(a, (i, j, k, *a.shape[3:])).reshape(i * j * k, *a.shape[3:])

        return self._combined(contract, repeat)

    @property
    def product_flops(self) -> float:
        def flops(part):
            if isinstance(part, Pulled):
                return sum(flops(rows) for rows in part.rows)
            return part.product_flops if isinstance(part, Shared) else 4.0 * part.count * part.view.size

        return sum(flops(part) for part in self.rows.parts)

    @property
    def entries(self) -> tuple[int, int]:
        """The range of parameters that the map sees."""
        views = [part.view for part in self.rows.parts if part.view.size]
        return min((v.start for v in views), default=0), max((v.stop for v in views), default=0)

    def overlaps(self, other: "Outputs") -> bool:
        return any(a.view.overlaps(b.view) for a in self.rows.parts for b in other.rows.parts)

    def _combined(self, contract, repeat) -> PointRows:
        def combined(part: Contribution) -> Contribution:
            if isinstance(part, Shared):
                return part.combined(contract, repeat)
            if isinstance(part, Pulled):
                return eqx.tree_at(lambda p: p.rows, part, tuple(combined(rows) for rows in part.rows))
            assert isinstance(part, Explicit)
            return Explicit(part.view, contract(part.values.reshape(self.points, self.m, part.view.size)))

        parts = join([combined(part) for part in self.rows.parts])
        return PointRows(parts=tuple(parts), size=self.rows.size, dtype=self.rows.dtype)


def _unsqueeze(a: Array, axes: int) -> Array:
    return a.reshape(*a.shape, *[1] * axes)
