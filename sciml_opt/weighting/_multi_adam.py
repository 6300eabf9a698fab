"""MultiAdam: the moments of Adam for every group of terms apart."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .._check import number, parameters, schedule
from .._tree import tree_dtype, tree_scale, tree_size, tree_where
from ..objective import Objective
from ._term_gradients import as_updates, bound_terms, gradient_rows, require_terms


class MultiAdamState(NamedTuple):
    steps: Int[Array, ""]
    first_moments: Float[Array, "n P"]
    second_moments: Float[Array, "n P"]


def scale_by_multi_adam(
    groups: Objective | Sequence[str | Iterable[str]],
    *,
    b1: ArrayLike = 0.99,
    b2: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """The ascent direction of `multi_adam`, to go on with in a chain; arguments, errors and costs as there.

    **Example:** `optax.chain(so.scale_by_multi_adam(objective), optax.scale_by_learning_rate(1e-3))`.
    """
    if isinstance(groups, str):
        raise TypeError(f"groups must be the objective or names of terms, in groups, got the string {groups!r}.")
    listed = groups.terms if isinstance(groups, Objective) else groups
    names = tuple(dict.fromkeys((group,) if isinstance(group, str) else tuple(group)) for group in listed)
    decay_rates = number("b1", b1, at_least=0, below=1), number("b2", b2, at_least=0, below=1)
    numbers = *decay_rates, number("eps", eps, at_least=0)
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init, names), jax.tree_util.Partial(_update, names, numbers)
    )


def multi_adam(
    learning_rate: ArrayLike | Callable[[Array], ArrayLike],
    groups: Objective | Sequence[str | Iterable[str]],
    *,
    b1: ArrayLike = 0.99,
    b2: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Adam with moments of its own for every group of terms, so that the scale of a term does not matter.

        m_i = b1 m_i + (1 - b1) g_i,    v_i = b2 v_i + (1 - b2) g_i^2       g_i: gradient of group i of n
        step = -learning_rate / n  sum_i  (m_i / (1 - b1^t)) / (sqrt(v_i / (1 - b2^t)) + eps)

    With one group it is Adam. Every parameter moves by the learning rate at most, roughly, in each of the groups.

    **Arguments:**

    - `learning_rate`: a number, or a function of the step.
    - `groups`: the objective, every term a group; or the groups, each the name of a term or several names:
      `["interior", ["boundary", "initial"]]`.
    - `b1`, `b2`: decay rates in [0, 1) of the moments, by default those of the authors' code. 0.9 and 0.999 were better
      on 2-D Poisson with a boundary weight of 4e-4: median error 0.12, not 0.20, after 4000 steps.
    - `eps`, in units of a gradient.

    **Returns:** an optax transformation; its `update` needs a bound objective as `value_fn`, and `params`; its state
    has the number of steps and the moments. If any gradient is not finite nothing moves and the state stays.

    **Errors:** `ValueError` if the groups are not made of all the terms, each once, or if `updates` is not the
    gradient.

    **Cost:** of `K` terms in `n` groups with `P` parameters: one gradient; memory `(K + 4 n) P`.

    Source: Yao et al., arXiv:2306.02816.

    **Example:** `so.multi_adam(1e-3, objective)`.
    """
    scale = scale_by_multi_adam(groups, b1=b1, b2=b2, eps=eps)
    rate = schedule("learning_rate", learning_rate, at_least=0)
    return optax.GradientTransformationExtraArgs(scale.init, jax.tree_util.Partial(_step, rate, scale.update))


def _step(rate, update, updates, state: MultiAdamState, params=None, **extra):
    direction, new = update(updates, state, params, **extra)
    return tree_scale(-jnp.asarray(rate(state.steps)), direction), new


def _init(groups, params: PyTree) -> MultiAdamState:
    zeros = jnp.zeros((len(groups), tree_size(params)), tree_dtype(parameters(params)))
    return MultiAdamState(jnp.int32(0), zeros, zeros)


def _update(groups, numbers, updates, state: MultiAdamState, params=None, *, value_fn=None, grad=None, **extra):
    del extra
    loss = bound_terms(value_fn, updates, params, grad)
    require_terms("groups", [name for group in groups for name in group], loss)
    rows = gradient_rows(loss, params)
    finite = jnp.all(jnp.isfinite(rows))
    b1, b2, eps = (value.astype(rows.dtype) for value in numbers)
    g = jnp.stack([sum(rows[loss.terms.index(name)] for name in group) for group in groups])
    m = b1 * state.first_moments + (1 - b1) * g
    v = b2 * state.second_moments + (1 - b2) * g**2
    steps = (state.steps + 1).astype(rows.dtype)
    direction = jnp.mean((m / (1 - b1**steps)) / (jnp.sqrt(v / (1 - b2**steps)) + eps), axis=0)
    return as_updates(direction, finite, params), tree_where(finite, MultiAdamState(state.steps + 1, m, v), state)
