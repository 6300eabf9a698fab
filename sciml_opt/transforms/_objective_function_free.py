"""Optimisation without function values: AdaGrad as a trust-region method."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, PyTree

from .._check import number, parameters
from .._tree import tree_all_finite, tree_dot, tree_dtype, tree_scale, tree_where
from ._adapter import any_function


class ObjectiveFunctionFreeState(NamedTuple):
    """Carried from step to step: the sums. Of the last step (zero before the first): the weights and the box."""

    squares: PyTree  # sum of g_i^2, shaped like the parameters; the scalar sum of |g|^2 if `norm`
    weights: PyTree  # w, alike
    radius: PyTree  # Delta, shaped like the parameters, in their units


class _Rule(eqx.Module):
    scale: Array
    sigma: Array
    mu: Array
    norm: bool = eqx.field(static=True)
    curvature: bool = eqx.field(static=True)


def objective_function_free(
    scale: ArrayLike = 1.0,
    *,
    sigma: ArrayLike = 1e-2,
    mu: ArrayLike = 0.5,
    norm: bool = False,
    curvature: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """AdaGrad as a trust-region method that never evaluates the objective (ASTR1).

        w_i = (sigma + sum_j g_ji^2)^mu,         Delta_i = scale |g_i| / w_i,         s^L_i = -sign(g_i) Delta_i
        step = gamma s^L,      gamma = 1, or with curvature min(1, |g^T s^L| / (s^L^T H s^L)) if s^L^T H s^L > 0

    The box `|s_i| <= Delta_i` is the trust region and `s^L` the minimum of the linear model in it: with `mu = 1/2`
    AdaGrad. With `curvature` the step is the Cauchy point of the quadratic model in the box. The sums are over all
    gradients since `init`. Convergence needs no values, and no Lipschitz constant: `min_j |g_j|` falls like
    `1/sqrt(k)`.

    In float32 a square that is smaller than 6e-8 times the sum does not change it. After k steps a sum is therefore too
    small by no more than `6e-8 k` of itself (6 % in a million steps), and a weight by the `mu`-th part of that; squares
    of gradients below 1e-22 are zero. No gradient is left out of the step itself.

    **Arguments:**

    - `scale`: the learning rate, in units of the parameters: the first step is about as long in every coordinate.
    - `sigma`: in units of squared gradients; keeps the first steps along small gradients short.
    - `mu`: in (0, 1).
    - `norm`: one weight, `w = (sigma + sum_j |g_j|^2)^mu`, for all parameters (AdaGrad-norm).
    - `curvature`: use the true Hessian H of `value_fn`, through one product with `s^L`.

    **Returns:** an optax transformation whose updates are steps. Its state has the trees `weights` (a scalar if `norm`)
    and `radius`, the box of the last step, for a coarser level to stay in. After a gradient that is not finite, or
    whose square overflows, the update is zero and the state as it was.

    **Errors:** `ValueError` for numbers out of range and `TypeError` for parameters that are not real floats; with
    `curvature`, `TypeError` if `value_fn` is no function and `ValueError` without `params`.

    **Cost:** a few operations a parameter; with `curvature` a Hessian-vector product (two to four losses). Memory of
    the three trees.

    Source: Gratton, Jerad and Toint, arXiv:2203.01647; Gratton, Kopanicakova and Toint, arXiv:2302.07049, of which this
    is the single level; Ward, Wu and Bottou, arXiv:1806.01811, for `norm`.

    **Example:**

    ```python
    tx = so.objective_function_free(norm=True)
    state = tx.init(params)
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
    ```
    """
    rule = _Rule(
        number("scale", scale, above=0),
        number("sigma", sigma, above=0),
        number("mu", mu, above=0, below=1),
        norm,
        curvature,
    )
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init, rule), jax.tree_util.Partial(_update, rule)
    )


def _init(rule: _Rule, params: PyTree) -> ObjectiveFunctionFreeState:
    dtype = tree_dtype(parameters(params))
    zeros = jax.tree.map(jnp.zeros_like, params)
    sums = jnp.zeros((), dtype) if rule.norm else zeros
    return ObjectiveFunctionFreeState(sums, sums, zeros)


def _update(rule: _Rule, updates, state: ObjectiveFunctionFreeState, params=None, *, value_fn=None, **extra_args):
    del extra_args
    g = updates
    if rule.norm:
        squares = state.squares + tree_dot(g, g)
    else:
        squares = jax.tree.map(lambda total, g: total + g**2, state.squares, g)
    weights = jax.tree.map(
        lambda total: (rule.sigma.astype(total.dtype) + total) ** rule.mu.astype(total.dtype), squares
    )
    w = jax.tree.map(lambda g: weights.astype(g.dtype), g) if rule.norm else weights
    radius = jax.tree.map(lambda g, w: rule.scale.astype(g.dtype) * jnp.abs(g) / w, g, w)
    step = jax.tree.map(lambda g, box: -jnp.sign(g) * box, g, radius)
    if rule.curvature:
        step = tree_scale(_cauchy(any_function(value_fn, params), params, g, step), step)
    new = ObjectiveFunctionFreeState(squares, weights, radius)
    usable = tree_all_finite((step, new))
    return tree_where(usable, step, jax.tree.map(jnp.zeros_like, step)), tree_where(usable, new, state)


def _cauchy(loss, params: PyTree, g: PyTree, step: PyTree) -> Array:
    """`gamma`, the step size in [0, 1] that minimises the quadratic model along the step."""
    slope = jnp.abs(tree_dot(g, step))
    curvature = tree_dot(step, jax.jvp(jax.grad(loss), (params,), (step,))[1])
    convex = curvature > 0
    gamma = jnp.minimum(slope / jnp.where(convex, curvature, jnp.ones_like(curvature)), 1)
    gamma = jnp.where(convex, gamma, jnp.ones_like(gamma))
    return jnp.where(jnp.isfinite(curvature), gamma, curvature)  # a step that is not finite is not taken
