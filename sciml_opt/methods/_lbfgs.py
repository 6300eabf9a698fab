"""Limited-memory BFGS with a strong Wolfe line search."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._check import count, one_of
from .._tree import ravel, tree_dtype, tree_norm, tree_size, tree_where, unravel
from ..globalization import LineSearch, strong_wolfe_gradient_search
from ._method import AbstractGradientMethod, StepInfo, quotient, search_info, searched_update

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


def powell(
    s: Float[Array, " P"], y: Float[Array, " P"], Bs: Float[Array, " P"], fraction: float = 0.2
) -> Float[Array, " P"]:
    """`phi y + (1 - phi) B s`, with the largest `phi <= 1` for which `s^T y >= fraction s^T B s`.

    Source: Powell (1978), doi:10.1007/BFb0067703; Nocedal and Wright, procedure 18.2.
    """
    sy, sBs = jnp.vdot(s, y), jnp.vdot(s, Bs)
    phi = jnp.where(sy >= fraction * sBs, 1, (1 - fraction) * quotient(sBs, sBs - sy))
    return phi * y + (1 - phi) * Bs


def resolved(
    s: Float[Array, " P"], y: Float[Array, " P"], g: Float[Array, " P"], g_new: Float[Array, " P"]
) -> Bool[Array, ""]:
    """Whether the curvature along `s` is positive, and above the rounding of the gradients: the cautious update."""
    rounding = jnp.finfo(s.dtype).eps * tree_norm(s) * (tree_norm(g) + tree_norm(g_new))
    sy = jnp.vdot(s, y)
    return jnp.isfinite(sy) & (sy > rounding)


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


HOPELESS = 3  # searches in a row, all but the first along the gradient: the point is stationary but for rounding


class LBFGSState(NamedTuple):
    memory: Memory
    failures: Int[Array, ""]  # searches that failed in a row
    lowest: Scalar  # loss so far, as long as it is the same function
    value: Scalar  # and gradient, at the point that the last step led to
    grad: PyTree
    info: StepInfo


class LBFGSMethod(AbstractGradientMethod):
    """Limited-memory BFGS.

            d = -H g,   H from the last m pairs s = theta+ - theta, y = g+ - g, and H_0
            theta+ = theta + eta d,   eta by `strong_wolfe_gradient_search`

        `H_0` is a diagonal by `updated_diagonal`, or `(s^T y / y^T y) I`.
    A pair without positive curvature above rounding is left out, or damped by `powell` with `B s = -eta g`. After a
        failed search the memory is dropped, and the next step is along the gradient. See `sciml_opt.lbfgs`.
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
        return LBFGSState(Memory.empty(self.memory, params), jnp.int32(0), nowhere, nowhere, grad, StepInfo.of(params))

    def advance(
        self, loss: Callable[[PyTree], Scalar], params: PyTree, value: Scalar, grad: PyTree, state: LBFGSState
    ) -> tuple[PyTree, LBFGSState]:
        memory, g = state.memory, ravel(grad)
        d = -two_loop(memory, g) * retry_length(state.failures - 1, g.dtype)
        lowest = jnp.where(value == state.value, state.lowest, value)
        found, new_grad = strong_wolfe_gradient_search(loss, params, unravel(d, params), value, grad, lowest)
        started, moved, report = quasi_newton_info(value, g, d, found)
        s, g_new = jnp.where(moved, found.step_size * d, 0), ravel(new_grad)
        y = g_new - g
        if self.correction == "damped":
            y = powell(s, y, -found.step_size * g)
        memory = remember(memory, s, y, moved & resolved(s, y, g, g_new), self.initial)

        failed = started & ~moved  # the next step is without pairs, and if it fails too, without H_0
        failures = jnp.where(started, jnp.where(failed, state.failures + 1, 0), state.failures)
        memory = memory._replace(
            pairs=jnp.where(failed, 0, memory.pairs), diagonal=jnp.where(failures > 1, 0, memory.diagonal)
        )
        report["step_norm"] = jnp.where(failures > HOPELESS, 0, report["step_norm"])
        new = jnp.minimum(lowest, found.value), found.value, new_grad
        lowest, value, grad = tree_where(started, new, (state.lowest, state.value, state.grad))
        update, info = searched_update(found, unravel(d, params)), StepInfo.of(params, **report)
        return update, LBFGSState(memory, failures, lowest, value, grad, info)


def retry_length(failures: Int[Array, ""], dtype: jnp.dtype) -> Scalar:
    """A factor of the step along the gradient after searches along it have failed: other trials than before."""
    return jnp.asarray(0.3, dtype) ** (jnp.maximum(failures - 1, 0) % 8).astype(dtype)


def quasi_newton_info(
    value: Scalar, g: Float[Array, " P"], d: Float[Array, " P"], found: LineSearch
) -> tuple[Bool[Array, ""], Bool[Array, ""], dict[str, Any]]:
    """Whether the start was finite, whether it moved, and the fields of `StepInfo`; the gain over the linear model."""
    grad_norm, moved = tree_norm(g), found.step_size > 0
    started = jnp.isfinite(value) & jnp.isfinite(grad_norm)
    report = {
        "loss": value,
        "gain_ratio": quotient(value - found.value, -found.step_size * jnp.vdot(g, d)),
        "grad_norm": grad_norm,
        "rung": started & ~moved,
        **search_info(found, d),
    }
    return started, moved, report
