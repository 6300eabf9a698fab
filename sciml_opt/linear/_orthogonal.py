"""QR of the damped Jacobian: the digits that `J^T J` loses."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, PyTree, Scalar

from ._damped_solve import DampedSolve, Solved


class OrthogonalSolve(DampedSolve):
    """QR of `[J~; sqrt(lambda) I]`, or with fewer residuals than parameters of `[J~^T; sqrt(lambda) I]`.

    Its error grows with the condition number of `J` where the residual is small, not with its square: twice the digits
    of the normal equations. The derivation, with `Q` the rows of the orthogonal factor beside `J~` (or `J~^T`):

        tall:  M^-1 J~^T y = R^-1 Q^T y,     M^-1 g = R^-1 R^-T g, and one correction by its residual
        wide:  M^-1 J~^T y = Q R^-T y,       M^-1 g = (g - Q Q^T g) / lambda

    Source: Bjorck (1996), Numerical Methods for Least Squares Problems, sections 2.5 and 2.9,
    doi:10.1137/1.9781611971484.
    """

    _Q: Float[Array, "large small"]
    _R: Float[Array, "small small"]
    _wide: bool = eqx.field(static=True)

    def solve_residual(self, y: Float[Array, " N"]) -> Solved:
        if self._wide:
            t = self._Q @ solve_triangular(self._R, y, trans=1)
        else:
            t = solve_triangular(self._R, y @ self._Q)
        return self._solved(t, self._jacobian.rmv(y))

    def solve_gradient(self, g: PyTree) -> Solved:
        J = self._jacobian
        b = J.from_gradient(g)
        if self._wide:
            return self._solved((b - self._Q @ (b @ self._Q)) / self.damping, b)
        t = self._semi_normal(b)
        # the residual by products with J, whose rounding errors are not those of J^T J
        return self._solved(t + self._semi_normal(b - J.rmv(J.mv(t)) - self.damping * t), b)

    def _semi_normal(self, b: Array) -> Array:
        return solve_triangular(self._R, solve_triangular(self._R, b, trans=1))


@jax.custom_jvp
def orthogonal_factor(
    matrix: Float[Array, "m n"], damping: Scalar
) -> tuple[Float[Array, "m n"], Float[Array, "n n"], Int[Array, ""]]:
    """`Q` and upper `R` with `A = Q R` and `R^T R = A^T A + lambda I`, by QR of `[A; sqrt(lambda) I]`.

    Rung 0: QR. Rung 2, if lambda is lost in the rounding of `A^T A` and the diagonal of `R` shows a rank that rounding
    cannot tell from deficient: SVD of `A`, where `sqrt(sigma^2 + lambda)` below `10 sqrt(m + n) eps max sigma` is left
    out of `Q` and is `max sigma` in `R`, so that `R^-1 Q^T` is the pseudo-inverse.

    **Arguments:** `matrix`, `A`; `damping`, `lambda >= 0`.

    **Returns:** `Q` (the rows beside `A`, not orthonormal by themselves), `R`, the rung. A non-finite `A` gives NaN on
    rung 0.

    **Cost:** `4 (m + n) n^2` flops; rung 2 about three times as much. Under `vmap` the lanes run one after the other,
    so that only the deficient ones pay for the SVD. Differentiable, in both modes, as of full rank.

    **Example:** `Q, R, rung = orthogonal_factor(J, damping); step = solve_triangular(R, y @ Q)`
    """
    return _factor(matrix, damping)


@orthogonal_factor.defjvp
def _derivative(primals, tangents) -> Any:
    """`dR = up(S) R`, `dQ = W - Q up(S)`, with `W = dA R^-1`, `S = Q^T W + W^T Q + dlambda R^-T R^-1`."""
    d_matrix, d_damping = tangents
    Q, R, rung = orthogonal_factor(*primals)
    W = solve_triangular(R, d_matrix.T, trans=1).T
    inverse = solve_triangular(R, jnp.eye(R.shape[0], dtype=R.dtype))
    S = Q.T @ W + W.T @ Q + d_damping * (inverse.T @ inverse)
    upper = jnp.triu(S) - 0.5 * jnp.diag(jnp.diagonal(S))
    return (Q, R, rung), (W - Q @ upper, upper @ R, np.zeros((), jax.dtypes.float0))


@jax.custom_batching.custom_vmap
def _factor(matrix: Array, damping: Array) -> tuple[Array, Array, Array]:
    m, n = matrix.shape
    if m < n:
        raise ValueError(f"orthogonal_factor needs at least as many rows as columns, got shape {(m, n)}.")
    floor = math.sqrt(m + n) * jnp.finfo(matrix.dtype).eps

    def deficient():
        U, S, Vt = jnp.linalg.svd(matrix, full_matrices=False)
        largest = jnp.max(S)
        damped = jnp.sqrt(S**2 + damping)
        seen = damped > 10 * floor * largest
        root = jnp.where(seen, damped, jnp.where(largest > 0, largest, 1))  # large, so that rounding is not amplified
        inner, R = jnp.linalg.qr(root[:, None] * Vt)
        return (U * jnp.where(seen, S / root, 0)[None, :]) @ inner, R, jnp.int32(2)

    stack = jnp.concatenate([matrix, jnp.sqrt(damping) * jnp.eye(n, dtype=matrix.dtype)])
    Q, R = jnp.linalg.qr(stack)
    diagonal = jnp.abs(jnp.diagonal(R))
    level = floor * jnp.max(diagonal)
    poor = (damping <= level**2) & (jnp.min(diagonal) <= 10 * level)  # false for a NaN
    return lax.cond(poor, deficient, lambda: (Q[:m], R, jnp.int32(0)))


@_factor.def_vmap
def _one_lane_after_the_other(axis_size, batched, matrix, damping):
    args = [
        arg if is_batched else jnp.broadcast_to(arg, (axis_size, *arg.shape))
        for arg, is_batched in zip((matrix, damping), batched, strict=True)
    ]
    return lax.map(lambda lane: _factor(*lane), tuple(args)), (True, True, True)
