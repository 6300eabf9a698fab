"""GradNorm: weights trained so that the terms learn at the same rate."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .._check import number, schedule
from .._tree import tree_norm
from ..objective import BoundObjective, Objective
from ._adam import Moments
from ._term_gradients import term_names
from ._weighting import TermRule, require_squares, weighting


def grad_norm(
    tx: optax.GradientTransformation,
    terms: Objective | Iterable[str],
    *,
    exponent: ArrayLike = 1.5,
    learning_rate: ArrayLike | Callable[[Array], ArrayLike] = 1e-3,
) -> optax.GradientTransformationExtraArgs:
    """GradNorm: train the weights of the terms until a term that lags behind has the larger gradient.

        G_i = w_i |grad L_i|,      r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0))       relative inverse training rate
        L_grad(w) = sum_i |G_i - mean_j(G_j) r_i^exponent|                           the second part a constant

    One step of Adam on `log w` with the gradient of `L_grad / mean_j(G_j)`, then `w <- K w / sum_j w_j` for `K` terms;
    before each step, from `w = 1`. The paper steps on `w`; its logarithm keeps the weights positive and lets them
    differ by orders of magnitude, as the terms of a PINN ask for.

    **Arguments:**

    - `tx`: any optax transformation; ours and line searches get the weighted loss as `value_fn`.
    - `terms`: the objective, or the names of its terms.
    - `exponent`: how much larger the gradient of a term that lags behind is to be; 0 asks for equal norms.
    - `learning_rate` of the weights: roughly their relative change in a step; a number, or a function of the step. Of
      2-D Poisson with a boundary weight of 4e-4 under Adam, 0.025 (the paper's, on `w`) gave the interior up for the
      first thousands of steps, and 1e-3 was better than fixed weights from 1000 steps on.

    **Returns:** an optax transformation whose `update` needs a bound objective as `value_fn`; its state has the
    `weights`. Where a gradient is not finite the weights stay. `so.info(state)` speaks of the weighted loss.

    **Errors:** `ValueError` if `terms` are not all the terms, for a term that is not least squares, or if `updates` is
    not the gradient.

    **Cost:** two gradients a step; memory `K P` for them.

    Source: Chen, Badrinarayanan, Lee and Rabinovich, arXiv:1711.02257, algorithm 1.

    **Example:** `so.grad_norm(optax.adam(1e-3), objective)`.
    """
    rate = schedule("learning_rate", learning_rate, at_least=0)
    return weighting(GradNorm(term_names("terms", terms), number("exponent", exponent, at_least=0), rate), tx)


class GradNormState(NamedTuple):
    weights: dict[str, Array]
    first_losses: Float[Array, " K"]
    moments: Moments


class GradNorm(TermRule):
    exponent: Array
    learning_rate: jax.tree_util.Partial

    def check(self, loss: BoundObjective) -> None:
        super().check(loss)
        require_squares("grad_norm", loss)

    def init(self, dtype: jnp.dtype) -> GradNormState:
        ones = jnp.ones(len(self.names), dtype)
        return GradNormState(self.ones(dtype), ones, Moments.none(ones))

    def update(
        self, loss: BoundObjective, params: PyTree, state: GradNormState, steps: Int[Array, ""]
    ) -> GradNormState:
        values, grads = loss.gradients(params)
        losses, w = self.stack(values), self.stack(state.weights)
        first = jnp.where(steps == 0, losses, state.first_losses)
        norms = w * self.stack({name: tree_norm(grads[name]) for name in self.names})

        rates = _relative_rates(losses, first)
        norms = norms / jnp.mean(norms)
        slope = jnp.sign(norms - rates ** self.exponent.astype(w.dtype)) * norms  # of L_grad in log w

        moments = state.moments.follow(slope)
        rate = jnp.asarray(self.learning_rate(steps), w.dtype)
        w = len(w) * jax.nn.softmax(jnp.log(w) - rate * moments.direction(steps + 1))
        return GradNormState(self.unstack(w), first, moments)


def _relative_rates(losses: Float[Array, " K"], first: Float[Array, " K"]) -> Float[Array, " K"]:
    least = jnp.finfo(first.dtype).eps * jnp.sum(first)  # a term that began at zero has not been trained
    ratios = losses / jnp.maximum(first, least)
    return ratios / jnp.mean(ratios)
