"""RAD: points drawn by the residual (residual-based adaptive distribution)."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray, PyTree

from .._check import count as positive
from .._check import number
from ..objective import Objective, Weighted
from ._adaptive import AbstractAdaptiveSampler, Residual, pool_of
from ._importance import draw


class RAD(AbstractAdaptiveSampler):
    """Points drawn anew from a pool, by a density that follows the residual.

        p(x) ~ |r(x)|^k / mean |r|^k + c

    Candidates whose residual is not finite count as `r = 0`: they neither break nor attract the draw.

    **Arguments:**

    - `objective`, and the `name` of the term whose points are drawn.
    - `pool`: the candidates, points of that term; or `key -> points`, fresh ones at every draw.
    - `count`: the points of a draw.
    - `batch`: the fixed entries of the other terms.
    - `power`, `offset`: `k` and `c`. A larger `c` is nearer to uniform points.
    - `replace`: whether a point may be drawn more than once.
    - `importance`: if true, the points bring weights, so that the loss stays an unbiased estimate of the mean over the
      pool (`importance_sampled`); if false, as in the paper, it becomes the mean in the density `p`, which weighs the
      worst regions more.

    **Methods:** `init`, `draw`; there is no state.

    **Errors:** `ValueError` for an unknown term, missing or unknown entries of `batch`, numbers out of range.

    **Cost:** one evaluation of the residual a candidate and draw.

    Source: Wu, Zhu, Tan, Kartha and Lu, arXiv:2207.10289.

    **Example:**

    ```python
    pool = so.sampling.Shifted(so.sampling.Box((-1, 0), (1, 1)), 10_000)
    rad = so.sampling.RAD(objective, "interior", pool, 1000, {"boundary": B, "initial": I})
    result = so.fit(model, objective, tx, data=rad, steps=500, resample_every=100, key=jax.random.key(0))
    ```
    """

    residual: Residual
    pool: PyTree | Callable[[PRNGKeyArray], PyTree]
    batch: dict[str, Any]
    power: Array
    offset: Array
    count: int = eqx.field(static=True)
    replace: bool = eqx.field(static=True)
    importance: bool = eqx.field(static=True)

    def __init__(
        self,
        objective: Objective,
        name: str,
        pool: PyTree | Callable[[PRNGKeyArray], PyTree],
        count: int,
        batch: Mapping[str, Any] | None = None,
        *,
        power: ArrayLike = 1.0,
        offset: ArrayLike = 1.0,
        replace: bool = False,
        importance: bool = False,
    ):
        batch = {} if batch is None else dict(batch)
        self.residual = Residual(objective, name, batch)
        self.pool = pool if callable(pool) else jax.tree.map(jnp.asarray, pool)
        self.batch = jax.tree.map(jnp.asarray, batch)
        self.power, self.offset = number("power", power, above=0), number("offset", offset, at_least=0)
        self.count, self.replace, self.importance = positive("count", count), replace, importance

    def init(self, key: PRNGKeyArray) -> tuple[()]:
        del key
        return ()

    def draw(self, key: PRNGKeyArray, model: Any, state: tuple[()]) -> tuple[dict[str, Any], tuple[()]]:
        pool_key, draw_key = jax.random.split(key)
        pool = pool_of(self.pool, pool_key)
        p = density(self.residual(model, pool), self.power, self.offset)
        chosen, weights = draw(draw_key, p, self.count, self.replace)
        points = jax.tree.map(lambda leaf: leaf[chosen], pool)
        return self.batch | {self.residual.name: Weighted(points, weights) if self.importance else points}, state


def density(residuals: Float[Array, " M"], power: Array, offset: Array) -> Float[Array, " M"]:
    """`|r|^k / mean |r|^k + c`; uniform where all residuals are 0."""
    largest = jnp.max(residuals)
    powers = (residuals / jnp.where(largest > 0, largest, 1)) ** power.astype(residuals.dtype)  # no overflow
    mean = jnp.mean(powers)
    return jnp.where(mean > 0, powers / jnp.where(mean > 0, mean, 1), 1) + offset.astype(residuals.dtype)
