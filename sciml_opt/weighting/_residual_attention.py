"""Residual-based attention: weights of single points that follow their residuals."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._check import number
from ..objective import BoundObjective
from ._weighting import PointRule, point_counts, weighting


def residual_attention(
    tx: optax.GradientTransformation,
    points: Mapping[str, Any],
    *,
    decay: ArrayLike = 0.999,
    rate: ArrayLike = 0.01,
) -> optax.GradientTransformationExtraArgs:
    """Residual-based attention (RBA): a moving average of the relative residual multiplies the residual of a point.

        lambda_i <- decay lambda_i + rate |z_i| / max_j |z_j|,        term = w / N sum_i 0.5 |lambda_i z_i|^2

    before each step, from `lambda = 1`. A multiplier stays below `rate / (1 - decay)`, 10 by default; the maximum is
    over the points of the term. The points must be the same in every step.

    **Arguments:**

    - `tx`: any optax transformation; ours and line searches get the weighted loss as `value_fn`.
    - `points`: of the terms whose points have weights: the batch or a part of it, or the numbers of points, such as
      `loss.sizes` (with a mesh these, which count the points that fill up the shares).
    - `decay`, in [0, 1): 0.999 to 0.9999; `rate`: 1e-3 to 1e-2.

    **Returns:** an optax transformation whose `update` needs a bound objective as `value_fn`; its state has the
    `weights`, `lambda^2`, one array a term. Where a residual is not finite they stay. `so.info(state)` speaks of the
    weighted loss.

    **Errors:** `ValueError` for other points than the loss has, blocks of data, a term that is not least squares, or if
    `updates` is not the gradient. Fresh points of the same number are not noticed.

    **Cost:** one gradient a step; memory two numbers a point.

    Source: Anagnostopoulos, Toscano, Stergiopulos and Karniadakis, arXiv:2307.00379; they start at 0.

    **Example:** `so.residual_attention(optax.adam(1e-3), {"interior": X})`.
    """
    numbers = number("decay", decay, at_least=0, below=1), number("rate", rate, at_least=0)
    return weighting(ResidualAttention(point_counts(points), *numbers), tx)


class ResidualAttentionState(NamedTuple):
    weights: dict[str, Array]  # lambda^2
    multipliers: dict[str, Array]  # lambda


class ResidualAttention(PointRule):
    decay: Array
    rate: Array

    def init(self, dtype: jnp.dtype) -> ResidualAttentionState:
        ones = {name: jnp.ones(count, dtype) for name, count in self.counts}
        return ResidualAttentionState(ones, ones)

    def update(
        self, loss: BoundObjective, params: PyTree, state: ResidualAttentionState, steps: Int[Array, ""]
    ) -> ResidualAttentionState:
        del steps

        def follow(old, values):
            sizes = jnp.sqrt(2 * values)  # ell = 0.5 |z|^2
            largest = jnp.max(sizes)
            relative = sizes / jnp.where(largest == 0, 1, largest)
            return self.decay.astype(old.dtype) * old + self.rate.astype(old.dtype) * relative

        multipliers = jax.tree.map(follow, state.multipliers, loss.point_values(params, self.names))
        return ResidualAttentionState(jax.tree.map(jnp.square, multipliers), multipliers)
