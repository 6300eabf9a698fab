"""Hessian-free optimization: Gauss-Newton by conjugate gradients, with Martens damping."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import number
from .._tree import ravel, tree_add, tree_all_finite, tree_dot, tree_dtype, tree_norm, tree_where, unravel
from ..linear import conjugate_gradient
from ._method import AbstractMethod, Loss, StepInfo

MOST_ITERATIONS = 250
DECAY = 0.95  # of the last solution as the first iterate


class HessianFreeState(NamedTuple):
    damping: Scalar  # lambda; set from the first Jacobian
    size: Scalar  # the unit of lambda: the largest diagonal entry of J^T J at the start
    direction: PyTree  # the last solution
    steps: Int[Array, ""]
    info: StepInfo


class HessianFreeMethod(AbstractMethod):
    """Hessian-free: a damped Gauss-Newton step by truncated conjugate gradients, accepted if it decreases the loss.

        (J^T J + lambda I) d = -g                       by CG from 0.95 times the last d
        rho = (L(theta) - L(theta + d)) / (-<g, d> - 0.5 |J d|^2)
        lambda *= 3/2 if rho < 1/4,     lambda *= 2/3 if rho > 3/4

    See `sciml_opt.hessian_free`.
    """

    init_damping: Array
    rtol: Array

    def __init__(self, init_damping: ArrayLike = 0.1, *, rtol: ArrayLike = 1e-4):
        self.init_damping = number("init_damping", init_damping, above=0)
        self.rtol = number("rtol", rtol, above=0)

    def init(self, params: PyTree) -> HessianFreeState:
        one = jnp.ones((), tree_dtype(params))
        return HessianFreeState(0 * one, one, jax.tree.map(jnp.zeros_like, params), jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Loss, params: PyTree, state: HessianFreeState) -> tuple[PyTree, HessianFreeState]:
        lin = loss.linearize(params)
        J, dtype, first = lin.jacobian.for_products(), state.damping.dtype, state.steps == 0
        size = lax.cond(first, lambda: lin.jacobian.largest_column_square(), lambda: state.size)
        damping = jnp.where(first, self.init_damping.astype(dtype) * size, state.damping)

        def curvature(v: Array) -> Array:
            return ravel(J.rmv(J.mv(unravel(v, params)))) + damping * v

        found = conjugate_gradient(
            curvature,
            -ravel(lin.grad),
            guess=DECAY * ravel(state.direction),
            rtol=self.rtol,
            max_steps=MOST_ITERATIONS,
        )
        direction = unravel(found.value, params)

        trial = loss(tree_add(params, direction))
        gain_ratio = (lin.value - trial) / (-tree_dot(lin.grad, direction) - 0.5 * jnp.sum(J.mv(direction) ** 2))
        accepted = jnp.isfinite(trial) & (trial < lin.value)
        update = jax.tree.map(lambda d: jnp.where(accepted, d, jnp.zeros_like(d)), direction)
        # written so that a trial that is not finite raises lambda
        factor = jnp.where(gain_ratio > 0.75, 2 / 3, jnp.where(gain_ratio >= 0.25, 1.0, 1.5)).astype(dtype)
        started = jnp.isfinite(lin.value) & jnp.isfinite(damping) & tree_all_finite(direction)
        info = StepInfo.of(
            params,
            loss=lin.value,
            trial_loss=trial,
            accepted=accepted,
            damping=damping,
            gain_ratio=gain_ratio,
            step_norm=tree_norm(direction),
            grad_norm=tree_norm(lin.grad),
            evaluations=1,
            linearizations=1,
            products=found.iterations + 2,
            iterations=found.iterations,
            linear_residual=found.relative_residual,
            clipped=lin.clipped,
        )
        return update, HessianFreeState(
            damping=jnp.where(started, jnp.clip(damping * factor, 1e-20 * size, 1e6 * size), state.damping),
            size=jnp.where(started, size, state.size),
            direction=tree_where(started, direction, state.direction),
            steps=state.steps + started.astype(jnp.int32),
            info=info,
        )
