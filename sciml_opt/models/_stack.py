"""Many models of one structure as one: every array has one more leading axis."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def stack(name: str, models: Sequence[Any]) -> Any:
    """The models as one, whose arrays are stacked along a new leading axis."""
    if not len(models):
        raise ValueError(f"{name} must hold at least one model.")
    arrays, rest = zip(*(eqx.partition(model, eqx.is_array) for model in models), strict=True)
    if len({jax.tree.structure(a) for a in arrays}) > 1 or len({_shapes(a) for a in arrays}) > 1:
        raise ValueError(f"{name} must be models of one structure, which differ in their numbers only.")
    return eqx.combine(jax.tree.map(lambda *a: jnp.stack(a), *arrays), rest[0])


def _shapes(arrays: Any) -> tuple:
    return tuple((a.shape, a.dtype) for a in jax.tree.leaves(arrays))


def each(models: Any, x: Float[Array, " d"]) -> Float[Array, "k ..."]:
    """What every one of the stacked models yields at `x`."""
    return eqx.filter_vmap(lambda model: model(x))(models)


def select(index: Int[Array, ""], values: Float[Array, "k ..."]) -> Float[Array, "..."]:
    """`values[index]`, by a mask: its derivatives of every kind cost no more than those of the values."""
    mask = jnp.arange(values.shape[0], dtype=jnp.int32) == index
    mask = mask.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.sum(jnp.where(mask, values, jnp.zeros_like(values)), axis=0)
