"""RAR-D: a set of points that grows where the residual is large."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int, PRNGKeyArray, PyTree

from .._check import count as positive
from .._check import number
from ..objective import Objective, Weighted
from ..objective._objective import point_count
from ._adaptive import AbstractAdaptiveSampler, Residual, pool_of, replaced
from ._importance import draw
from ._rad import density


class RARDState(NamedTuple):
    points: PyTree
    used: Int[Array, ""]  # 0 before the first draw, which hands out the points of the start


class RARD(AbstractAdaptiveSampler):
    """Points that stay, to which every draw adds some: by the density of RAD, from a pool.

        L = 1/n sum_{i=1..n} ell_i,      n <- n + count,      new points from  p(x) ~ |r(x)|^k / mean |r|^k + c

    The set lives in a buffer of `capacity` points, of which the unused ones have weight 0, so that shapes never change;
    a full buffer stays as it is. The first draw hands out the points of the start.

    **Arguments:**

    - `objective`, and the `name` of the term whose points are drawn.
    - `pool`: as for `RAD`.
    - `count`: the points that a draw adds.
    - `start`: the first points, a batch entry of the term.
    - `capacity`: the largest number of points.
    - `batch`: the fixed entries of the other terms.
    - `power`, `offset`: `k` and `c`.

    **Methods:** `init`, `draw`; the state has the `points` and how many are `used`.

    **Errors:** `ValueError` as for `RAD`, and for a capacity below the number of points of the start.

    **Cost:** one evaluation of the residual a candidate and draw; every step pays for `capacity` points.

    Source: Wu, Zhu, Tan, Kartha and Lu, arXiv:2207.10289, whose `k = 2` and `c = 0` are the defaults.

    **Example:** `so.sampling.RARD(objective, "interior", pool, 50, start=X, capacity=2000, batch={"boundary": B})`
    """

    residual: Residual
    pool: PyTree | Callable[[PRNGKeyArray], PyTree]
    start: PyTree
    batch: dict[str, Any]
    power: Array
    offset: Array
    count: int = eqx.field(static=True)
    capacity: int = eqx.field(static=True)

    def __init__(
        self,
        objective: Objective,
        name: str,
        pool: PyTree | Callable[[PRNGKeyArray], PyTree],
        count: int,
        batch: Mapping[str, Any] | None = None,
        *,
        start: PyTree,
        capacity: int,
        power: ArrayLike = 2.0,
        offset: ArrayLike = 0.0,
    ):
        batch = {} if batch is None else dict(batch)
        self.residual = Residual(objective, name, batch)
        self.pool = pool if callable(pool) else jax.tree.map(jnp.asarray, pool)
        self.start, self.batch = jax.tree.map(jnp.asarray, start), jax.tree.map(jnp.asarray, batch)
        self.power, self.offset = number("power", power, above=0), number("offset", offset, at_least=0)
        self.count, self.capacity = positive("count", count), positive("capacity", capacity)
        if (size := point_count("start", self.start, None)) > self.capacity:
            raise ValueError(f"capacity must be at least the {size} points of the start, got {capacity}.")

    def init(self, key: PRNGKeyArray) -> RARDState:
        del key
        size = point_count("start", self.start, None)
        slots = jnp.arange(self.capacity) % size  # unused slots repeat points of the start
        return RARDState(jax.tree.map(lambda leaf: leaf[slots], self.start), jnp.int32(0))

    def draw(self, key: PRNGKeyArray, model: Any, state: RARDState) -> tuple[dict[str, Any], RARDState]:
        pool_key, draw_key = jax.random.split(key)
        pool = pool_of(self.pool, pool_key)
        p = density(self.residual(model, pool), self.power, self.offset)
        chosen, _ = draw(draw_key, p, self.count, replace=False)

        slots = jnp.arange(self.capacity, dtype=jnp.int32)
        new = (state.used > 0) & (slots >= state.used) & (slots < state.used + self.count)
        source = chosen[jnp.clip(slots - state.used, 0, self.count - 1)]
        points = replaced(new, jax.tree.map(lambda leaf: leaf[source], pool), state.points)
        size = point_count("start", self.start, None)
        used = jnp.where(state.used > 0, jnp.minimum(state.used + self.count, self.capacity), size).astype(jnp.int32)
        weights = jnp.where(slots < used, 1 / used.astype(p.dtype), 0)
        return self.batch | {self.residual.name: Weighted(points, weights)}, RARDState(points, used)
