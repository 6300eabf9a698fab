"""SVRG: the stochastic variance reduced gradient."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import count
from .._tree import tree_all_finite, tree_where
from ._adapter import any_function, require_gradient
from ._estimator import descent, finite_or_zero, gradient_of, strong


class SvrgState(NamedTuple):
    step: Int[Array, ""]
    snapshot: PyTree
    full: PyTree  # the gradient of the whole loss at the snapshot


def svrg(
    learning_rate: ArrayLike | Callable[[Int[Array, ""]], Array], loss: Callable[[PyTree], Scalar], every: int
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the estimate of `scale_by_svrg`: a constant learning rate converges linearly.

        theta -= learning_rate v

    **Arguments:**

    - `learning_rate`: a number, or a function of the step; of the size of `1 / (4 L)` with `L` the Lipschitz constant
      of the gradients of the minibatches.
    - `loss`, `every`: as in `scale_by_svrg`.

    **Returns:** an optax transformation.

    **Cost:** as for `scale_by_svrg`.

    Source: Johnson and Zhang, Accelerating stochastic gradient descent using predictive variance reduction (2013).

    **Example:**

    ```python
    blocks = so.Blocks(batch, 100)
    tx = so.svrg(0.1, objective.bind(batch, static=static), every=200)
    result = so.fit(model, objective, tx, data=blocks, steps=2000, key=jax.random.key(0))
    ```
    """
    return descent(scale_by_svrg(loss, every), learning_rate)


def scale_by_svrg(loss: Callable[[PyTree], Scalar], every: int) -> optax.GradientTransformationExtraArgs:
    """The gradient of a minibatch B, its noise removed by the gradients at a snapshot.

        v = grad f_B(theta) - grad f_B(snapshot) + grad f(snapshot),      snapshot = theta every `every` steps

    Unbiased, with a variance that vanishes as `theta` and the snapshot approach a minimum: where minibatches differ,
    stochastic gradients stall at their noise, and this does not. `value_fn`, the loss on the minibatch, and `loss` may
    be any functions of the parameters. A minibatch gradient that is not finite moves nothing, and of a whole one the
    last snapshot is kept; the step number still counts, so that under `vmap` the whole gradient is computed only when
    it is due.

    **Arguments:**

    - `loss`: f, on the whole data.
    - `every`: steps between two snapshots; twice the number of minibatches in the data is the usual choice.

    **Returns:** an optax transformation, first in a chain: `updates` must be the gradient of `value_fn`.

    **Errors:** `ValueError` if `updates` is not the gradient; `TypeError` for losses that are no functions.

    **Cost:** a second gradient of the minibatch a step, and one of `loss` every `every` steps; memory `2 P`.

    Source: Johnson and Zhang, Accelerating stochastic gradient descent using predictive variance reduction (2013).

    **Example:** `optax.chain(so.scale_by_svrg(loss, 200), optax.scale_by_adam(), optax.scale(-1e-3))`
    """
    every_ = jnp.int32(count("every", every))
    return optax.GradientTransformationExtraArgs(Partial(_init), Partial(_update, gradient_of(loss), every_))


def _init(params: PyTree) -> SvrgState:
    params = strong(params)
    return SvrgState(jnp.int32(0), params, jax.tree.map(jnp.zeros_like, params))


def _update(
    full_gradient, every, updates, state: SvrgState, params=None, *, value_fn=None, value=None, grad=None, **extra
):
    del value, extra
    minibatch = any_function(value_fn, params)
    require_gradient(updates, grad)
    due = state.step % every == 0
    full = lax.cond(due, full_gradient, lambda _: state.full, params)
    snapshot, full = tree_where(due & tree_all_finite(full), (params, full), (state.snapshot, state.full))
    control = jax.grad(minibatch)(snapshot)
    v = jax.tree.map(lambda g, c, f: g - c + f, updates, control, full)
    return finite_or_zero(v), SvrgState(state.step + 1, snapshot, full)
