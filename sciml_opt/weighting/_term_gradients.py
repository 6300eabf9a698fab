"""What all gradient surgery shares: the gradients of the terms as rows of a matrix, and names of terms."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._tree import ravel, unravel
from ..objective import BoundObjective, Objective
from ..transforms import bound_objective, require_gradient


def bound_terms(value_fn: Any, updates: PyTree, params: PyTree, grad: PyTree) -> BoundObjective:
    """The bound objective that optax handed on, first in a chain."""
    loss = bound_objective(value_fn, params)
    require_gradient(updates, grad)
    return loss


def gradient_rows(loss: BoundObjective, params: PyTree) -> Float[Array, "K P"]:
    """The gradient of every weighted term, one a row, in the order of `loss.terms`."""
    grads = loss.gradients(params)[1]
    return jnp.stack([ravel(grads[name]) for name in loss.terms])


def term_names(argument: str, terms: Objective | Iterable[str]) -> tuple[str, ...]:
    """The names, in the order of a bound objective."""
    if isinstance(terms, str):
        raise TypeError(f"{argument} must be the objective or the names of all its terms, got the string {terms!r}.")
    return tuple(sorted(terms.terms if isinstance(terms, Objective) else terms))


def require_terms(argument: str, names: Iterable[str], loss: BoundObjective) -> None:
    """Refuse names that are not exactly the terms of the loss."""
    if sorted(names) != list(loss.terms):
        raise ValueError(f"{argument} must be all the terms of the objective, {list(loss.terms)}, got {sorted(names)}.")


def unit(vectors: Float[Array, "... P"]) -> Float[Array, "... P"]:
    """`g / |g|`, and 0 for 0; scaled first, so that the squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(vectors), axis=-1, keepdims=True)
    scaled = vectors / jnp.where(largest > 0, largest, 1)
    norm = jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    return scaled / jnp.where(norm > 0, norm, 1)


def as_updates(direction: Float[Array, " P"], finite: Bool[Array, ""], params: PyTree) -> PyTree:
    """The direction, shaped like the parameters; zero where a gradient was not finite."""
    return unravel(jnp.where(finite, direction, 0), params)
