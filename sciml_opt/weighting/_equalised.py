"""Equalised loss terms, for any optimizer."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree

from .._check import number, parameters
from .._tree import tree_add, tree_dtype
from ..objective import Objective
from ._term_gradients import bound_terms, require_terms, term_names
from ._weighting import require_squares, weighted_update


class EqualisedState(NamedTuple):
    weights: dict[str, Array]
    inner: Any


def equalised(
    tx: optax.GradientTransformation,
    terms: Objective | Iterable[str],
    *,
    exponent: ArrayLike = 0.05,
    floor: ArrayLike = 1e-4,
) -> optax.GradientTransformationExtraArgs:
    """Weigh the terms of the loss so that none of them dwarfs the others.

        v_m = w_m (mean_k(w_k L_k) / (w_m L_m))^exponent,       w_m = max(v_m / mean(v), floor)

    after every step, from `w = 1`: the optimizer sees `sum_m w_m L_m`, with its gradient. The weights change slowly, so
    that what it carries from step to step (a damping, a radius, moments) stays meaningful. A term that has become much
    smaller than the others counts more; the floor keeps one that no network can lower from being given up.

    **Arguments:**

    - `tx`: any optax transformation; ours and line searches get the weighted loss as `value_fn`.
    - `terms`: the objective, or the names of its terms.
    - `exponent`: how fast the weights follow; `floor`: the least weight, relative to the mean.

    **Errors:** `ValueError` for a term that is not least squares, or if `updates` is not the gradient.

    **Returns:** an optax transformation whose `update` needs a bound objective as `value_fn`; its state has the
    `weights`. `so.info(state)` speaks of the weighted loss.

    **Cost:** one evaluation of the loss a step, and its gradient if `tx` uses it.

    Source: arXiv:2607.02194; the floor is ours.

    **Example:** `so.equalised(so.levenberg_marquardt(), objective)`.
    """
    names = term_names("terms", terms)
    numbers = number("exponent", exponent, at_least=0), number("floor", floor, above=0)
    inner = optax.with_extra_args_support(tx)
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init, inner, dict.fromkeys(names, 0)),
        jax.tree_util.Partial(_update, inner, numbers),
    )


def _init(inner, names, params: PyTree) -> EqualisedState:
    one = jnp.ones((), tree_dtype(parameters(params)))
    return EqualisedState({name: one for name in names}, inner.init(params))


def _update(
    inner, numbers, updates, state: EqualisedState, params=None, *, value_fn=None, value=None, grad=None, **extra
):
    del value
    loss = bound_terms(value_fn, updates, params, grad)
    require_squares("equalised", loss)
    require_terms("terms", state.weights, loss)
    updates, inner_state = weighted_update(inner, loss.reweighted(state.weights), params, state.inner, extra)
    losses = loss.values(tree_add(params, updates))
    return updates, EqualisedState(_new_weights(state.weights, losses, *numbers), inner_state)


def _new_weights(
    weights: dict[str, Array], losses: dict[str, Array], exponent: Array, floor: Array
) -> dict[str, Array]:
    names = list(weights)
    w, values = (jnp.stack([tree[name] for name in names]) for tree in (weights, losses))
    shares = w * values
    mean = jnp.mean(shares)
    usable = jnp.isfinite(mean) & (mean > 0)
    eps = jnp.finfo(w.dtype).eps
    ratio = mean / jnp.where(usable, jnp.maximum(shares, eps * mean), 1)
    v = w * jnp.where(usable, ratio, 1) ** exponent.astype(w.dtype)
    new = jnp.where(usable, jnp.maximum(v / jnp.mean(v), floor.astype(w.dtype)), w)
    return dict(zip(names, new, strict=True))
