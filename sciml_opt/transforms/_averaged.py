"""Polyak-Ruppert averaging: the mean of the iterates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._check import number
from .._tree import tree_all_finite, tree_where
from ._estimator import strong


class AveragedState(NamedTuple):
    step: Int[Array, ""]  # those that led to finite parameters
    average: PyTree
    inner: Any


def averaged(tx: optax.GradientTransformation, start: ArrayLike = 0) -> optax.GradientTransformationExtraArgs:
    """Keep the mean of the parameters beside the steps of an optimizer.

        average += (theta - average) / n,      n = 1, 2, ...,  from step `start` on; until then average = theta

    The steps are those of `tx`. The mean of the iterates of stochastic gradients has much less noise than the last of
    them, and allows for larger steps. Parameters that are not finite are left out, and not counted.

    **Arguments:** `tx`, any optax transformation whose updates are final; `start`, how many steps are left out.

    **Returns:** an optax transformation; `so.average(state)` is the mean.

    **Cost:** that of `tx`, and `2 P` flops; memory `P`.

    Source: Polyak and Juditsky (1992), doi:10.1137/0330046.

    **Example:**

    ```python
    tx = so.averaged(optax.sgd(0.1), start=100)
    state = tx.init(params)
    updates, state = tx.update(grad, state, params)
    mean = so.average(state)
    ```
    """
    inner = optax.with_extra_args_support(tx)
    first = number("start", start, at_least=0).astype(jnp.int32)
    return optax.GradientTransformationExtraArgs(Partial(_init, inner), Partial(_update, inner, first))


def average(state: PyTree) -> PyTree:
    """The mean of the parameters, from the state of `averaged` (or of a chain or wrapper around it).

    **Errors:** `ValueError` if the state holds none, or several.

    **Example:** `so.average(state)`.
    """

    def is_averaged(node):
        return isinstance(node, AveragedState)

    found = [node for node in jax.tree.leaves(state, is_leaf=is_averaged) if is_averaged(node)]
    if len(found) != 1:
        raise ValueError(f"so.average(state) needs a state of so.averaged(...), one of them; found {len(found)}.")
    return found[0].average


def _init(inner, params: PyTree) -> AveragedState:
    return AveragedState(jnp.int32(0), strong(params), inner.init(params))


def _update(inner, start, updates, state: AveragedState, params=None, **extra):
    if params is None:
        raise ValueError("averaged needs the parameters: tx.update(grad, state, params).")
    updates, inner_state = inner.update(updates, state.inner, params, **extra)
    theta = optax.apply_updates(params, updates)
    n = jnp.maximum(state.step - start + 1, 1)
    mean = jax.tree.map(lambda a, t: a + (t - a) / n.astype(a.dtype), state.average, theta)
    finite = tree_all_finite(theta)
    mean = tree_where(finite, mean, state.average)
    return updates, AveragedState(state.step + finite.astype(jnp.int32), mean, inner_state)
