"""Truncated, preconditioned conjugate gradients with a flag for negative curvature."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Scalar, ScalarLike

# Why not lineax's CG: it has no flag for negative curvature (it would step along such a direction, uphill), reports no
# residual, and takes a preconditioner as an operator in its options only.


class CGResult(NamedTuple):
    """What conjugate gradients found.

    **Fields:** `value`, the iterate; `iterations`, products with `A`; `relative_residual`, `|b - A x| / |b|`, computed
    anew (one more product, which a compiler drops when nobody asks); `converged`; `negative_curvature`, whether a
    direction with `p^T A p <= 0` ended it; `direction`, the last search direction (that one, if flagged).
    """

    value: Float[Array, " n"]
    iterations: Int[Array, ""]
    relative_residual: Scalar
    converged: Bool[Array, ""]
    negative_curvature: Bool[Array, ""]
    direction: Float[Array, " n"]


class _State(NamedTuple):
    x: Array
    r: Array
    p: Array
    rho: Array  # r^T M r
    steps: Array
    negative: Array


def conjugate_gradient(
    matvec: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    b: Float[Array, " n"],
    *,
    preconditioner: Callable[[Float[Array, " n"]], Float[Array, " n"]] | None = None,
    guess: Float[Array, " n"] | None = None,
    rtol: ScalarLike = 1e-6,
    max_steps: int | Int[Array, ""] = 100,
) -> CGResult:
    """Solve `A x = b` for a symmetric positive definite `A`; stop early where `A` turns out not to be.

        alpha = r^T M r / p^T A p,       x += alpha p,       r_new = r - alpha A p
        beta = r_new^T M r_new / r^T M r,                    p = M r_new + beta p

    It stops when `|r| <= rtol |b|`, after `max_steps`, at a non-finite number, or when `p^T A p <= 0`: then the iterate
    before that step is returned, with `direction = p` along which the quadratic model falls without bound (at the first
    step the iterate is the guess, and `p` is the preconditioned `b - A guess`). A preconditioner with `r^T M r <= 0`
    ends it too, not converged.

    **Arguments:**

    - `matvec`: `x -> A x`.
    - `b`: right-hand side, shape `(n,)`.
    - `preconditioner`: `r -> M r` with a symmetric positive definite `M`, near the inverse of `A`.
    - `guess`: where to start; zero otherwise.
    - `rtol`, `max_steps`: may be traced (a forcing term of Newton's method).

    **Returns:** a `CGResult`.

    **Cost:** a product with `A` and with `M` a step, one product more for a guess and for the reported residual.

    Source: Hestenes and Stiefel (1952), doi:10.6028/jres.049.044; truncation: Dembo and Steihaug (1983),
    doi:10.1007/BF02592055.

    **Example:** `conjugate_gradient(lambda v: A @ v, b, preconditioner=nystrom.preconditioner(damping)).value`
    """
    precondition = preconditioner if preconditioner is not None else _itself
    # Squared norms of a small float32 gradient underflow: solve for b / |b|.
    size = positive_norm(b)
    unit = b / size
    start = jnp.zeros_like(b) if guess is None else guess / size
    r = unit if guess is None else unit - matvec(start)
    z = precondition(r)
    tolerance = jnp.asarray(rtol, b.dtype)

    def unfinished(state: _State):
        # written so that a NaN ends it
        return (state.steps < max_steps) & (_norm(state.r) > tolerance) & (state.rho > 0) & ~state.negative

    def body(state: _State) -> _State:
        product = matvec(state.p)
        curvature = jnp.vdot(state.p, product)
        negative = curvature <= 0
        alpha = jnp.where(negative, jnp.zeros_like(curvature), state.rho / curvature)
        x, r = state.x + alpha * state.p, state.r - alpha * product
        z = precondition(r)
        rho = jnp.vdot(r, z)
        p = jnp.where(negative, state.p, z + (rho / state.rho) * state.p)
        return _State(x, r, p, jnp.where(negative, state.rho, rho), state.steps + 1, negative)

    first = _State(start, r, z, jnp.vdot(r, z), jnp.int32(0), jnp.zeros((), bool))
    last = lax.while_loop(unfinished, body, first)
    broken = ~jnp.isfinite(_norm(last.r))  # also where an infinite product made a step of zero
    return CGResult(
        value=jnp.where(broken, jnp.full_like(b, jnp.nan), size * last.x),
        iterations=last.steps,
        relative_residual=_norm(unit - matvec(last.x)),
        converged=_norm(last.r) <= tolerance,
        negative_curvature=last.negative,
        direction=size * last.p,
    )


def positive_norm(b: Array) -> Array:
    """`|b|`, and 1 where `b = 0`, without overflow or underflow of the squares."""
    largest = jnp.max(jnp.abs(b), initial=0)
    largest = jnp.where(largest == 0, jnp.ones_like(largest), largest)
    scaled = _norm(b / largest)
    return jnp.where(scaled == 0, jnp.ones_like(scaled), largest * scaled)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.vdot(x, x))


def _itself(x: Array) -> Array:
    return x
