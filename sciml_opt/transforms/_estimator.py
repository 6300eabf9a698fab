"""What the estimators of the gradient have in common: a learning rate, and the gradient of another loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._check import parameters, schedule
from .._tree import tree_all_finite, tree_dtype, tree_scale, tree_where


class DescentState(NamedTuple):
    step: Int[Array, ""]
    inner: Any


def descent(
    estimator: optax.GradientTransformationExtraArgs, learning_rate: ArrayLike | Callable[[Int[Array, ""]], Array]
) -> optax.GradientTransformationExtraArgs:
    """`theta -= learning_rate v` with `v` from the estimator: optax's chain of both, as a pytree over their numbers."""
    rate = schedule("learning_rate", learning_rate, above=0)
    return optax.GradientTransformationExtraArgs(Partial(_init, estimator), Partial(_update, estimator, rate))


def _init(estimator, params: PyTree) -> DescentState:
    return DescentState(jnp.int32(0), estimator.init(params))


def _update(estimator, rate, updates, state: DescentState, params=None, **extra):
    v, inner = estimator.update(updates, state.inner, params, **extra)
    return tree_scale(-jnp.asarray(rate(state.step)), v), DescentState(state.step + 1, inner)


def gradient_of(loss: Callable[[PyTree], Array]) -> Partial:
    """`params -> gradient`, a pytree over the arrays of a bound objective."""
    if not callable(loss):
        raise TypeError(
            "loss must be a function of the parameters, for example objective.bind(batch, static=static), got "
            f"{type(loss).__name__}."
        )
    return Partial(_gradient, loss if isinstance(loss, eqx.Module | Partial) else Partial(loss))


def _gradient(loss, params: PyTree) -> PyTree:
    return jax.grad(loss)(params)


def strong(params: PyTree) -> PyTree:
    """The parameters, checked, and without weak types: as a part of a state those would retrace."""
    tree_dtype(params)  # refuses an empty pytree
    return jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), parameters(params))


def finite_or_zero(direction: PyTree) -> PyTree:
    """The direction, or zero if any part of it is not finite."""
    return tree_where(tree_all_finite(direction), direction, jax.tree.map(jnp.zeros_like, direction))
