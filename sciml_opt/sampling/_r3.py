"""R3: retain the points of large residual, resample the others, release what is solved."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from ..objective import Objective
from ._adaptive import AbstractAdaptiveSampler, Residual, pool_of, replaced


class R3State(NamedTuple):
    points: PyTree


class R3(AbstractAdaptiveSampler):
    """A population of points: those with a residual above the mean stay, the others are replaced by fresh ones.

        keep x_i  if  |r(x_i)| > 1/N sum_j |r(x_j)|

    So points gather where the residual is large, and leave once it has become small. Points whose residual is not
    finite count as `r = 0`, and are replaced.

    **Arguments:**

    - `objective`, and the `name` of the term whose points are drawn.
    - `fresh`: `key -> entry`, points for the whole population, such as a `Shifted` or a `RandomPool`.
    - `batch`: the fixed entries of the other terms.

    **Methods:** `init`, `draw`; the state is the population.

    **Errors:** `ValueError` for an unknown term, missing or unknown entries of `batch`.

    **Cost:** one evaluation of the residual a point and draw.

    Source: Daw, Bu, Wang, Perdikaris and Karpatne, arXiv:2207.02338.

    **Example:**

    ```python
    r3 = so.sampling.R3(objective, "interior", so.sampling.Shifted(box, 1000, "uniform"), {"boundary": B})
    result = so.fit(model, objective, tx, data=r3, steps=500, key=jax.random.key(0))
    ```
    """

    residual: Residual
    fresh: Callable[[PRNGKeyArray], PyTree]
    batch: dict[str, Any]

    def __init__(
        self,
        objective: Objective,
        name: str,
        fresh: Callable[[PRNGKeyArray], PyTree],
        batch: Mapping[str, Any] | None = None,
    ):
        if not callable(fresh):
            raise TypeError(f"R3(fresh=...) must be a function `key -> points`, got {type(fresh).__name__}.")
        batch = {} if batch is None else dict(batch)
        self.residual, self.fresh = Residual(objective, name, batch), fresh
        self.batch = jax.tree.map(jnp.asarray, batch)

    def init(self, key: PRNGKeyArray) -> R3State:
        return R3State(pool_of(self.fresh, key))

    def draw(self, key: PRNGKeyArray, model: Any, state: R3State) -> tuple[dict[str, Any], R3State]:
        size = self.residual(model, state.points)
        keep = size > jnp.mean(size)
        points = replaced(~keep, pool_of(self.fresh, key), state.points)
        return self.batch | {self.residual.name: points}, R3State(points)
