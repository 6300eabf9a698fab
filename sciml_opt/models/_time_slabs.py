"""A model of a long time as one model a slab of it: what time marching leaves."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ._layers import axis_index, real
from ._stack import each, select, stack


class TimeSlabs(eqx.Module):
    """`k` models of one structure, one a slab of the time.

        u(x, t) = u_j(x, t - j T),     j = floor(t / T), but 0 before and k - 1 after the slabs

    `so.explain` shows the stacked weights as factored up to 16 slabs, as dense beyond; biases are dense.

    **Arguments:**

    - `models`: the models of the slabs, in the local time 0 .. T.
    - `length`: T, the length of a slab in time.
    - `axis`: the component of a point that is the time.

    **Returns:** a module with the field `models`, the models stacked: every array has a leading axis `k`. Called on one
    point it yields what the models do.

    **Errors:** `ValueError` for no models, models that differ in more than numbers, a length that is not positive, and
    (when called) an axis that a point lacks.

    **Cost:** k models a point: all are evaluated and one is taken. To gather the parameters of a slab instead would
    copy them for every point of a batch.

    **Source:** arXiv:2106.07971 (adaptive time marching).

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import MLP, TimeSlabs
    >>> slabs = [MLP(2, layers=(8,), key=key) for key in jax.random.split(jax.random.key(0), 4)]
    >>> u = TimeSlabs(slabs, length=0.25)
    >>> bool(jnp.allclose(u(jnp.array([0.3, 0.6])), slabs[2](jnp.array([0.3, 0.1]))))
    True

    ```
    """

    models: Any
    length: float = eqx.field(static=True)
    axis: int = eqx.field(static=True)

    def __init__(self, models: Sequence[Any], length: float, axis: int = -1):
        self.models = stack("TimeSlabs(models=...)", models)
        self.length = real("TimeSlabs(length=...)", length)
        self.axis = axis

    @property
    def count(self) -> int:
        """k, the number of slabs."""
        return next(a for a in jax.tree.leaves(self.models) if eqx.is_array(a)).shape[0]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        axis = axis_index("TimeSlabs(axis=...)", self.axis, x.shape[0])
        # An integer before it is clipped: a time that is no number must find a slab, so that it shows.
        slab = jnp.floor(lax.stop_gradient(x[axis]) / self.length).astype(jnp.int32)
        slab = jnp.clip(slab, 0, self.count - 1)
        local = x.at[axis].add(-slab.astype(x.dtype) * self.length)
        return select(slab, each(self.models, local))
