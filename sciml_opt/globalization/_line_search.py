"""Line searches on `phi(eta) = L(theta + eta d)`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree, Scalar

from .._tree import tree_add, tree_dtype, tree_scale


class LineSearch(NamedTuple):
    """`step_size` is 0 when no trial was good enough; `value = L(theta + step_size d)`; the work done."""

    step_size: Scalar
    value: Scalar
    evaluations: Int[Array, ""]
    gradients: Int[Array, ""]


def grid_search(
    loss: Callable[[PyTree], Scalar], params: PyTree, direction: PyTree, value: Scalar, halvings: int = 30
) -> LineSearch:
    """The best of `eta = 2^0, 2^-1, ..., 2^-halvings` and of the zero step.

    **Arguments:** `value` is `L(params)`, the value of the zero step. Non-finite trials lose.

    **Cost:** `halvings + 1` evaluations of the loss, one after the other (memory of one).

    Source: arXiv:2302.13163, with the zero step added.
    """
    sizes = 0.5 ** jnp.arange(halvings + 1, dtype=tree_dtype(params))
    values = lax.map(lambda eta: loss(tree_add(params, tree_scale(eta, direction))), sizes)
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    best = jnp.argmin(values)
    better = jnp.isfinite(value) & (values[best] < value)
    step_size = jnp.where(better, sizes[best], jnp.zeros_like(sizes[0]))
    return LineSearch(step_size, jnp.where(better, values[best], value), jnp.int32(halvings + 1), jnp.int32(0))


def armijo_search(
    loss: Callable[[PyTree], Scalar],
    params: PyTree,
    direction: PyTree,
    value: Scalar,
    slope: Scalar,
    sufficient: float = 1e-4,
    halvings: int = 30,
) -> LineSearch:
    """Backtracking from `eta = 1` by halving until `L(theta + eta d) <= L(theta) + c eta <grad, d>`.

    **Arguments:** `value` is `L(params)`, `slope` is `<grad, d>` and should be negative, `sufficient` is `c`.
    The step is zero if no trial passes within `halvings`.

    **Cost:** one evaluation of the loss a trial.

    Source: Nocedal and Wright, Numerical Optimization, section 3.1.
    """
    one = jnp.ones((), tree_dtype(params))

    def trial(eta):
        return loss(tree_add(params, tree_scale(eta, direction)))

    def passes(eta, trial_value):
        decreases = (trial_value <= value + sufficient * eta * slope) & (trial_value < value)
        return jnp.isfinite(value) & jnp.isfinite(trial_value) & decreases

    def search(carry):
        eta, trial_value, count = carry
        return ~passes(eta, trial_value) & (count <= halvings)

    def halve(carry):
        eta, _, count = carry
        return 0.5 * eta, trial(0.5 * eta), count + 1

    eta, trial_value, count = jax.lax.while_loop(search, halve, (one, trial(one), jnp.int32(1)))
    passed = passes(eta, trial_value)
    return LineSearch(jnp.where(passed, eta, 0 * one), jnp.where(passed, trial_value, value), count, jnp.int32(0))
