"""LSMR with damping: least squares from products with `J` and `J^T` alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Scalar, ScalarLike

from ._cg import positive_norm
from ._minres import KrylovResult

# Why not lineax's LSMR: it has no damping, no warm start, and reports neither the residual nor its quantity that falls.


class _State(NamedTuple):
    x: Array
    h: Array
    h_bar: Array
    u: Array  # bidiagonalisation: beta u, alpha v
    v: Array
    alpha: Array
    alpha_bar: Array
    rho: Array  # the upper bidiagonal R_k, and R_k-bar
    rho_bar: Array
    c_bar: Array
    s_bar: Array
    zeta_bar: Array  # |J^T r - damp^2 x|, signed
    steps: Array


def lsmr(
    matvec: Callable[[Float[Array, " n"]], Float[Array, " m"]],
    rmatvec: Callable[[Float[Array, " m"]], Float[Array, " n"]],
    b: Float[Array, " m"],
    *,
    damp: Scalar | None = None,
    guess: Float[Array, " n"] | None = None,
    rtol: ScalarLike = 1e-6,
    max_steps: int | Int[Array, ""] = 100,
) -> KrylovResult:
    """Minimise `|b - J x|^2 + damp^2 |x|^2` by Golub-Kahan bidiagonalisation of `J`.

    In exact arithmetic it is MINRES on `(J^T J + damp^2 I) x = J^T b`, so that the norm of the gradient
    `J^T (b - J x) - damp^2 x` never grows; but `J^T J` is not applied, and no digits are lost to its condition number.

    **Arguments:**

    - `matvec`, `rmatvec`: `x -> J x` and `w -> J^T w`. A preconditioner is a change of variables in them: with `J R^-1`
      in place of `J` it finds `R x`.
    - `b`: shape `(m,)`.
    - `damp`: the square root of lambda; zero otherwise.
    - `guess`: where to start; zero otherwise. Costs `m` more numbers a vector.
    - `rtol`: of the gradient at the end against the gradient at the start.

    **Returns:** a `KrylovResult`; `relative_residual` is that norm over the one at the start, by the recurrence.

    **Cost:** one product with `J` and with `J^T` a step; six vectors.

    Source: Fong and Saunders, arXiv:1006.0758.

    **Example:** `lsmr(jacobian.mv, jacobian.rmv, -residual, damp=jnp.sqrt(damping)).value`
    """
    damp = jnp.zeros((), b.dtype) if damp is None else damp
    if guess is not None:  # |b - J (x0 + d)|^2 + damp^2 |x0 + d|^2 in the correction d, the damping as rows
        m, lam = b.shape[0], damp
        correction = lsmr(
            lambda d: jnp.concatenate([matvec(d), lam * d]),
            lambda w: rmatvec(w[:m]) + lam * w[m:],
            jnp.concatenate([b - matvec(guess), -lam * guess]),
            rtol=rtol,
            max_steps=max_steps,
        )
        return correction._replace(value=guess + correction.value)

    tolerance = jnp.asarray(rtol, b.dtype)
    zero, one = jnp.zeros((), b.dtype), jnp.ones((), b.dtype)
    size = positive_norm(b)
    u = b / size
    v, alpha = _normalised(rmatvec(u))
    gradient = alpha  # at the start, for b / |b|
    whole = jnp.where(gradient == 0, one, gradient)

    def unfinished(state: _State):
        return (state.steps < max_steps) & (jnp.abs(state.zeta_bar) > tolerance * whole)  # a NaN ends it

    def body(state: _State) -> _State:
        u, beta = _normalised(matvec(state.v) - state.alpha * state.u)
        v, alpha = _normalised(rmatvec(u) - beta * state.v)
        # three rotations: the damping into alpha_bar, then beta (B_k to upper R_k), then R_k^T to upper R_k-bar
        damped = jnp.hypot(state.alpha_bar, damp)
        c, s, rho = _rotation(damped, beta)
        theta, alpha_bar = s * alpha, c * alpha
        theta_bar, rho_lifted = state.s_bar * rho, state.c_bar * rho
        c_bar, s_bar, rho_bar = _rotation(rho_lifted, theta)
        zeta, zeta_bar = c_bar * state.zeta_bar, -s_bar * state.zeta_bar
        h_bar = state.h - (theta_bar * rho / (state.rho * state.rho_bar)) * state.h_bar
        x = state.x + (zeta / (rho * rho_bar)) * h_bar
        h = v - (theta / rho) * state.h
        return _State(x, h, h_bar, u, v, alpha, alpha_bar, rho, rho_bar, c_bar, s_bar, zeta_bar, state.steps + 1)

    # zeta_bar starts at alpha_1 beta_1, and beta_1 = 1 by the scaling of b
    first = _State(
        jnp.zeros_like(v), v, jnp.zeros_like(v), u, v, alpha, alpha, one, one, one, zero, alpha, jnp.int32(0)
    )
    last = lax.while_loop(unfinished, body, first)
    relative = jnp.abs(last.zeta_bar) / whole
    x = jnp.where(jnp.isfinite(relative), size * last.x, jnp.full_like(last.x, jnp.nan))
    return KrylovResult(x, last.steps, relative, relative <= tolerance)


def _normalised(x: Array) -> tuple[Array, Array]:
    norm = jnp.sqrt(jnp.vdot(x, x))
    return x / jnp.where(norm == 0, jnp.ones_like(norm), norm), norm


def _rotation(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """`c, s, r` with `c a + s b = r`; the identity where both are zero."""
    r = jnp.hypot(a, b)
    safe = jnp.where(r == 0, jnp.ones_like(r), r)
    return jnp.where(r == 0, jnp.ones_like(r), a / safe), b / safe, r
