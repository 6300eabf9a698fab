"""Randomized Nystrom approximation of a positive semidefinite matrix, and the preconditioner made of it."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar

from ._cholesky import damped_cholesky

PRODUCTS_AT_ONCE = 64  # test vectors a batch: a structured product needs memory for each


class Nystrom(eqx.Module):
    """`A ~ U diag(lambda) U^T` of low rank `l`.

    **Attributes:** `vectors`, `(n, l)` with orthonormal columns; `eigenvalues`, `(l,)`, non-negative and falling;
    `rung` of the Cholesky ladder of the core matrix.
    """

    vectors: Float[Array, "n l"]
    eigenvalues: Float[Array, " l"]
    rung: Int[Array, ""]

    def preconditioner(self, damping: Scalar) -> Callable[[Float[Array, " n"]], Float[Array, " n"]]:
        """`x -> (lambda_l + mu) U (Lambda + mu)^-1 U^T x + (I - U U^T) x`, for `A + mu I`; positive definite."""
        # below this floor eigenvalues are noise, and the difference in `apply` would not be positive definite
        floor = 10 * jnp.finfo(self.eigenvalues.dtype).eps * self.eigenvalues[0]
        shifted = jnp.maximum(self.eigenvalues + damping, floor)
        positive = shifted > 0
        ratio = jnp.where(positive, shifted[-1] / jnp.where(positive, shifted, 1), 1)  # in (0, 1]

        def apply(x: Float[Array, " n"]) -> Float[Array, " n"]:
            return x - self.vectors @ ((1 - ratio) * (x @ self.vectors))

        return apply


def nystrom(
    matvec: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    size: int,
    rank: int,
    dtype: jnp.dtype,
    *,
    key: PRNGKeyArray | None = None,
) -> Nystrom:
    """Randomized Nystrom approximation from `rank` products with `A`.

        Omega = orth(Gaussian),  Y = A Omega,  nu = sqrt(n) eps |Y|_2,  C = chol(Omega^T (Y + nu Omega)),
        B = (Y + nu Omega) C^-1 = U S V^T,      A ~ U max(S^2 - nu, 0) U^T

    A good preconditioner of `A + mu I` once `rank` exceeds twice the effective dimension `tr A (A + mu I)^-1`: then the
    preconditioned condition number is bounded whatever `mu`.

    **Arguments:**

    - `matvec`: `x -> A x`, for a symmetric positive semidefinite `A` of `size` rows.
    - `rank`: number of test vectors, at most `size`.
    - `key`: of the test matrix; a fixed one otherwise, so that a step is a function of its inputs.

    **Returns:** a `Nystrom`.

    **Cost:** `rank` products, batched, and about `12 n rank^2` flops; memory `3 n rank`.

    Source: Frangella, Tropp and Udell, arXiv:2110.02820, algorithms 2.1 and 5.1.

    **Example:** `nystrom(matvec, n, 100, b.dtype).preconditioner(damping)`
    """
    key = jax.random.key(0) if key is None else key
    rank = min(rank, size)
    omega = jnp.linalg.qr(jax.random.normal(key, (size, rank), dtype))[0]
    Y = lax.map(matvec, omega.T, batch_size=min(rank, PRODUCTS_AT_ONCE)).T
    eps, tiny = jnp.finfo(dtype).eps, jnp.finfo(dtype).tiny
    shift = jnp.maximum(eps * math.sqrt(size) * jnp.sqrt(jnp.sum(Y * Y)), tiny)  # not zero for A = 0
    core = omega.T @ Y
    # Omega has orthonormal columns, so that the shift is a damping of the core and the ladder catches its failure.
    lower, shift, rung = damped_cholesky((core + core.T) / 2, jnp.ones((rank,), dtype), shift)
    B = solve_triangular(lower, (Y + shift * omega).T, lower=True).T
    U, S, _ = jnp.linalg.svd(B, full_matrices=False)
    return Nystrom(U, jnp.maximum(S**2 - shift, 0), rung)


def rayleigh_ritz(
    matvec: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    size: int,
    rank: int,
    dtype: jnp.dtype,
    *,
    key: PRNGKeyArray | None = None,
) -> Nystrom:
    """Randomized approximation of the absolute value of a symmetric matrix, which may be indefinite.

        Q = orth(A Omega),   Q^T A Q = W diag(theta) W^T,      |A| ~ (Q W) diag(|theta|) (Q W)^T

    The single pass of `nystrom` divides by `Omega^T A Omega`. For an indefinite `A` that matrix is nearly singular
    where `A Omega` is not, and the eigenvalues come out as large as `|A| / eps`; a shift of it, as in arXiv:2402.01868,
    leaves them off by factors of 100 (Hessians of a PINN early in training). Ritz values lie in the spectrum of `A`.

    **Arguments:** as in `nystrom`, for a symmetric `A`.

    **Returns:** a `Nystrom`: orthonormal Ritz vectors, `|theta|` falling, rung 0.

    **Cost:** `2 rank` products, twice those of `nystrom`; memory `3 n rank`.

    Source: Halko, Martinsson and Tropp, arXiv:0909.4061, algorithms 4.1 and 5.3.
    """
    key = jax.random.key(0) if key is None else key
    rank = min(rank, size)

    def product(X):
        return lax.map(matvec, X.T, batch_size=min(rank, PRODUCTS_AT_ONCE)).T

    Q = jnp.linalg.qr(product(jax.random.normal(key, (size, rank), dtype)))[0]
    theta, W = jnp.linalg.eigh(Q.T @ product(Q))
    order = jnp.argsort(-jnp.abs(theta))
    return Nystrom(Q @ W[:, order], jnp.abs(theta)[order], jnp.int32(0))
