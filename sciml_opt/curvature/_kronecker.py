"""Kronecker-factored curvature of a sum of terms, for any differential operator.

The tap gives every row of a Jacobian on a matrix W, with its bias as one more column, exactly as

    row_n = s_n sum_t g_nt z_nt^T,      t = 1 .. T,

whatever derivatives a term takes: the z_nt are what its derivative code multiplies by W (the value, entry 1 for the
bias, and the propagated derivatives, entry 0), the g_nt what comes back. The T products count as T independent uses
of W, which drops the cross terms, and inputs and cotangents as independent:

    sum_n vec(row_n) vec(row_n)^T  ~  L (x) R,     L = sum_n s_n^2 sum_t g_nt g_nt^T,     R = mean_nt z_nt z_nt^T.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, Scalar

from ..linear import damped_cholesky
from ..linearization import StructuredJacobian
from ..linearization._contributions import Contribution, Explicit, Factored
from ..linearization._rows import PointRows
from ..linearization._views import View, leaf_views

Parts = list[list[Contribution]]  # of every term


class KroneckerSum(eqx.Module):
    """`M = L_1 (x) R_1 + L_2 (x) R_2` on matrices, `X -> L_1 X R_1 + L_2 X R_2`, and its exact inverse.

    With `U^T (L_1 / l_1 + L_2 / l_2) U = I` and `U^T (L_1 / l_1) U = diag(a)`, and in the same way `V`, `b` for the
    `l_k R_k`,

        M^-1 X = U [(U^T X V) / (a b^T + (1 - a) (1 - b)^T)] V^T

    elementwise in the bracket; `l_k` is the mean diagonal entry of `L_k`.

    **Arguments:** `lefts`, `rights`: symmetric positive semidefinite, a pair that is zero drops out; `damping`: each
    factor gets `damping` times its mean diagonal entry added to its diagonal.

    **Attributes:** `rung`: of the Cholesky factorisations, see `damped_cholesky`.

    **Cost:** two Cholesky factorisations and two eigendecompositions, about `10 (rows^3 + columns^3)` flops; an
    application `4 rows columns (rows + columns)`.

    Source: arXiv:2405.15603, whose congruence with one of the pairs is here one with their sum: it takes a pair that
    is zero.
    """

    lefts: Float[Array, "2 rows rows"]
    rights: Float[Array, "2 columns columns"]
    rung: Int[Array, ""]
    _left: Float[Array, "rows rows"]
    _right: Float[Array, "columns columns"]
    _inverse: Float[Array, "rows columns"]

    def __init__(
        self, lefts: Float[Array, "2 rows rows"], rights: Float[Array, "2 columns columns"], damping: Scalar | float = 0
    ):
        self.lefts, self.rights = _damped(lefts, damping), _damped(rights, damping)
        # A pair that is zero becomes I (x) 0, and if both are, so is the inverse.
        sizes = _sizes(self.lefts)
        units = jnp.where(sizes > 0, self.lefts / jnp.where(sizes > 0, sizes, 1), _identity(self.lefts))
        scaled = self.rights * sizes
        size = jnp.sum(_sizes(scaled))
        scaled = jnp.where(size > 0, scaled / jnp.where(size > 0, size, 1), _identity(self.rights))
        self._left, a, rung_left = _congruence(units)
        self._right, b, rung_right = _congruence(scaled)
        eigenvalues = a[:, None] * b[None, :] + (1 - a)[:, None] * (1 - b)[None, :]
        floor = jnp.finfo(eigenvalues.dtype).eps
        self._inverse = jnp.where(size > 0, 1 / (size * jnp.maximum(eigenvalues, floor)), 0)
        self.rung = jnp.maximum(rung_left, rung_right)

    def mv(self, matrix: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
        return jnp.sum(self.lefts @ matrix[None] @ self.rights, axis=0)

    def solve(self, matrix: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
        return self._left @ (self._inverse * (self._left.T @ matrix @ self._right)) @ self._right.T


def _sizes(factors: Float[Array, "2 n n"]) -> Float[Array, "2 1 1"]:
    """The mean diagonal entry of both."""
    return jnp.mean(jnp.diagonal(factors, axis1=1, axis2=2), axis=1)[:, None, None]


def _identity(factors: Float[Array, "2 n n"]) -> Float[Array, "1 n n"]:
    return jnp.eye(factors.shape[1], dtype=factors.dtype)[None]


def _damped(factors: Float[Array, "2 n n"], damping: Scalar | float) -> Float[Array, "2 n n"]:
    return factors + jnp.asarray(damping, factors.dtype) * _sizes(factors) * _identity(factors)


def _congruence(pair: Float[Array, "2 n n"]) -> tuple[Float[Array, "n n"], Float[Array, " n"], Int[Array, ""]]:
    """`U, a` with `U^T (P_1 + P_2) U = I` and `U^T P_1 U = diag(a)`."""
    n, dtype = pair.shape[1], pair.dtype
    lower, _, rung = damped_cholesky(pair[0] + pair[1], jnp.ones(n, dtype), jnp.zeros((), dtype))
    half = solve_triangular(lower, pair[0], lower=True)
    a, vectors = jnp.linalg.eigh(solve_triangular(lower, half.T, lower=True))
    return solve_triangular(lower, vectors, lower=True, trans=1), jnp.clip(a, 0, 1), rung


class KroneckerLayer(eqx.Module):
    """The block of one matrix of the parameters, bias included: `sum_k L_k (x) R_k` over the terms of the objective.

    **Attributes:** `leaf`: which leaf of the parameters the matrix is; `view`: the entries of `[W, b]` (or of `W` above
    `b^T`, where products are written `z^T W`); `lefts`, `rights`: `L_k` on its rows and `R_k` on its columns, zero for
    a term that does not read the matrix.
    """

    leaf: int = eqx.field(static=True)
    view: View = eqx.field(static=True)
    lefts: Float[Array, "K rows rows"]
    rights: Float[Array, "K columns columns"]

    def paired(self, first: Sequence[bool]) -> tuple[Float[Array, "2 rows rows"], Float[Array, "2 columns columns"]]:
        """Two pairs for all the terms, `first` and the others: `L = sum_k L_k`, `R = sum_k tr(L_k) R_k / tr(L)`.

        This keeps the trace of the sum of each group, and a single term as it is.
        """
        choice = jnp.asarray([first, [not one for one in first]], self.lefts.dtype)
        shares = choice * jnp.trace(self.lefts, axis1=1, axis2=2)[None, :]
        traces = jnp.sum(shares, axis=1, keepdims=True)
        shares = shares / jnp.where(traces > 0, traces, 1)
        return jnp.einsum("pk,kij->pij", choice, self.lefts), jnp.einsum("pk,kij->pij", shares, self.rights)


class KroneckerFactors(eqx.Module):
    """What `kronecker_factors` returns.

    **Attributes:**

    - `layers`: the blocks that are factored.
    - `rest`: the entries of the parameter vector in none of them; `diagonal`: their entries of `diag(J^T J)`, exactly,
      in a vector of all `P` that is zero elsewhere.
    - `orders`: for each term the largest number of outer products T: 1 for a term without derivatives.
    """

    layers: tuple[KroneckerLayer, ...]
    rest: View = eqx.field(static=True)
    diagonal: Float[Array, " P"]
    orders: tuple[int, ...] = eqx.field(static=True)

    @property
    def first(self) -> tuple[bool, ...]:
        """Which terms make the first of two pairs.

        Of two terms one each. Of more, those with the most derivatives (the equation) against the others (conditions
        and data), which read the network in the same way; if they all do, the first one against the others.
        """
        alone = len(self.orders) <= 2 or len(set(self.orders)) == 1
        return tuple(k == 0 if alone else order == max(self.orders) for k, order in enumerate(self.orders))


def kronecker_factors(jacobian: StructuredJacobian) -> KroneckerFactors:
    """The Kronecker-factored approximation of the diagonal blocks of `J^T J`, matrix by matrix and term by term.

        block of [W, b]  ~  sum_k L_k (x) R_k
        L_k = sum_n s_n^2 sum_t g_nt g_nt^T,      R_k = sum_n s_n^2 sum_t z_nt z_nt^T / (T sum_n s_n^2)

    over the rows `s_n sum_t g_nt z_nt^T` of term k, `s_n^2` being the whole weight of the point in the loss. A vector
    output counts as so many rows a point. The T products are those of the linearization: what a term does not see
    (derivatives that a linear last layer drops, the Laplacian of the coordinates) is not among them.

    A matrix is factored if it is a two-dimensional leaf and every term uses it in products only. Its bias comes with it
    where each term adds it to products with the matrix. All other parameters get the diagonal.

    **Arguments:** `jacobian`: of `loss.linearize(params, layers=True)`; of a plain linearization, small matrices, which
    are multiplied out there, and all biases get the diagonal.

    **Returns:** `KroneckerFactors`.

    **Cost:** `2 N T (rows^2 + columns^2)` flops a matrix. The rows of a term on a product grid are formed, one a pair,
    in factored form; those of a term with more than 64 outputs explicitly (and nothing of it is factored).

    Source: arXiv:2405.15603 (for the Laplacian); Eschenhagen et al., arXiv:2311.00636 (KFAC-expand).
    """
    groups = [rows if isinstance(rows, PointRows) else rows.take(jnp.arange(rows.count)) for rows in jacobian.rows]
    size, dtype = groups[0].size, groups[0].dtype
    rest: Parts = [list(group.parts) for group in groups]  # what no layer has taken yet
    layers: list[KroneckerLayer] = []
    for leaf, matrix in enumerate(leaf_views([leaf.shape for leaf in jax.tree.leaves(jacobian.in_structure())])):
        uses = _uses(rest, matrix) if matrix.ndim == 2 else None
        if uses is not None:
            rest, parts, view = uses
            nothing = tuple(jnp.zeros((n, n), dtype) for n in view.shape)
            lefts, rights = zip(*[nothing if part is None else _factors(part) for part in parts], strict=True)
            layers.append(KroneckerLayer(leaf, view, jnp.stack(lefts), jnp.stack(rights)))
    taken = np.zeros(size, bool)
    for layer in layers:
        taken[layer.view.indices] = True
    diagonal = jnp.zeros(size, dtype)
    for group in [PointRows(parts=tuple(parts), size=size, dtype=dtype) for parts in rest if parts]:
        diagonal += group.column_squares() if group.separable else jnp.sum(group.explicit() ** 2, axis=0)
    orders = tuple(group.terms for group in groups)
    return KroneckerFactors(tuple(layers), View(np.flatnonzero(~taken)), diagonal, orders)


def _factors(part: Factored) -> tuple[Float[Array, "rows rows"], Float[Array, "columns columns"]]:
    left, right = (a * part.scale[:, None, None] for a in part.stacked())
    left, right = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
    weight = part.terms * jnp.sum(part.scale**2)
    return left.T @ left, right.T @ right / jnp.where(weight > 0, weight, 1)


def _uses(parts: Parts, matrix: np.ndarray) -> tuple[Parts, list[Factored | None], View] | None:
    """What is left of the terms without a matrix, how each uses it, all on one view; `None` if it is not factored."""
    rest: Parts = []
    found: list[Factored | None] = []
    for group in parts:
        touching = [part for part in group if part.view.overlaps(View(matrix))]
        own = [_on_matrix(part, matrix) for part in touching]
        if len(own) > 1 or None in own:
            return None
        found.append(own[0] if own else None)
        rest.append([part for part in group if part not in touching])
    views = {part.view for part in found if part is not None}
    if not views:
        return None
    biased = [view for view in views if view.size > matrix.size]
    if len(biased) == 1 and not any(part.view.overlaps(biased[0]) for group in rest for part in group):
        return rest, [None if part is None else _with_bias(part, biased[0]) for part in found], biased[0]
    for group, part in zip(rest, found, strict=True):
        group.extend([] if part is None else _bias(part, matrix))
    return rest, [None if part is None else _without_bias(part, matrix) for part in found], View(matrix)


def _on_matrix(part: Contribution, matrix: np.ndarray) -> Factored | None:
    """The factored rows, upright, if they are rows on the matrix and possibly its bias."""
    if not isinstance(part, Factored):
        return None
    rows, columns = matrix.shape
    for upright in (part, Factored(part.view.T, part.rights, part.lefts, part.scale)):
        if np.array_equal(upright.view.indices[:rows, :columns], matrix):
            return upright
    return None


def _with_bias(part: Factored, view: View) -> Factored:
    """The same with a bias that these rows do not see."""
    more = [n - m for n, m in zip(view.shape, part.view.shape, strict=True)]
    lefts, rights = (
        tuple(jnp.pad(a, ((0, 0), (0, 0), (0, n))) for a in side)
        for side, n in zip((part.lefts, part.rights), more, strict=True)
    )
    return Factored(view, lefts, rights, part.scale)


def _without_bias(part: Factored, matrix: np.ndarray) -> Factored:
    rows, columns = matrix.shape
    lefts, rights = tuple(a[..., :rows] for a in part.lefts), tuple(a[..., :columns] for a in part.rights)
    return Factored(View(matrix), lefts, rights, part.scale)


def _bias(part: Factored, matrix: np.ndarray) -> list[Contribution]:
    """The rows on the bias alone, if there is one."""
    entries = part.view.indices.reshape(-1)
    apart = np.flatnonzero(~np.isin(entries, matrix))
    return [Explicit(View(entries[apart]), part.explicit()[:, apart])] if apart.size else []
