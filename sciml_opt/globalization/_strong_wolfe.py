"""Strong Wolfe line search."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from .._tree import tree_add, tree_dtype, tree_scale
from ._line_search import LineSearch


class _Point(NamedTuple):
    eta: Scalar
    value: Scalar
    slope: Scalar


class _State(NamedTuple):
    low: _Point  # the least value so far
    high: _Point  # the other end of the bracket; at infinity until there is one
    eta: Scalar  # the next trial
    trials: Int[Array, ""]
    done: Bool[Array, ""]


def strong_wolfe_search(
    loss: Callable[[PyTree], Scalar],
    params: PyTree,
    direction: PyTree,
    value: Scalar,
    slope: Scalar,
    sufficient: float = 1e-4,
    curvature: float = 0.9,
    trials: int = 20,
) -> LineSearch:
    """Bracket and zoom, from `eta = 1`, to a step size with sufficient decrease and a flat slope.

        phi(eta) <= phi(0) + c1 eta phi'(0)     and     |phi'(eta)| <= c2 |phi'(0)|,     phi(eta) = L(theta + eta d)

    The bracket doubles until it holds such a point; inside, the next trial is the minimiser of the cubic through both
    ends, or their middle where the cubic is near an end or an end is not finite. Where `phi(eta)` and `phi(0)` differ
    by rounding only, the first condition becomes `phi'(eta) <= (2 c1 - 1) phi'(0)`, which agrees with it on a parabola
    (the approximate Wolfe condition). The step never increases the loss: the best trial, or 0, is returned when none
    satisfies both.

    **Arguments:** `value` is `L(params)`, `slope` is `<grad, d>`, negative (otherwise the step is 0); `sufficient` is
    c1, `curvature` is c2, `0 < c1 < c2 < 1`.

    **Cost:** a trial is one forward derivative of the loss, counted as two evaluations; at most `trials`.

    Source: Nocedal and Wright, Numerical Optimization, algorithms 3.5 and 3.6; Hager and Zhang (2005),
    doi:10.1137/030601880.
    """
    one = jnp.ones((), tree_dtype(params))
    rounding = 10 * jnp.finfo(one.dtype).eps * jnp.abs(value)

    def line(eta):
        return loss(tree_add(params, tree_scale(eta, direction)))

    def search(state: _State):
        return ~state.done & (state.trials < trials)

    def body(state: _State) -> _State:
        low, high, eta = state.low, state.high, state.eta
        trial = _Point(eta, *jax.jvp(line, (eta,), (one,)))
        finite = jnp.isfinite(trial.value) & jnp.isfinite(trial.slope)
        rounded = jnp.abs(trial.value - value) <= rounding
        decreases = trial.value <= value + sufficient * eta * slope
        decreases = decreases | (rounded & (trial.slope <= (2 * sufficient - 1) * slope))
        flat = jnp.abs(trial.slope) <= -curvature * slope
        better = finite & decreases & (trial.value < low.value)
        # at rounding level a value that is no better ends the search as well: more trials would compare noise
        done = finite & decreases & flat & (better | rounded)
        # a minimiser lies between `low` and the trial if the trial is too high, or if it rises towards `high`
        overshot = better & (trial.slope * jnp.sign(high.eta - low.eta) >= 0)
        high = _choose(better, _choose(overshot, low, high), trial)
        low = _choose(better, trial, low)
        return _State(low, high, _between(low, high), state.trials + 1, done)

    start = _Point(0 * one, value, slope)
    first = _State(start, _Point(jnp.inf * one, value, slope), one, jnp.int32(0), ~(slope < 0) | ~jnp.isfinite(value))
    last = lax.while_loop(search, body, first)
    return LineSearch(last.low.eta, last.low.value, 2 * last.trials, jnp.int32(0))


def _between(low: _Point, high: _Point) -> Scalar:
    """The minimiser of the cubic with these values and slopes, if it is well inside; the middle, or the double."""
    width = high.eta - low.eta
    d1 = low.slope + high.slope - 3 * (high.value - low.value) / width
    size = jnp.maximum(jnp.abs(d1), jnp.maximum(jnp.abs(low.slope), jnp.abs(high.slope)))  # squares may overflow
    d2 = jnp.sign(width) * size * jnp.sqrt((d1 / size) ** 2 - (low.slope / size) * (high.slope / size))
    part = 1 - (high.slope + d2 - d1) / (high.slope - low.slope + 2 * d2)
    inside = (part >= 0.1) & (part <= 0.9)  # false for a NaN
    return jnp.where(jnp.isfinite(width), low.eta + jnp.where(inside, part, 0.5) * width, 2 * low.eta)


def _choose(condition: Bool[Array, ""], a: _Point, b: _Point) -> _Point:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
