"""Causal weights: a time counts once the times before it are solved."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .._check import count as positive
from .._check import number
from ..objective import BoundObjective
from ._weighting import Rule, require_squares, weighting

DONE = 0.99  # of the least weight, from which on the next tolerance is taken


def causal(
    tx: optax.GradientTransformation,
    term: str,
    time: Callable[[Any], ArrayLike],
    interval: tuple[ArrayLike, ArrayLike],
    *,
    tolerance: ArrayLike | Sequence[float] = 1.0,
    chunks: int = 32,
) -> optax.GradientTransformationExtraArgs:
    """Causal training: the residual at a time counts once it is small at all times before.

        w_c = exp(-tolerance sum_{b < c} L_b),        L_c = mean of ell over the points of chunk c of the time

    before each step; the term becomes the mean of `w_c ell` over its points. So a network that has not yet solved the
    first chunks is not drawn to a trivial solution of the last ones. All weights near 1 say that the whole interval
    is solved: with a ladder of tolerances, smallest first, the next one is taken when the least weight exceeds 0.99.

    **Arguments:**

    - `tx`: any optax transformation; ours and line searches get the weighted loss as `value_fn`.
    - `term`: the name of the residual of the equation.
    - `time`: the time of ONE point of that term, such as `lambda x: x[-1]`.
    - `interval`: start and end of the time, cut into equal `chunks`; 16 to 32 are usual.
    - `tolerance`: in units of the inverse loss; or a ladder of them, `[1e-2, 1e-1, 1.0, 1e1, 1e2]`.

    **Returns:** an optax transformation whose `update` needs a bound objective as `value_fn`; its state has the
    `weights` of the chunks, `(chunks,)`, and `state.rule.rung`, the place in the ladder. Where the term is not finite
    they stay. `so.info(state)` speaks of the weighted loss. Fresh points in every step are fine.

    **Errors:** `ValueError` for an unknown term, one that is not least squares, a time that is no scalar, an interval
    without length, or if `updates` is not the gradient.

    **Cost:** one gradient a step.

    Source: Wang, Sankaran and Perdikaris, arXiv:2203.07404, algorithm 1.

    **Example:** `so.causal(so.levenberg_marquardt(), "interior", lambda x: x[1], (0.0, 1.0))`.
    """
    start, stop = (number("interval", end) for end in interval)
    known = not any(isinstance(end, jax.core.Tracer) for end in (start, stop))
    if known and not np.asarray(start) < np.asarray(stop):
        raise ValueError(f"interval must be (start, end) with start < end, got {interval}.")
    ladder = [number("tolerance", value, at_least=0) for value in jnp.atleast_1d(jnp.asarray(tolerance))]
    partial = time if isinstance(time, jax.tree_util.Partial) else jax.tree_util.Partial(time)
    rule = Causal(term, partial, start, stop, jnp.stack(ladder), positive("chunks", chunks))
    return weighting(rule, tx)


class CausalState(NamedTuple):
    weights: Float[Array, " chunks"]
    rung: Int[Array, ""]


class Causal(Rule):
    term: str = eqx.field(static=True)
    time: jax.tree_util.Partial
    start: Array
    stop: Array
    ladder: Float[Array, " rungs"]
    chunks: int = eqx.field(static=True)

    def check(self, loss: BoundObjective) -> None:
        if self.term not in loss.sizes:
            raise ValueError(f"term must be one of the terms of single points, {list(loss.sizes)}, got {self.term!r}.")
        require_squares("causal", loss, (self.term,))

    def init(self, dtype: jnp.dtype) -> CausalState:
        return CausalState(jnp.ones(self.chunks, dtype), jnp.int32(0))

    def update(self, loss: BoundObjective, params: PyTree, state: CausalState, steps: Int[Array, ""]) -> CausalState:
        del steps
        values, chunk = loss.point_values(params, (self.term,))[self.term], self.chunk(loss)
        total = jax.ops.segment_sum(values, chunk, self.chunks)
        number_of_points = jax.ops.segment_sum(jnp.ones_like(values), chunk, self.chunks)
        means = total / jnp.maximum(number_of_points, 1)
        before = jnp.concatenate([jnp.zeros_like(means[:1]), jnp.cumsum(means[:-1])])
        weights = jnp.exp(-self.ladder[state.rung].astype(values.dtype) * before)
        climbed = state.rung + (jnp.min(weights) > DONE).astype(jnp.int32)
        return CausalState(weights, jnp.minimum(climbed, len(self.ladder) - 1).astype(jnp.int32))

    def weigh(self, loss: BoundObjective, state: CausalState) -> BoundObjective:
        return loss.reweighted({self.term: state.weights[self.chunk(loss)]})

    def chunk(self, loss: BoundObjective) -> Int[Array, " N"]:
        """In which chunk each point of the term lies."""
        times = jax.vmap(self.time)(loss.points[self.term])
        if times.ndim != 1:
            raise ValueError(f"time must return one number for one point, it returned shape {times.shape[1:]}.")
        start, stop = self.start.astype(times.dtype), self.stop.astype(times.dtype)
        return jnp.clip(jnp.floor((times - start) / (stop - start) * self.chunks), 0, self.chunks - 1).astype(jnp.int32)
