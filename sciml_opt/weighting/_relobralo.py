"""ReLoBRaLo: weights from the relative progress of the terms, with a random lookback."""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree

from .._check import number
from ..objective import BoundObjective, Objective
from ._term_gradients import term_names
from ._weighting import TermRule, require_squares, weighting


def relobralo(
    tx: optax.GradientTransformation,
    terms: Objective | Iterable[str],
    *,
    temperature: ArrayLike = 1.0,
    decay: ArrayLike = 0.999,
    saudade: ArrayLike = 0.999,
    seed: int | Int[Array, ""] = 0,
) -> optax.GradientTransformationExtraArgs:
    """Relative loss balancing with random lookback (ReLoBRaLo): a term that has fallen less counts more.

        b_i(t, t') = K softmax_i( L_i(t) / (temperature L_i(t')) )               of K terms
        w_i(t) = decay (rho w_i(t-1) + (1 - rho) b_i(t, 0)) + (1 - decay) b_i(t, t-1)

    before each step, from `w = 1`; `rho` is 1 with probability `saudade`, else 0: the weights look back at the start
    now and then. They add up to `K`. It needs no gradients of single terms.

    **Arguments:**

    - `tx`: any optax transformation; ours and line searches get the weighted loss as `value_fn`.
    - `terms`: the objective, or the names of its terms.
    - `temperature`: small ones let the softmax choose the worst term alone; large ones leave all weights 1.
    - `decay`, in [0, 1]: of the moving average.
    - `saudade`, in [0, 1]: how seldom the weights look back.
    - `seed` of `rho`.

    **Returns:** an optax transformation whose `update` needs a bound objective as `value_fn`; its state has the
    `weights`. Where a loss is not finite the weights stay. `so.info(state)` speaks of the weighted loss.

    **Errors:** `ValueError` if `terms` are not all the terms, for a term that is not least squares, or if `updates` is
    not the gradient.

    **Cost:** one gradient a step; the values of the terms come with it.

    Source: Bischof and Kraus, arXiv:2110.09813, equations 9 to 11.

    **Example:** `so.relobralo(optax.adam(1e-3), objective)`.
    """
    numbers = (
        number("temperature", temperature, above=0),
        number("decay", decay, at_least=0, at_most=1),
        number("saudade", saudade, at_least=0, at_most=1),
    )
    return weighting(ReLoBRaLo(term_names("terms", terms), *numbers, jax.random.key(seed)), tx)


class ReLoBRaLoState(NamedTuple):
    weights: dict[str, Array]
    first_losses: Float[Array, " K"]
    last_losses: Float[Array, " K"]


class ReLoBRaLo(TermRule):
    temperature: Array
    decay: Array
    saudade: Array
    key: PRNGKeyArray

    def check(self, loss: BoundObjective) -> None:
        super().check(loss)
        require_squares("relobralo", loss)

    def init(self, dtype: jnp.dtype) -> ReLoBRaLoState:
        ones = jnp.ones(len(self.names), dtype)
        return ReLoBRaLoState(self.ones(dtype), ones, ones)

    def update(
        self, loss: BoundObjective, params: PyTree, state: ReLoBRaLoState, steps: Int[Array, ""]
    ) -> ReLoBRaLoState:
        losses, w = self.stack(loss.values(params)), self.stack(state.weights)
        first, last = (jnp.where(steps == 0, losses, old) for old in (state.first_losses, state.last_losses))
        temperature, decay = (value.astype(w.dtype) for value in (self.temperature, self.decay))

        def balance(reference):
            least = jnp.finfo(w.dtype).eps * jnp.sum(reference)  # a term that was zero
            ratios = losses / jnp.maximum(jnp.maximum(reference, least), jnp.finfo(w.dtype).tiny)
            return len(w) * jax.nn.softmax(jnp.minimum(ratios / temperature, jnp.finfo(w.dtype).max))

        rho = jax.random.bernoulli(jax.random.fold_in(self.key, steps), self.saudade)
        past = jnp.where(rho, w, balance(first))
        w = decay * past + (1 - decay) * balance(last)
        return ReLoBRaLoState(self.unstack(w), first, losses)
