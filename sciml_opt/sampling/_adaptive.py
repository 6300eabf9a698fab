"""Samplers that see the model: what they all share."""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ..objective import Objective, Product, Weighted
from ..objective._objective import _check_keys, point_count

CHUNK = 2**14  # candidates whose residual is evaluated at a time: a large pool does not fill the memory


class AbstractAdaptiveSampler(eqx.Module):
    """A sampler for `fit` and `train` whose points depend on the model, such as on its residual.

    The loop draws before its first step and then every `resample_every` steps, and carries batch and state.
    """

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray) -> PyTree[Array]:
        """The state before the first draw; arrays only."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, model: Any, state: PyTree[Array]) -> tuple[dict[str, Any], PyTree[Array]]:
        """The next batch, of the same shapes at each draw, and the new state."""


class Residual(eqx.Module):
    """The size of the residual of one term: what the adaptive samplers go by.

        r(x) = |z(model, x)|,      0 where it is not finite

    **Arguments:** `objective`, the `name` of one of its terms, which is no `Product`, and the `batch` of the others.
    """

    objective: Objective
    name: str = eqx.field(static=True)

    def __init__(self, objective: Objective, name: str, batch: Mapping[str, Any]):
        _check_keys({name: None, **batch}, objective.terms)
        if name in batch:
            raise ValueError(f"batch holds the fixed points of the other terms; the sampler brings those of {name!r}.")
        if isinstance(objective.terms[name].inner, Product):
            raise TypeError(f"Adaptive sampling is for single points; {name!r} is a Product.")
        self.objective, self.name = Objective(**{name: objective.terms[name]}), name

    def __call__(self, model: Any, points: PyTree) -> Float[Array, " M"]:
        params, static = eqx.partition(model, eqx.is_inexact_array)
        chunk = CHUNK if point_count(self.name, points, None) > CHUNK else None
        z = self.objective.bind({self.name: points}, static, chunk=chunk).outputs(params)[self.name]
        size = jnp.linalg.norm(z, axis=1)
        return jnp.where(jnp.isfinite(size), size, 0)


def pool_of(pool: PyTree | Callable[[PRNGKeyArray], PyTree], key: PRNGKeyArray) -> PyTree[Array]:
    """The candidates: fixed, or drawn."""
    points = jax.tree.map(jnp.asarray, pool(key) if callable(pool) else pool)
    if isinstance(points, Weighted):
        raise TypeError("An adaptive sampler draws by the residual; its candidates must be plain points, not Weighted.")
    return points


def replaced(where: Bool[Array, " N"], new: PyTree, old: PyTree) -> PyTree[Array]:
    """Points with some of them replaced."""

    def replace(new, old):
        return jnp.where(where.reshape(-1, *(1,) * (old.ndim - 1)), new.astype(old.dtype), old)

    return jax.tree.map(replace, new, old)
