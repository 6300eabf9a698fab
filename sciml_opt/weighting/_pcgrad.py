"""PCGrad: conflicting parts of the gradients projected away."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._check import parameters
from .._tree import tree_dtype
from ._term_gradients import as_updates, bound_terms, gradient_rows, unit


class PCGradState(NamedTuple):
    steps: Int[Array, ""]


def pcgrad(seed: int | Int[Array, ""] = 0) -> optax.GradientTransformationExtraArgs:
    """Projecting conflicting gradients (PCGrad), for the terms of an objective; first in a chain.

        g_i <- g_i - min(g_i^T g_j, 0) / |g_j|^2 g_j       for all j != i in random order,  from g_i = grad(w_i L_i)
        g = sum_i g_i

    with the original `g_j` on the right. Without conflicts it is the gradient; a term without gradient changes nothing.
    With three terms or more the sum may still conflict with one of them; two terms never do.

    **Arguments:** `seed` of the orders, which are new at every step.

    **Returns:** an optax transformation with an ascent direction; its `update` needs a bound objective as `value_fn`,
    and `params`. If any gradient is not finite the update is zero and the state stays.

    **Errors:** `TypeError` without a bound objective; `ValueError` if `updates` is not the gradient.

    **Cost:** of `K` terms with `P` parameters: one gradient, `4 K^2 P` flops; memory `3 K P`.

    Source: Yu et al., arXiv:2001.06782, algorithm 1.

    **Example:** `optax.chain(so.pcgrad(), optax.adam(1e-3))`.
    """
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init), jax.tree_util.Partial(_update, jax.random.key(seed))
    )


def _init(params: PyTree) -> PCGradState:
    tree_dtype(parameters(params))
    return PCGradState(jnp.int32(0))


def _update(key, updates, state: PCGradState, params=None, *, value_fn=None, grad=None, **extra):
    del extra
    rows = gradient_rows(bound_terms(value_fn, updates, params, grad), params)
    finite = jnp.all(jnp.isfinite(rows))
    direction = _without_conflicts(rows, jax.random.fold_in(key, state.steps))
    return as_updates(direction, finite, params), PCGradState(state.steps + finite.astype(jnp.int32))


def _without_conflicts(rows: Float[Array, "K P"], key: PRNGKeyArray) -> Float[Array, " P"]:
    count, units = len(rows), unit(rows)
    orders = jnp.argsort(jax.random.uniform(key, (count, count)), axis=1)  # a random order in every row

    def project(i, order):
        def against(g, j):
            conflict = jnp.minimum(jnp.vdot(g, units[j]), 0)
            return g - jnp.where(j == i, 0, conflict) * units[j], None

        return lax.scan(against, rows[i], order)[0]

    return jnp.sum(jax.vmap(project)(jnp.arange(count), orders), axis=0)
