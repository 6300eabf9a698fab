"""From a method to an optax transformation, in optax's own line-search protocol.

loss = objective.bind(batch, static=static)
value, grad = jax.value_and_grad(loss)(params)
updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from .._check import parameters
from .._tree import tree_dtype
from ..methods import AbstractGradientMethod, AbstractMethod, Loss, StepInfo
from ..objective import BoundObjective


def to_transformation(method: AbstractMethod) -> optax.GradientTransformationExtraArgs:
    """A method as an optax transformation: its updates are steps, ready for `optax.apply_updates`.

    The transformation is a pytree over the method's numbers: it may be closed over, or be a `jax.jit` argument, and
    then other numbers do not retrace.

    **Arguments:** `method`, for example `LevenbergMarquardtMethod(...)`.

    **Returns:** `(init, update)`; `update` needs `params`, `grad` and as `value_fn` a bound objective (any function of
    the parameters, for a method that is not `structured`).
    """
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init, method), jax.tree_util.Partial(_update, method)
    )


def _init(method: AbstractMethod, params: PyTree) -> Any:
    return method.init(parameters(params))


def _update(method: AbstractMethod, updates, state, params=None, *, grad=None, value_fn=None, value=None, **extra_args):
    del extra_args
    loss: Loss = bound_objective(value_fn, params) if method.structured else any_function(value_fn, params)
    require_gradient(updates, grad)
    if isinstance(method, AbstractGradientMethod) and value is not None and grad is not None:
        return method.advance(loss, params, jnp.asarray(value, tree_dtype(params)), updates, state)
    return method.step(loss, params, state)


def require_gradient(updates: PyTree, grad: PyTree) -> None:
    """Refuse updates that are seen not to be the gradient; without `grad` they are taken for it."""
    if grad is not None and not is_gradient(updates, grad):
        raise ValueError(
            "This method accepts or rejects whole steps, so `updates` must be the gradient itself: "
            "tx.update(grad, state, params, value=value, grad=grad, value_fn=loss), first in a chain, and inside one "
            "jitted function (jit of tx.update alone makes two copies of the gradient); MultiSteps needs no `grad`. "
            "To precondition something else, use so.scale_by_gauss_newton."
        )


def bound_objective(value_fn: Any, params: PyTree) -> BoundObjective:
    """Check what optax handed on, and say what to do."""
    if not isinstance(value_fn, BoundObjective):
        raise TypeError(
            "Curvature methods need the structure of the loss: value_fn must be a bound objective, "
            f"objective.bind(batch, static=static), got {type(value_fn).__name__}. The call is "
            "tx.update(grad, state, params, value=value, grad=grad, value_fn=loss). Inside optimistix.OptaxMinimiser "
            "there is no bound objective: use so.LevenbergMarquardt or so.GaussNewton there."
        )
    if params is None:
        raise ValueError("update(params=...) is needed: tx.update(grad, state, params, ..., value_fn=loss).")
    return value_fn


def any_function(value_fn: Any, params: PyTree) -> Any:
    """Check what optax handed on, for a method that needs no structure."""
    if not callable(value_fn):
        raise TypeError(
            "This method evaluates the loss itself: value_fn must be a function of the parameters, got "
            f"{type(value_fn).__name__}. The call is tx.update(grad, state, params, value=value, grad=grad, "
            "value_fn=loss)."
        )
    if params is None:
        raise ValueError("update(params=...) is needed: tx.update(grad, state, params, ..., value_fn=loss).")
    return value_fn


def is_gradient(updates: PyTree, grad: PyTree) -> bool:
    """Whether `updates` is the gradient itself, leaf by leaf the same objects."""
    left, right = jax.tree.leaves(updates), jax.tree.leaves(grad)
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def info(state: PyTree) -> StepInfo:
    """The `StepInfo` of the last step, from the state of any transformation or chain of this library.

    **Errors:** `ValueError` if the state holds none, or several.

    **Example:** `so.info(state).damping`.
    """
    found = step_infos(state)
    if len(found) != 1:
        raise ValueError(
            f"so.info(state) needs a state with one StepInfo, found {len(found)}; pass that member's state."
        )
    return found[0]


def step_infos(state: PyTree) -> list[StepInfo]:
    """Every `StepInfo` inside a state."""

    def is_info(node):
        return isinstance(node, StepInfo)

    return [node for node in jax.tree.leaves(state, is_leaf=is_info) if is_info(node)]
