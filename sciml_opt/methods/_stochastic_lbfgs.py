"""L-BFGS on changing points: steps without a line search, curvature on a part that two gradients share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._check import count, schedule
from .._tree import ravel, tree_add, tree_dtype, tree_norm, unravel
from ._lbfgs import Correction, Memory, remember, two_loop
from ._method import AbstractMethod, StepInfo, quotient
from ._quasi_newton import powell, resolved


class StochasticLBFGSState(NamedTuple):
    memory: Memory
    steps: Int[Array, ""]
    info: StepInfo


class StochasticLBFGSMethod(AbstractMethod):
    """Multi-batch L-BFGS.

        theta+ = theta - eta H grad L_S(theta),     |eta H grad| at most `longest`
        s = theta+ - theta,   y = grad L_O(theta+) - grad L_O(theta),   O a random part of the points S

    Both gradients of a pair are on the same points, so that it speaks of curvature and not of noise. See
    `sciml_opt.stochastic_lbfgs`.
    """

    learning_rate: Callable[[Array], Array]
    longest: Callable[[Array], Array]
    memory: int = eqx.field(static=True)
    overlap: float = eqx.field(static=True)
    correction: Correction = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(
        self,
        learning_rate: ArrayLike | Callable[[Array], Array],
        memory: int = 20,
        *,
        overlap: float = 0.25,
        longest: ArrayLike | Callable[[Array], Array] = 0.1,
        correction: Correction = "damped",
        seed: int = 0,
    ):
        self.learning_rate = schedule("learning_rate", learning_rate, above=0)
        self.longest = schedule("longest", longest, above=0)
        self.memory = count("memory", memory)
        if not 0 < overlap <= 1:
            raise ValueError(f"overlap must lie in (0, 1], got {overlap}.")
        self.overlap = overlap
        self.correction = correction
        self.seed = seed

    def init(self, params: PyTree) -> StochasticLBFGSState:
        return StochasticLBFGSState(Memory.empty(self.memory, params), jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Any, params: PyTree, state: StochasticLBFGSState):  # a `Loss` with `subsample`
        dtype = tree_dtype(params)
        value, grad = jax.value_and_grad(loss)(params)
        g = ravel(grad)
        grad_norm = tree_norm(g)
        started = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        d = -two_loop(state.memory, g)
        d = jnp.where(jnp.vdot(g, d) < 0, d, -g)
        eta = jnp.asarray(self.learning_rate(state.steps), dtype)
        size = tree_norm(d)
        longest = jnp.asarray(self.longest(state.steps), dtype)
        eta = jnp.minimum(eta, longest / jnp.where(size > 0, size, 1))
        s = jnp.where(started, eta * d, 0)
        update = unravel(s, params)

        part = loss.subsample(jax.random.fold_in(jax.random.key(self.seed), state.steps), self.overlap)
        value_before, before = jax.value_and_grad(part)(params)
        value_after, after = jax.value_and_grad(part)(tree_add(params, update))
        before, after = ravel(before), ravel(after)
        y = after - before
        if self.correction == "damped":
            y = powell(s, y, -eta * g)
        keep = started & resolved(s, y, before, after)
        memory = remember(state.memory, s, y, keep, "scalar")
        info = StepInfo.of(
            params,
            loss=value,
            accepted=started,
            gain_ratio=quotient(value_before - value_after, -jnp.vdot(before, s)),
            step_size=eta,
            step_norm=tree_norm(s),
            grad_norm=grad_norm,
            gradients=3,
        )
        steps = state.steps + started.astype(jnp.int32)
        return update, StochasticLBFGSState(memory, steps, info)
