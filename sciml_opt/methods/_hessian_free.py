"""Hessian-free optimization: Gauss-Newton by conjugate gradients, with Martens damping."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import number
from .._tree import ravel, tree_add, tree_dot, tree_dtype, tree_norm, unravel
from ..linear import conjugate_gradient
from ._method import AbstractMethod, Loss, StepInfo, keep, quotient

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
    cg_rtol: Array

    def __init__(self, init_damping: ArrayLike = 0.1, *, cg_rtol: ArrayLike = 1e-4):
        self.init_damping = number("init_damping", init_damping, above=0)
        self.cg_rtol = number("cg_rtol", cg_rtol, above=0)

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

        g, guess = ravel(lin.grad), DECAY * ravel(state.direction)
        lower = jnp.vdot(g, guess) + 0.5 * jnp.vdot(guess, curvature(guess)) < 0  # than from zero, in the model
        found = conjugate_gradient(
            curvature,
            -g,
            guess=jnp.where(lower, guess, 0),
            rtol=self.cg_rtol,
            max_steps=MOST_ITERATIONS,
        )
        usable = jnp.all(jnp.isfinite(found.value))
        direction = unravel(jnp.where(usable, found.value, 0), params)

        trial = loss(tree_add(params, direction))
        predicted = -tree_dot(lin.grad, direction) - 0.5 * jnp.sum(J.mv(direction) ** 2)
        gain_ratio = jnp.where(predicted > 0, quotient(lin.value - trial, predicted), 0)
        started = jnp.isfinite(lin.value) & jnp.isfinite(damping)
        accepted = started & jnp.isfinite(trial) & (trial < lin.value)
        update = jax.tree.map(lambda d: jnp.where(accepted, d, jnp.zeros_like(d)), direction)
        # written so that a trial that is not finite raises lambda
        factor = jnp.where(gain_ratio > 0.75, 2 / 3, jnp.where(gain_ratio >= 0.25, 1.0, 1.5)).astype(dtype)
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
            products=found.iterations + 3,
            iterations=found.iterations,
            linear_residual=found.relative_residual,
            clipped=lin.clipped,
        )
        damping = jnp.clip(damping * factor, 1e-20 * size, 1e6 * size)
        return update, keep(started, HessianFreeState(damping, size, direction, state.steps + 1, info), state)
