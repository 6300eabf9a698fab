"""ConFIG: conflict-free inverse gradients, also with momentum."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .._check import number, parameters
from .._tree import ravel, tree_dtype, tree_size
from ..objective import BoundObjective, Objective
from ._term_gradients import as_updates, bound_terms, gradient_rows, require_terms, term_names, unit


def conflict_free_gradient() -> optax.GradientTransformationExtraArgs:
    """Conflict-free inverse gradients (ConFIG), for the terms of an objective; first in a chain.

        U = rows g_i / |g_i|,   d = U^+ 1,   u = d / |d|,   g = (sum_i g_i^T u) u       from g_i = grad(w_i L_i)

    The direction has the same positive cosine `1 / |d|` with every gradient as long as they are linearly independent,
    whatever their lengths: weights of the terms change the length of the step only. A zero gradient is no constraint.
    Of dependent gradients (singular values of `U` below rounding) `d` is the least-squares solution of least norm: the
    cosines are as equal as they can be, and some may be negative. Where not even the sum of cosines can be raised, as
    for two opposite gradients, the point is Pareto-stationary and `g` is zero.

    **Returns:** an optax transformation with an ascent direction; its `update` needs a bound objective as `value_fn`,
    and `params`. If any gradient is not finite the update is zero.

    **Errors:** `TypeError` without a bound objective; `ValueError` if `updates` is not the gradient.

    **Cost:** of `K` terms with `P` parameters: one gradient and a QR decomposition, `4 K^2 P` flops; memory `3 K P`.

    Source: Liu, Chu and Thuerey, arXiv:2408.11104.

    **Example:** `optax.chain(so.conflict_free_gradient(), optax.adam(1e-3))`.
    """
    return optax.GradientTransformationExtraArgs(jax.tree_util.Partial(_init), jax.tree_util.Partial(_update))


def _init(params: PyTree) -> optax.EmptyState:
    tree_dtype(parameters(params))
    return optax.EmptyState()


def _update(updates, state, params=None, *, value_fn=None, grad=None, **extra):
    del extra
    rows = gradient_rows(bound_terms(value_fn, updates, params, grad), params)
    return as_updates(_conflict_free(rows), jnp.all(jnp.isfinite(rows)), params), state


def _conflict_free(rows: Float[Array, "K P"]) -> Float[Array, " P"]:
    """`(sum_i g_i^T u) u`: `U^T = Q R`, so that `d = Q c` with `c = (R^T)^+ 1` and `U d = R^T c`."""
    Q, R = jnp.linalg.qr(unit(rows).T)  # never the Gram matrix, whose condition is the square
    rounding = 10 * len(rows) * jnp.finfo(R.dtype).eps
    c = jnp.linalg.pinv(R.T, rtol=rounding) @ jnp.ones(len(rows), R.dtype)
    reached = jnp.linalg.norm(R.T @ c) > rounding  # else 1 is orthogonal to the range of U, and c is rounding
    u = Q @ jnp.where(reached, unit(c), 0)
    return jnp.sum(rows @ u) * u


class MomentumConflictFreeState(NamedTuple):
    steps: Int[Array, ""]
    moments: Float[Array, "K P"]  # m_i, in the order of the names
    moment: Float[Array, " P"]  # M, that of the combined gradient
    second_moment: Float[Array, " P"]


def momentum_conflict_free_gradient(
    terms: Objective | Iterable[str], *, b1: ArrayLike = 0.9, b2: ArrayLike = 0.999, eps: ArrayLike = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """ConFIG with momentum (M-ConFIG): the gradient of one term a step, and a step scaled as by Adam.

        m_i = b1 m_i + (1 - b1) g_i                              for the one term i = t mod K,  from m = 0
        G = ConFIG(m_1 / (1 - b1^n_1), ..., m_K / (1 - b1^n_K))  after n_k gradients of term k, see
                                                                 `conflict_free_gradient`
        M = (1 - b1^t) G,   pseudo gradient (M - b1 M_old) / (1 - b1),   v = b2 v + (1 - b2) (pseudo gradient)^2
        direction = G / (sqrt(v / (1 - b2^t)) + eps)

    In the first `K - 1` steps the terms whose turn has not come are no constraint. With one term it is Adam. Only a
    learning rate follows; another Adam behind it would scale twice.

    **Arguments:**

    - `terms`: the objective, or the names of all its terms.
    - `b1`, `b2`: decay rates in [0, 1) of the moments; `eps`, in units of a gradient.

    **Returns:** an optax transformation with an ascent direction; its `update` needs a bound objective as `value_fn`,
    and `params`; its state has the number of steps and the moments. If the gradient is not finite the update is zero,
    the state stays, and the next step asks the same term again.

    **Errors:** `ValueError` if `terms` are not all the terms, or if `updates` is not the gradient.

    **Cost:** of `K` terms with `P` parameters: the gradient of one term (the largest, at worst), a QR decomposition,
    `4 K^2 P` flops; memory `4 K P`. Within one jitted step the gradient that `updates` brings is not computed; a loop
    that records the loss evaluates all terms for that. Under `vmap` all gradients are: the lanes might differ.

    Source: Liu, Chu and Thuerey, arXiv:2408.11104, algorithm 1; the rule for the first `K - 1` steps is ours.

    **Example:** `optax.chain(so.momentum_conflict_free_gradient(objective), optax.scale_by_learning_rate(1e-3))`.
    """
    names = term_names("terms", terms)
    decay_rates = number("b1", b1, at_least=0, below=1), number("b2", b2, at_least=0, below=1)
    numbers = *decay_rates, number("eps", eps, at_least=0)
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_momentum_init, dict.fromkeys(names)),
        jax.tree_util.Partial(_momentum_update, dict.fromkeys(names), numbers),
    )


def _momentum_init(names, params: PyTree) -> MomentumConflictFreeState:
    dtype, size = tree_dtype(parameters(params)), tree_size(params)
    zeros = jnp.zeros(size, dtype)
    return MomentumConflictFreeState(jnp.int32(0), jnp.zeros((len(names), size), dtype), zeros, zeros)


def _momentum_update(
    names, numbers, updates, state: MomentumConflictFreeState, params=None, *, value_fn=None, grad=None, **extra
):
    del extra
    loss = bound_terms(value_fn, updates, params, grad)
    require_terms("terms", names, loss)
    dtype = state.moments.dtype
    b1, b2, eps = (value.astype(dtype) for value in numbers)
    turn = state.steps % len(names)
    g = _one_gradient(loss, turn, params)
    finite = jnp.all(jnp.isfinite(g))

    moments = state.moments.at[turn].set(b1 * state.moments[turn] + (1 - b1) * g)
    counts = (state.steps - jnp.arange(len(names), dtype=jnp.int32)) // len(names) + 1
    correction = 1 - b1 ** counts.astype(dtype)[:, None]
    G = _conflict_free(moments / jnp.where(correction > 0, correction, 1))

    steps = (state.steps + 1).astype(dtype)
    moment = (1 - b1**steps) * G
    pseudo_gradient = (moment - b1 * state.moment) / (1 - b1)
    second_moment = b2 * state.second_moment + (1 - b2) * pseudo_gradient**2
    direction = G / (jnp.sqrt(second_moment / (1 - b2**steps)) + eps)

    new = MomentumConflictFreeState(state.steps + 1, moments, moment, second_moment)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return as_updates(direction, finite, params), kept


def _one_gradient(loss: BoundObjective, turn: Int[Array, ""], params: PyTree) -> Float[Array, " P"]:
    """The gradient of the term whose turn it is; no other one is computed."""

    def gradient_of(name):
        return lambda params: ravel(loss.gradients(params, (name,))[1][name])

    return lax.switch(turn, [gradient_of(name) for name in loss.terms], params)
