"""Strong Wolfe line search."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, PyTree, Scalar

from .._tree import tree_add, tree_dot, tree_dtype, tree_scale, tree_where
from ._line_search import LineSearch


class _Point(NamedTuple):
    eta: Scalar
    value: Scalar
    slope: Scalar
    grad: PyTree  # None where only the slope is asked for


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

    Until a bracket holds such a point the trials grow, to the zero of the secant through the last two slopes, by a
    factor of 2 to 5. Inside, the next trial is the minimiser of the cubic through both ends, at least a tenth of the
    bracket away from them, or the middle where an end is not finite. Where `phi(eta)` and `phi(0)` differ by rounding
    only, the first condition becomes `phi'(eta) <= (2 c1 - 1) phi'(0)`, which agrees with it on a parabola (the
    approximate Wolfe condition), and of equal values the one with the flatter slope is the better. The step never
    increases the loss: the best trial, or 0, is returned when none satisfies both.

    **Arguments:** `value` is `L(params)`, `slope` is `<grad, d>`, negative (otherwise the step is 0); `sufficient` is
    c1, `curvature` is c2, `0 < c1 < c2 < 1`.

    **Cost:** a trial is one forward derivative of the loss, counted as two evaluations; at most `trials`.

    Source: Nocedal and Wright, Numerical Optimization, algorithms 3.5 and 3.6; Hager and Zhang (2005),
    doi:10.1137/030601880.
    """
    one = jnp.ones((), tree_dtype(params))

    def trial(eta):
        def line(eta):
            return loss(tree_add(params, tree_scale(eta, direction)))

        value, slope = jax.jvp(line, (eta,), (one,))
        return _Point(eta, value, slope, None)

    last = _search(trial, _Point(0 * one, value, slope, None), value, sufficient, curvature, trials)
    return LineSearch(last.low.eta, last.low.value, 2 * last.trials, jnp.int32(0))


def strong_wolfe_gradient_search(
    loss: Callable[[PyTree], Scalar],
    params: PyTree,
    direction: PyTree,
    value: Scalar,
    grad: PyTree,
    ceiling: Scalar | None = None,
    sufficient: float = 1e-4,
    curvature: float = 0.9,
    trials: int | Int[Array, ""] = 20,
) -> tuple[LineSearch, PyTree]:
    """`strong_wolfe_search`, and the gradient where it ends, for methods that go on from there.

    In float32 a gradient is known long after its decrease of the loss is not, and a search that insists on lower values
    is caught at a point whose rounding happens to be low. Where the loss is at most `ceiling`, and no further from
    `value` than that, the slopes alone decide.

    **Arguments:** `ceiling`, the value that rounding may raise the loss to, by default `value`.

    **Returns:** the search, and `grad L(theta + eta d)` (`grad` itself for a step of 0).

    **Cost:** one value and gradient a trial, at most `trials`; it keeps three gradients.
    """

    def trial(eta):
        value, grad = jax.value_and_grad(loss)(tree_add(params, tree_scale(eta, direction)))
        return _Point(eta, value, tree_dot(grad, direction), grad)

    start = _Point(jnp.zeros((), tree_dtype(params)), value, tree_dot(grad, direction), grad)
    last = _search(trial, start, value if ceiling is None else ceiling, sufficient, curvature, trials)
    return LineSearch(last.low.eta, last.low.value, jnp.int32(0), last.trials), last.low.grad


def _rounding(value: Scalar) -> Scalar:
    """What two values may differ by through rounding: second derivatives cancel, and lose a digit or two."""
    return 100 * jnp.finfo(value.dtype).eps * jnp.abs(value)


def _search(
    trial_at: Callable[[Scalar], _Point],
    start: _Point,
    ceiling: Scalar,
    sufficient: float,
    curvature: float,
    trials: int | Int[Array, ""],
) -> _State:
    """`ceiling`, the highest value at which slopes alone may decide."""
    value, slope = start.value, start.slope
    one = jnp.ones_like(start.eta)
    rounding = jnp.maximum(_rounding(value), ceiling - value)

    def unfinished(state: _State):
        return ~state.done & (state.trials < trials)

    def body(state: _State) -> _State:
        low, high, eta = state.low, state.high, state.eta
        trial = trial_at(eta)
        finite = jnp.isfinite(trial.value) & jnp.isfinite(trial.slope)
        rounded = jnp.abs(trial.value - value) <= rounding
        by_slope = rounded & (trial.slope <= (2 * sufficient - 1) * slope)
        decreases = by_slope | (trial.value <= value + sufficient * eta * slope)
        flat = jnp.abs(trial.slope) <= -curvature * slope
        flatter = (trial.value == low.value) & (jnp.abs(trial.slope) < jnp.abs(low.slope))
        better = finite & decreases & ((trial.value < low.value) | flatter)
        better = better | (finite & by_slope & flat & (trial.value <= ceiling) & (low.eta == 0))
        # at rounding level a value that is no better ends the search as well, if it has a better one to return
        done = finite & decreases & flat & (better | (rounded & (low.eta > 0)))
        # a minimiser lies between `low` and the trial if the trial is too high, or if it rises towards `high`
        overshot = better & (trial.slope * jnp.sign(high.eta - low.eta) >= 0)
        growing = better & ~overshot & ~jnp.isfinite(high.eta)
        beyond = _beyond(low, trial)
        high = tree_where(better, tree_where(overshot, low, high), trial)
        low = tree_where(better, trial, low)
        return _State(low, high, jnp.where(growing, beyond, _between(low, high)), state.trials + 1, done)

    first = _State(start, start._replace(eta=jnp.inf * one), one, jnp.int32(0), ~(slope < 0) | ~jnp.isfinite(value))
    return lax.while_loop(unfinished, body, first)


def _beyond(previous: _Point, last: _Point) -> Scalar:
    """The zero of the secant through both slopes, 1 to 4 times their distance beyond the last."""
    part = last.slope / (previous.slope - last.slope)
    part = jnp.where(part >= 0, jnp.clip(part, 1, 4), 4)  # a slope that gets steeper says nothing but "further"
    return last.eta + part * (last.eta - previous.eta)


def _between(low: _Point, high: _Point) -> Scalar:
    """The minimiser of the cubic with these values and slopes, at least a tenth away from both ends; or the middle."""
    width = high.eta - low.eta
    d1 = low.slope + high.slope - 3 * (high.value - low.value) / width
    size = jnp.maximum(jnp.abs(d1), jnp.maximum(jnp.abs(low.slope), jnp.abs(high.slope)))  # squares may overflow
    d2 = jnp.sign(width) * size * jnp.sqrt((d1 / size) ** 2 - (low.slope / size) * (high.slope / size))
    part = 1 - (high.slope + d2 - d1) / (high.slope - low.slope + 2 * d2)
    return low.eta + jnp.where(jnp.isfinite(part), jnp.clip(part, 0.1, 0.9), 0.5) * width
