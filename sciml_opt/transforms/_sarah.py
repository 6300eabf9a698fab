"""SARAH: the stochastic recursive gradient."""

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


class SarahState(NamedTuple):
    step: Int[Array, ""]
    previous: PyTree  # the parameters of the last step
    v: PyTree


def sarah(
    learning_rate: ArrayLike | Callable[[Int[Array, ""]], Array], loss: Callable[[PyTree], Scalar], every: int
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the estimate of `scale_by_sarah`: a constant learning rate converges linearly.

        theta -= learning_rate v

    **Arguments:**

    - `learning_rate`: a number, or a function of the step; of the size of `1 / (2 L)` with `L` the Lipschitz constant
      of the gradients of the minibatches.
    - `loss`, `every`: as in `scale_by_sarah`.

    **Returns:** an optax transformation.

    **Cost:** as for `scale_by_sarah`.

    Source: Nguyen, Liu, Scheinberg and Takac, arXiv:1703.00102.

    **Example:** `so.sarah(0.1, objective.bind(batch, static=static), every=200)`, used as in `svrg`.
    """
    return descent(scale_by_sarah(loss, every), learning_rate)


def scale_by_sarah(loss: Callable[[PyTree], Scalar], every: int) -> optax.GradientTransformationExtraArgs:
    """The whole gradient, followed from step to step by the minibatches B.

        v_t = grad f(theta_t)                                             every `every` steps
        v_t = grad f_B(theta_t) - grad f_B(theta_(t-1)) + v_(t-1)         otherwise

    Biased between two whole gradients, but its steps shrink where those of SVRG keep the noise of a distant snapshot.
    `value_fn`, the loss on the minibatch, and `loss` may be any functions of the parameters. An estimate that is not
    finite moves nothing and is forgotten; the step number still counts, so that under `vmap` the whole gradient is
    computed only when it is due.

    **Arguments:**

    - `loss`: f, on the whole data.
    - `every`: steps between two whole gradients; one to two times the number of minibatches in the data.

    **Returns:** an optax transformation, first in a chain: `updates` must be the gradient of `value_fn`.

    **Errors:** `ValueError` if `updates` is not the gradient; `TypeError` for losses that are no functions.

    **Cost:** a second gradient of the minibatch a step, and one of `loss` every `every` steps; memory `2 P`.

    Source: Nguyen, Liu, Scheinberg and Takac, arXiv:1703.00102.

    **Example:** `optax.chain(so.scale_by_sarah(loss, 200), optax.clip_by_global_norm(1.0), optax.scale(-0.1))`
    """
    every_ = jnp.int32(count("every", every))
    return optax.GradientTransformationExtraArgs(Partial(_init), Partial(_update, gradient_of(loss), every_))


def _init(params: PyTree) -> SarahState:
    params = strong(params)
    return SarahState(jnp.int32(0), params, jax.tree.map(jnp.zeros_like, params))


def _update(
    full_gradient, every, updates, state: SarahState, params=None, *, value_fn=None, value=None, grad=None, **extra
):
    del value, extra
    minibatch = any_function(value_fn, params)
    require_gradient(updates, grad)

    def follow(_):
        control = jax.grad(minibatch)(state.previous)
        return jax.tree.map(lambda g, c, v: g - c + v, updates, control, state.v)

    v = lax.cond(state.step % every == 0, full_gradient, follow, params)
    previous, kept = tree_where(tree_all_finite(v), (params, v), (state.previous, state.v))
    return finite_or_zero(v), SarahState(state.step + 1, previous, kept)
