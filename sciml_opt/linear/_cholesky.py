"""Cholesky factorisation of `A + lambda D` that always returns a usable factor."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, Scalar


@jax.custom_jvp
def damped_cholesky(
    matrix: Float[Array, "n n"], diagonal: Float[Array, " n"], damping: Scalar
) -> tuple[Float[Array, "n n"], Scalar, Int[Array, ""]]:
    """Lower `L` with `L L^T = A + lambda D`, climbing a ladder when the factorisation fails.

    Rung 0: Cholesky of `A + lambda D`. Rung 1: the same with the damping raised to
    `max(10 lambda, 10 n eps max_i A_ii / D_ii)`. Rung 2: eigendecomposition of `D^-1/2 A D^-1/2`, its eigenvalues
    clipped at `n eps max`, folded back to a triangular factor by QR.

    **Arguments:**

    - `matrix`: `A`, symmetric positive semidefinite up to rounding; only its lower triangle is read on rung 0.
    - `diagonal`: the positive diagonal of `D`.
    - `damping`: `lambda >= 0`.

    **Returns:** `L`, the damping that was used, the rung. A non-finite `A` gives a NaN factor on rung 0.

    **Cost:** `n^3 / 3` flops; rung 2 about 40 times as much. Under `vmap` the lanes run one after the other, so that
    only the failing ones climb. Differentiable, in both modes: the ladder is taken as fixed.
    """
    return _ladder(matrix, diagonal, damping)


@damped_cholesky.defjvp
def _derivative(primals, tangents) -> Any:
    """`dL = L Phi(L^-1 dM L^-T)`, `M = A + lambda D`, where `Phi` takes the lower triangle and half the diagonal."""
    _, diagonal, _ = primals
    d_matrix, d_diagonal, d_damping = tangents
    lower, used, rung = damped_cholesky(*primals)
    d_sum = 0.5 * (d_matrix + d_matrix.T) + jnp.diag(d_damping * diagonal + used * d_diagonal)
    inner = solve_triangular(lower, solve_triangular(lower, d_sum, lower=True).T, lower=True)
    d_lower = lower @ (jnp.tril(inner) - 0.5 * jnp.diag(jnp.diagonal(inner)))
    return (lower, used, rung), (d_lower, d_damping, np.zeros((), jax.dtypes.float0))


@jax.custom_batching.custom_vmap
def _ladder(matrix: Array, diagonal: Array, damping: Array) -> tuple[Array, Array, Array]:
    n, eps = matrix.shape[0], jnp.finfo(matrix.dtype).eps

    def cholesky(lam):
        return lax.linalg.cholesky(matrix + jnp.diag(lam * diagonal), symmetrize_input=False)

    def usable(lower):
        return jnp.all(jnp.isfinite(jnp.diagonal(lower)))

    def more_damping():
        raised = 10 * jnp.maximum(damping, n * eps * jnp.max(jnp.diagonal(matrix) / diagonal))
        lower = cholesky(raised)
        return lax.cond(usable(lower), lambda: (lower, raised, jnp.int32(1)), by_eigenvalues)

    def by_eigenvalues():
        root = jnp.sqrt(diagonal)
        eigenvalues, vectors = jnp.linalg.eigh(matrix / root[:, None] / root[None, :])
        floor = n * eps * jnp.max(jnp.abs(eigenvalues))
        shifted = jnp.maximum(eigenvalues, floor) + damping
        upper = jnp.linalg.qr(jnp.sqrt(shifted)[:, None] * vectors.T, mode="r")
        return root[:, None] * upper.T, damping, jnp.int32(2)

    lower = cholesky(damping)
    hopeless = ~jnp.all(jnp.isfinite(matrix))
    return lax.cond(usable(lower) | hopeless, lambda: (lower, damping, jnp.int32(0)), more_damping)


@_ladder.def_vmap
def _one_lane_after_the_other(axis_size, batched, matrix, diagonal, damping):
    args = [
        arg if is_batched else jnp.broadcast_to(arg, (axis_size, *arg.shape))
        for arg, is_batched in zip((matrix, diagonal, damping), batched, strict=True)
    ]
    return lax.map(lambda lane: _ladder(*lane), tuple(args)), (True, True, True)
