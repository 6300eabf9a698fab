"""Levenberg-Marquardt with geodesic acceleration."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import number, one_of, schedule
from .._tree import (
    tree_add,
    tree_all_finite,
    tree_dot,
    tree_dtype,
    tree_norm,
)
from ..globalization import delayed_gratification_update, nielsen_update
from ..linear import Solve, factorize, floored
from ._geodesic import geodesic_step
from ._method import AbstractMethod, Loss, StepInfo, keep, lin_is_finite, quotient, solution, solve_info

DampingRule = Literal["nielsen", "delayed_gratification", "fixed"]
LevenbergMarquardtScaling = Literal["identity", "marquardt", "minpack"]
Schedule = Callable[[Int[Array, ""]], Scalar]


class LevenbergMarquardtState(NamedTuple):
    damping: Scalar  # lambda; set from the first Jacobian
    growth: Scalar  # nu of the Nielsen rule
    size: Scalar  # the unit of lambda: the largest diagonal entry of D^-1 J^T J at the start
    columns: PyTree  # the largest squared column norms so far; None for another scaling than "minpack"
    steps: Int[Array, ""]
    info: StepInfo


class LevenbergMarquardtMethod(AbstractMethod):
    """Levenberg-Marquardt: a damped Gauss-Newton step, accepted only if it decreases the loss.

        (J^T J + lambda D) v = -J^T r
        (J^T J + lambda D) a = -J^T r_vv,     r_vv = d^2/dt^2 r(theta + t v) at t = 0
        s = v + a/2  if |a|_D <= limit |v|_D,  else v
        rho = (L(theta) - L(theta + s)) / (0.5 v^T (lambda D v - g))

    and lambda by `nielsen_update`, `delayed_gratification_update` or a schedule. Both solves share one factorisation.
    See `sciml_opt.levenberg_marquardt`.
    """

    init_damping: Array
    acceleration_limit: Array
    schedule: jax.tree_util.Partial | None
    rule: DampingRule = eqx.field(static=True)
    geodesic: bool = eqx.field(static=True)
    scaling: LevenbergMarquardtScaling = eqx.field(static=True)
    solve: Solve = eqx.field(static=True)

    def __init__(
        self,
        init_damping: ArrayLike = 1e-2,
        *,
        geodesic: bool = True,
        acceleration_limit: ArrayLike = 0.75,
        damping_rule: DampingRule | Schedule = "nielsen",
        scaling: LevenbergMarquardtScaling = "identity",
        solve: Solve = "auto",
    ):
        self.init_damping = number("init_damping", init_damping, above=0)
        self.acceleration_limit = number("acceleration_limit", acceleration_limit, above=0, finite=False)
        self.rule = "fixed" if callable(damping_rule) else one_of("damping_rule", damping_rule, get_args(DampingRule))
        self.schedule = schedule("damping_rule", damping_rule) if callable(damping_rule) else None
        self.geodesic = geodesic
        self.scaling = one_of("scaling", scaling, get_args(LevenbergMarquardtScaling))
        self.solve = one_of("solve", solve, get_args(Solve))

    def init(self, params: PyTree) -> LevenbergMarquardtState:
        one = jnp.ones((), tree_dtype(params))
        columns = jax.tree.map(jnp.zeros_like, params) if self.scaling == "minpack" else None
        return LevenbergMarquardtState(0 * one, 2 * one, one, columns, jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Loss, params: PyTree, state: LevenbergMarquardtState):
        lin = loss.linearize(params)
        dtype = state.damping.dtype
        first = state.steps == 0
        size, columns, scale = state.size, state.columns, None
        if self.scaling == "identity":  # another scaling makes the diagonal of D^-1 J^T J one
            size = lax.cond(first, lambda: lin.jacobian.largest_column_square(), lambda: size)
        if self.scaling == "minpack":
            squares = jax.tree.map(jnp.square, lin.jacobian.column_norms())
            columns = jax.tree.map(jnp.maximum, columns, squares)
            scale = floored(columns)
        damping = jnp.where(first, self.init_damping.astype(dtype) * size, state.damping)
        if self.schedule is not None:
            damping = self.init_damping.astype(dtype) * size * jnp.asarray(self.schedule(state.steps)).astype(dtype)
        factor = factorize(
            lin.jacobian,
            damping,
            marquardt=self.scaling == "marquardt",
            scale=scale,
            solve=self.solve,
            residual_form=lin.residual is not None,
        )

        solves = [solution(factor, lin)]
        v = step = jax.tree.map(jnp.negative, solves[0].value)
        accelerated = jnp.zeros((), bool)
        if self.geodesic and lin.residual is not None:
            limit = self.acceleration_limit.astype(dtype)
            step, accelerated, solved = geodesic_step(loss, params, factor, v, limit)
            solves.append(solved)

        trial = loss(tree_add(params, step))
        scaled = jax.tree.map(jnp.multiply, factor.scale, v)
        predicted = 0.5 * (factor.damping * tree_dot(v, scaled) - tree_dot(v, lin.grad))
        gain_ratio = quotient(lin.value - trial, predicted)
        # a non-finite start moves nothing, not even lambda
        started = lin_is_finite(lin) & jnp.isfinite(damping) & tree_all_finite((size, columns))
        accepted = started & jnp.isfinite(trial) & (trial < lin.value)
        growth = state.growth
        if self.rule == "nielsen":
            damping, growth = nielsen_update(factor.damping, growth, gain_ratio, accepted, size)
        elif self.rule == "delayed_gratification":
            damping = delayed_gratification_update(factor.damping, accepted, size)
        update = jax.tree.map(lambda s: jnp.where(accepted, s, jnp.zeros_like(s)), step)
        info = StepInfo.of(
            params,
            loss=lin.value,
            trial_loss=trial,
            accepted=accepted,
            damping=factor.damping,
            gain_ratio=gain_ratio,
            step_norm=tree_norm(step),
            grad_norm=tree_norm(lin.grad),
            accelerated=accelerated,
            evaluations=1,
            linearizations=1,
            clipped=lin.clipped,
            **solve_info(factor, *solves),
        )
        new = LevenbergMarquardtState(damping, growth, size, columns, state.steps + 1, info)
        return update, keep(started, new, state)
