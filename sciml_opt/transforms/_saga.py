"""SAGA: the last gradient of every block of the data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._check import count
from .._tree import tree_all_finite, tree_where
from ..objective import BoundObjective
from ._adapter import require_gradient
from ._estimator import descent, finite_or_zero, strong


class SagaState(NamedTuple):
    table: PyTree  # (blocks, ...) the last gradient of every block
    mean: PyTree  # of the table


class _Count(eqx.Module):
    blocks: int = eqx.field(static=True)


def saga(
    learning_rate: ArrayLike | Callable[[Int[Array, ""]], Array], blocks: int
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the estimate of `scale_by_saga`: a constant learning rate converges linearly.

        theta -= learning_rate v

    **Arguments:**

    - `learning_rate`: a number, or a function of the step; of the size of `1 / (3 L)` with `L` the Lipschitz constant
      of the gradients of the blocks.
    - `blocks`: as in `scale_by_saga`.

    **Returns:** an optax transformation.

    **Cost:** as for `scale_by_saga`.

    Source: Defazio, Bach and Lacoste-Julien, arXiv:1407.0202.

    **Example:**

    ```python
    blocks = so.Blocks(batch, 100)
    result = so.fit(model, objective, so.saga(0.1, 100), data=blocks, steps=2000, key=jax.random.key(0))
    ```
    """
    return descent(scale_by_saga(blocks), learning_rate)


def scale_by_saga(blocks: int) -> optax.GradientTransformationExtraArgs:
    """The gradient of a block j of the data, its noise removed by the last gradients of all blocks.

        v = grad f_j(theta) - table_j + mean(table),      then  table_j = grad f_j(theta)

    Unbiased, with a variance that vanishes at a minimum, and without ever a gradient on the whole data. The table
    starts with zeros, where the paper starts with the gradients at the first point: so nothing has to be computed
    before the first step, which is one of plain stochastic gradients; the estimate is unbiased with any table. A
    gradient that is not finite moves nothing and is not remembered.

    **Arguments:** `blocks`, the number of blocks in the data, `so.Blocks(batch, blocks)`.

    **Returns:** an optax transformation, first in a chain: `updates` must be the gradient of `value_fn`, the loss
    bound to a block.

    **Errors:** `ValueError` if `value_fn` is not bound to one of `blocks` blocks, or if `updates` is not the gradient.

    **Cost:** per step `3 P` additions; memory `(blocks + 1) P`.

    Source: Defazio, Bach and Lacoste-Julien, arXiv:1407.0202.

    **Example:** `optax.chain(so.scale_by_saga(100), optax.clip_by_global_norm(1.0), optax.scale(-0.1))`
    """
    number = _Count(count("blocks", blocks))
    return optax.GradientTransformationExtraArgs(Partial(_init, number), Partial(_update, number))


def _init(number: _Count, params: PyTree) -> SagaState:
    params = strong(params)
    table = jax.tree.map(lambda leaf: jnp.zeros((number.blocks, *leaf.shape), leaf.dtype), params)
    return SagaState(table, jax.tree.map(jnp.zeros_like, params))


def _update(number: _Count, updates, state: SagaState, params=None, *, value_fn=None, value=None, grad=None, **extra):
    del params, value, extra
    index = _index(value_fn, number.blocks)
    require_gradient(updates, grad)
    last = jax.tree.map(lambda table: table[index], state.table)
    v = jax.tree.map(lambda g, t, m: g - t + m, updates, last, state.mean)
    row = tree_where(tree_all_finite(v), updates, last)
    table = jax.tree.map(lambda table, new: table.at[index].set(new), state.table, row)
    mean = jax.tree.map(lambda m, new, old: m + (new - old) / number.blocks, state.mean, row, last)
    return finite_or_zero(v), SagaState(table, mean)


def _index(value_fn: Any, blocks: int) -> Int[Array, ""]:
    advice = "bind the loss to a block, objective.bind(so.Blocks(batch, blocks)(key)), or so.fit(data=so.Blocks(...))."
    if not isinstance(value_fn, BoundObjective) or value_fn.index is None:
        what = "one of the whole batch" if isinstance(value_fn, BoundObjective) else type(value_fn).__name__
        raise ValueError(f"SAGA needs a value_fn that knows which block of the data it is on, got {what}: {advice}")
    if value_fn.blocks != blocks:
        raise ValueError(f"SAGA was made for {blocks} blocks, but the data have {value_fn.blocks}: {advice}")
    return value_fn.index
