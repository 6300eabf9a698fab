"""Self-adaptive weights of single points: a saddle point problem."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._check import one_of, schedule
from ..objective import BoundObjective
from ._adam import Moments
from ._weighting import PointRule, point_counts, weighting

Mask = Literal["square", "softplus"]


def self_adaptive(
    tx: optax.GradientTransformation,
    points: Mapping[str, Any],
    *,
    learning_rate: ArrayLike | Callable[[Array], ArrayLike] = 5e-3,
    mask: Mask = "square",
) -> optax.GradientTransformationExtraArgs:
    """Self-adaptive PINN: weights of single points, which rise where the residual stays large.

        min_theta max_lambda  sum_k w_k / N_k sum_i m(lambda_ki) ell(z_ki),        m(lambda) = lambda^2

    One step of Adam up the slope `m'(lambda_i) ell(z_i)` of each point, before each step of the optimizer; from
    `m(lambda) = 1`. Weights only rise, slowest where `ell` has fallen most: Adam divides each slope by its own past, so
    that its size as such does not matter (but below 1e-8). The points must be the same in every step.

    **Arguments:**

    - `tx`: any optax transformation; ours and line searches get the weighted loss as `value_fn`.
    - `points`: of the terms whose points have weights: the batch or a part of it, or the numbers of points, such as
      `loss.sizes` (with a mesh these, which count the points that fill up the shares).
    - `learning_rate` of the weights: a number, or a function of the step.
    - `mask`: `m`, `"square"`, or `"softplus"`, `log(1 + exp(lambda))`.

    **Returns:** an optax transformation whose `update` needs a bound objective as `value_fn`; its state has the
    `weights`, `m(lambda)`, one array a term. Where a loss is not finite they stay. `so.info(state)` speaks of the
    weighted loss.

    **Errors:** `ValueError` for other points than the loss has, blocks of data, a term that is not least squares, or if
    `updates` is not the gradient. Fresh points of the same number are not noticed.

    **Cost:** one gradient a step; memory four numbers a point.

    Source: McClenny and Braga-Neto, arXiv:2009.04544.

    **Example:** `so.self_adaptive(optax.adam(1e-3), {"interior": X})`.
    """
    rate = schedule("learning_rate", learning_rate, at_least=0)
    return weighting(SelfAdaptive(point_counts(points), one_of("mask", mask, get_args(Mask)), rate), tx)


def _square(x: Array) -> Array:
    return x * x


MASKS = {"square": (_square, 1.0), "softplus": (jax.nn.softplus, math.log(math.e - 1))}  # m, and where it is 1


class SelfAdaptiveState(NamedTuple):
    weights: dict[str, Array]  # m(lambda)
    multipliers: dict[str, Array]  # lambda
    moments: dict[str, Moments]


class SelfAdaptive(PointRule):
    mask: Mask = eqx.field(static=True)
    learning_rate: jax.tree_util.Partial

    def init(self, dtype: jnp.dtype) -> SelfAdaptiveState:
        m, start = MASKS[self.mask]
        multipliers = {name: jnp.full(count, start, dtype) for name, count in self.counts}
        moments = {name: Moments.none(leaf) for name, leaf in multipliers.items()}
        return SelfAdaptiveState(jax.tree.map(m, multipliers), multipliers, moments)

    def update(
        self, loss: BoundObjective, params: PyTree, state: SelfAdaptiveState, steps: Int[Array, ""]
    ) -> SelfAdaptiveState:
        m, _ = MASKS[self.mask]
        weights, multipliers, moments = {}, {}, {}
        for name, values in loss.point_values(params, self.names).items():
            old = state.multipliers[name]
            slope = jax.vmap(jax.grad(m))(old) * values
            moments[name] = state.moments[name].follow(slope)
            rate = jnp.asarray(self.learning_rate(steps), old.dtype)
            multipliers[name] = old + rate * moments[name].direction(steps + 1)
            weights[name] = m(multipliers[name])
        return SelfAdaptiveState(weights, multipliers, moments)
