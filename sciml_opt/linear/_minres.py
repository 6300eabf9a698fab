"""MINRES: the least residual over the Krylov space of a symmetric matrix, which may be indefinite."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Scalar, ScalarLike

from ._cg import positive_norm


class KrylovResult(NamedTuple):
    """What a Krylov method found.

    **Fields:** `value`, the iterate; `iterations`; `relative_residual`, the quantity that its docstring says is
    minimised, relative to its start from zero; `converged`.
    """

    value: Float[Array, " n"]
    iterations: Int[Array, ""]
    relative_residual: Scalar
    converged: Bool[Array, ""]


class _State(NamedTuple):
    x: Array
    u: Array  # Lanczos vectors u_{k-1}, u_k of A (with M: u = M^-1 z)
    u_old: Array
    z: Array  # M u_k
    d: Array  # directions d_{k-1}, d_{k-2}
    d_old: Array
    beta: Array  # off-diagonal entry T_{k,k-1}
    c: Array  # the last two rotations
    s: Array
    c_old: Array
    s_old: Array
    eta: Array  # the residual norm, signed
    steps: Array


def minres(
    matvec: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    b: Float[Array, " n"],
    *,
    preconditioner: Callable[[Float[Array, " n"]], Float[Array, " n"]] | None = None,
    guess: Float[Array, " n"] | None = None,
    rtol: ScalarLike = 1e-6,
    max_steps: int | Int[Array, ""] = 100,
) -> KrylovResult:
    """Solve `A x = b` for a symmetric `A`, by minimising `|b - A x|_M` over the Krylov space.

        A Z_k = U_{k+1} T_k,   Z_k = M U_k,   x_k = Z_k argmin_y |beta_1 e_1 - T_k y|

    `T_k` is tridiagonal and reduced by one rotation a step. The residual never grows, so that it may be cut anywhere;
    conjugate gradients minimise the error in the norm of `A` instead and need `A` positive definite.

    **Arguments:** as in `conjugate_gradient`; `M` must be positive definite, `A` need not.

    **Returns:** a `KrylovResult`, with `relative_residual = |b - A x|_M / |b|_M`, by the recurrence.

    **Cost:** one product with `A` and with `M` a step; seven vectors.

    Source: Paige and Saunders (1975), doi:10.1137/0712047.

    **Example:** `minres(lambda v: hessian @ v, -gradient, rtol=1e-2).value`
    """
    precondition = preconditioner if preconditioner is not None else lambda x: x
    size = positive_norm(b)
    unit = b / size
    start = jnp.zeros_like(b) if guess is None else guess / size
    r = unit if guess is None else unit - matvec(start)
    z = precondition(r)
    first_norm = jnp.sqrt(jnp.vdot(r, z))
    whole = first_norm if guess is None else jnp.sqrt(jnp.vdot(unit, precondition(unit)))
    whole = jnp.where(whole == 0, jnp.ones_like(whole), whole)
    tolerance = jnp.asarray(rtol, b.dtype) * whole
    zero, one, none = jnp.zeros((), b.dtype), jnp.ones((), b.dtype), jnp.zeros_like(b)

    def unfinished(state: _State):
        invariant = (state.steps > 0) & ~(state.beta > 0)  # the Krylov space is complete
        return (state.steps < max_steps) & (jnp.abs(state.eta) > tolerance) & ~invariant  # a NaN ends it

    def body(state: _State) -> _State:
        product = matvec(state.z)
        alpha = jnp.vdot(state.z, product)
        w = product - alpha * state.u - state.beta * state.u_old
        q = precondition(w)
        beta = jnp.sqrt(jnp.maximum(jnp.vdot(w, q), 0))
        # column k of T: (beta_k, alpha_k, beta_{k+1}), after the rotations of the two steps before
        epsilon, lifted = state.s_old * state.beta, state.c_old * state.beta
        delta = state.c * lifted + state.s * alpha
        rest = state.c * alpha - state.s * lifted
        gamma = jnp.hypot(rest, beta)
        singular = gamma == 0  # and b outside of the range: nothing is gained by this step
        gamma = jnp.where(singular, one, gamma)
        c, s = rest / gamma, jnp.where(singular, one, beta / gamma)
        d = (state.z - delta * state.d - epsilon * state.d_old) / gamma
        divisor = jnp.where(beta == 0, one, beta)  # an invariant subspace: eta becomes 0
        return _State(
            x=state.x + c * state.eta * d,
            u=w / divisor,
            u_old=state.u,
            z=q / divisor,
            d=d,
            d_old=state.d,
            beta=beta,
            c=c,
            s=s,
            c_old=state.c,
            s_old=state.s,
            eta=-s * state.eta,
            steps=state.steps + 1,
        )

    divisor = jnp.where(first_norm == 0, one, first_norm)
    first = _State(
        start, r / divisor, none, z / divisor, none, none, zero, one, zero, one, zero, first_norm, jnp.int32(0)
    )
    last = lax.while_loop(unfinished, body, first)
    residual = jnp.abs(last.eta)
    return KrylovResult(size * last.x, last.steps, residual / whole, residual <= tolerance)
