"""Limited-memory BFGS with a strong Wolfe line search."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._check import count, one_of
from .._tree import ravel, tree_dtype, tree_norm, tree_size, tree_where, unravel
from ._method import AbstractGradientMethod, StepInfo, quotient
from ._quasi_newton import DROPPED, Searches, powell, resolved, retry_length, search_along

Correction = Literal["cautious", "damped"]
Initial = Literal["diagonal", "scalar"]


class Memory(NamedTuple):
    """The last pairs `s = theta+ - theta`, `y = g+ - g`, in a ring: pair number k in row k mod m."""

    s: Float[Array, "m P"]
    y: Float[Array, "m P"]
    rho: Float[Array, " m"]  # 1 / s^T y
    pairs: Int[Array, ""]  # since the memory was empty
    diagonal: Float[Array, " P"]  # H_0; zero before the first pair

    @classmethod
    def empty(cls, size: int, params: PyTree) -> "Memory":
        dtype, length = tree_dtype(params), tree_size(params)
        rows = jnp.zeros((size, length), dtype)
        return cls(rows, rows, jnp.zeros(size, dtype), jnp.int32(0), jnp.zeros(length, dtype))


def two_loop(memory: Memory, g: Float[Array, " P"]) -> Float[Array, " P"]:
    """`H g`, the inverse Hessian approximation of the memory times a vector; of length 1 before the first pair.

    **Cost:** `8 m P` flops.

    Source: Nocedal (1980), doi:10.1090/S0025-5718-1980-0572855-7.
    """
    s, y, rho, pairs, diagonal = memory
    size = s.shape[0]
    held = jnp.minimum(pairs, size)

    def newest_to_oldest(k, carry):
        q, alpha = carry
        row = (pairs - 1 - k) % size
        a = rho[row] * jnp.vdot(s[row], q)
        return q - a * y[row], alpha.at[row].set(a)

    def oldest_to_newest(k, r):
        row = (pairs - held + k) % size
        return r + (alpha[row] - rho[row] * jnp.vdot(y[row], r)) * s[row]

    q, alpha = lax.fori_loop(0, held, newest_to_oldest, (g, jnp.zeros_like(rho)))
    r = jnp.where(diagonal > 0, diagonal, quotient(jnp.ones_like(rho[0]), tree_norm(g))) * q
    return lax.fori_loop(0, held, oldest_to_newest, r)


def updated_diagonal(diagonal: Float[Array, " P"], s: Float[Array, " P"], y: Float[Array, " P"]) -> Float[Array, " P"]:
    """The diagonal of the BFGS update of `B = D^-1`, after `D` was enlarged until `y^T D y >= s^T y`.

        D <- max(1, s^T y / y^T D y) D         (before the first pair: (s^T y / y^T y) I)
        1 / D+ = 1 / D + y^2 / s^T y - (s / D)^2 / s^T D^-1 s

    With the quotient itself in place of the maximum (Gilbert and Lemarechal) the loss of PINNs fell less: `D` shrinks
    by each pair along a steep direction, as the first `H` of BFGS does. That it only grows is Al-Baali's rule for BFGS.

    Source: Gilbert and Lemarechal (1989), doi:10.1007/BF01589113; Al-Baali (1998), doi:10.1023/A:1018315205474.
    """
    sy = jnp.vdot(s, y)
    known = diagonal > 0
    d = jnp.where(known, diagonal, 1)
    scale = sy / jnp.vdot(y, d * y)
    d = d * jnp.where(known, jnp.maximum(1, scale), scale)
    new = 1 / (1 / d + y**2 / sy - (s / d) ** 2 / jnp.vdot(s, s / d))
    return jnp.where(jnp.isfinite(new) & (new > 0), new, d)  # rounding may take an entry below zero


def remember(
    memory: Memory, s: Float[Array, " P"], y: Float[Array, " P"], keep: Bool[Array, ""], initial: Initial
) -> Memory:
    """The memory with one more pair, if it is to be kept; the oldest one goes."""
    row = memory.pairs % memory.s.shape[0]
    s, y = jnp.where(keep, s, 1), jnp.where(keep, y, 1)
    sy = jnp.vdot(s, y)
    if initial == "diagonal":
        diagonal = updated_diagonal(memory.diagonal, s, y)
    else:
        diagonal = jnp.full_like(s, sy / jnp.vdot(y, y))
    return Memory(
        s=memory.s.at[row].set(jnp.where(keep, s, memory.s[row])),
        y=memory.y.at[row].set(jnp.where(keep, y, memory.y[row])),
        rho=memory.rho.at[row].set(jnp.where(keep, 1 / sy, memory.rho[row])),
        pairs=memory.pairs + keep.astype(jnp.int32),
        diagonal=jnp.where(keep, diagonal, memory.diagonal),
    )


class LBFGSState(NamedTuple):
    memory: Memory
    searches: Searches
    value: Scalar  # and gradient, at the point that the last step led to
    grad: PyTree
    info: StepInfo


class LBFGSMethod(AbstractGradientMethod):
    """Limited-memory BFGS.

        d = -H g,   H from the last m pairs s = theta+ - theta, y = g+ - g, and H_0
        theta+ = theta + eta d,   eta by `strong_wolfe_gradient_search`

    `H_0` is a diagonal by `updated_diagonal`, or `(s^T y / y^T y) I`. A pair without positive curvature above rounding
    is left out, or damped by `powell` with `B s = -eta g`. After two failed searches the pairs are dropped, after
    another one `H_0`. See `sciml_opt.lbfgs`.
    """

    memory: int = eqx.field(static=True)
    correction: Correction = eqx.field(static=True)
    initial: Initial = eqx.field(static=True)

    def __init__(self, memory: int = 20, *, correction: Correction = "cautious", initial: Initial = "diagonal"):
        self.memory = count("memory", memory)
        self.initial = one_of("initial", initial, get_args(Initial))
        self.correction = one_of("correction", correction, get_args(Correction))

    def init(self, params: PyTree) -> LBFGSState:
        nowhere = jnp.full((), jnp.inf, tree_dtype(params))
        grad = unravel(jnp.zeros(tree_size(params), nowhere.dtype), params)
        searches = Searches.none(nowhere.dtype)
        return LBFGSState(Memory.empty(self.memory, params), searches, nowhere, grad, StepInfo.of(params))

    def advance(
        self, loss: Callable[[PyTree], Scalar], params: PyTree, value: Scalar, grad: PyTree, state: LBFGSState
    ) -> tuple[PyTree, LBFGSState]:
        memory, g = state.memory, ravel(grad)
        d = -two_loop(memory, g) * retry_length(state.searches, DROPPED + 1)
        found = search_along(loss, params, d, value, grad, state.value, state.searches)
        s, g_new = found.s, ravel(found.grad)
        y = g_new - g
        if self.correction == "damped":
            y = powell(s, y, -found.step_size * g)
        memory = remember(memory, s, y, found.moved & resolved(s, y, g, g_new), self.initial)
        memory = memory._replace(
            pairs=jnp.where(found.searches.failures >= DROPPED, 0, memory.pairs),
            diagonal=jnp.where(found.searches.failures > DROPPED, 0, memory.diagonal),
        )
        value, grad = tree_where(found.started, (found.value, found.grad), (state.value, state.grad))
        return found.update, LBFGSState(memory, found.searches, value, grad, found.info)
