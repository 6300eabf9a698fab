"""One map after the other: an embedding in front of a network."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from ._layers import as_module


class Chain(eqx.Module):
    """Maps of ONE point, one after the other, `u(x) = f_n(.. f_2(f_1(x)))`.

    **Arguments:** the maps, models or plain functions; the arrays of a model are trained, a plain function has none.
    `so.explain` shows the parameters of each as if it stood alone.

    **Returns:** a module with the field `maps`; called on one point it yields what the last map does.

    **Errors:** `ValueError` for no maps, `TypeError` for one that cannot be called.

    **Cost:** the sum.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import MLP, Chain, PeriodicEmbedding
    >>> u = Chain(PeriodicEmbedding(1, {0: 1.0}), MLP(2, layers=(8,), key=jax.random.key(0)), jnp.exp)
    >>> bool(u(jnp.array([0.3])) > 0)
    True

    ```
    """

    maps: tuple[Any, ...]

    def __init__(self, *maps: Callable[..., Any]):
        if not maps:
            raise ValueError("Chain() needs at least one map: Chain(embedding, network).")
        self.maps = tuple(as_module("Chain(...)", f) for f in maps)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        for f in self.maps:
            x = f(x)
        return x
