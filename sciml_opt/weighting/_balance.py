"""Weights that bring a positive measure of every term to the mean of all."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar

from .._check import number
from ..objective import BoundObjective
from ._weighting import TermRule, period

LEAST = 1e-5  # of the mean: no target is larger than its inverse


class BalanceState(NamedTuple):
    weights: dict[str, Array]


class Balance(TermRule):
    """`w_i <- decay w_i + (1 - decay) mean_j(s_j) / (s_i + 1e-5 mean_j(s_j))`, with the measure `s_i` of a term."""

    measure: Callable[[BoundObjective, PyTree], dict[str, Scalar]] = eqx.field(static=True)
    decay: Array
    period: Int[Array, ""]

    def __init__(self, names, measure, decay, every):
        self.names = names
        self.measure = measure
        self.decay = number("decay", decay, at_least=0, below=1)
        self.period = period(every)

    @property
    def every(self) -> Int[Array, ""]:
        return self.period

    def init(self, dtype: jnp.dtype) -> BalanceState:
        return BalanceState(self.ones(dtype))

    def update(self, loss: BoundObjective, params: PyTree, state: BalanceState, steps: Int[Array, ""]) -> BalanceState:
        del steps
        s, w = self.stack(self.measure(loss, params)), self.stack(state.weights)
        mean, decay = jnp.mean(s), self.decay.astype(s.dtype)
        target = mean / (s + LEAST * mean)
        return BalanceState(self.unstack(decay * w + (1 - decay) * target))
