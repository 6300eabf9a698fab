"""The target-ratio trust region: the radius is the one at which the decrease ratio falls to a small target."""

from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray, PyTree, Scalar

from .._check import count, number, one_of
from .._tree import tree_add, tree_dtype, tree_norm, tree_scale
from ..linear import RadiusModel
from ..linearization import StructuredJacobian
from ._method import AbstractMethod, Loss, StepInfo, keep, lin_is_finite, quotient, residual_of

Decomposition = Literal["svd", "gram"]
SPAN = 3.0  # the trial radii reach from Delta / 3 to 3 Delta
FAST, SLOW = 0.1, 0.03  # averages of log10(lambda): over the last 10 and the last 30 steps
TRAVEL = 60  # steps before the target may rise


class TargetRatioState(NamedTuple):
    radius: Scalar
    fast: Scalar  # averages of log10(lambda / sigma_1^2)
    slow: Scalar
    late: Bool[Array, ""]  # whether the damping has bottomed out, and the late target holds
    steps: Int[Array, ""]
    info: StepInfo


class TargetRatioMethod(AbstractMethod):
    """Trust region whose radius is measured anew at each step.

        s(Delta) = argmin of 0.5 |r + J s|^2 within |s| <= Delta
        rho(Delta) = (L(theta) - L(theta + s)) / (m(0) - m(s)),     at radii from Delta_0 / 3 to 3 Delta_0
        Delta = where the running minimum of rho falls below the target

    See `sciml_opt.target_ratio_trust_region`.
    """

    target: Array
    late_target: Array
    radii: int = eqx.field(static=True)
    decomposition: Decomposition = eqx.field(static=True)
    sketch_rows: int | None = eqx.field(static=True)
    sketch_columns: int | None = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(
        self,
        target: ArrayLike = 0.075,
        late_target: ArrayLike = 0.5,
        *,
        radii: int = 12,
        decomposition: Decomposition = "svd",
        sketch_rows: int | None = None,
        sketch_columns: int | None = None,
        seed: int = 0,
    ):
        self.target = number("target", target, above=0, below=1)
        self.late_target = number("late_target", late_target, above=0, below=1)
        self.radii = count("radii", radii)
        if radii < 2:
            raise ValueError(f"radii must be at least 2, got {radii}.")
        self.decomposition = one_of("decomposition", decomposition, get_args(Decomposition))
        self.sketch_rows = None if sketch_rows is None else count("sketch_rows", sketch_rows)
        self.sketch_columns = None if sketch_columns is None else count("sketch_columns", sketch_columns)
        self.seed = seed

    def init(self, params: PyTree) -> TargetRatioState:
        one = jnp.ones((), tree_dtype(params))
        return TargetRatioState(
            radius=one,
            fast=0 * one,
            slow=0 * one,
            late=jnp.zeros((), bool),
            steps=jnp.int32(0),
            info=StepInfo.of(params),
        )

    def step(self, loss: Loss, params: PyTree, state: TargetRatioState) -> tuple[PyTree, TargetRatioState]:
        lin = loss.linearize(params)
        residual = residual_of(lin, "The target-ratio trust region")
        dtype = state.radius.dtype
        model = self._model(lin.jacobian, residual, jax.random.fold_in(jax.random.key(self.seed), state.steps))
        target = jnp.where(state.late, self.late_target, self.target).astype(dtype)

        def trial(radius: Scalar):
            damping = model.damping(radius)
            step = model.step(damping, params)
            value = loss(tree_add(params, step))
            ratio = (lin.value - value) / model.decrease(damping)
            return jnp.where(jnp.isfinite(ratio), jnp.clip(ratio, -1, 1), -1), damping, step, value

        radii = state.radius * SPAN ** jnp.linspace(-1, 1, self.radii, dtype=dtype)
        ratios = lax.cummin(lax.map(lambda radius: trial(radius)[0], radii))
        radius, passed = _crossing(radii, ratios, target)
        ratio, damping, step, value = trial(radius)
        # Between two radii the loss may jump: the one on the left has met the target.
        accepted = value < lin.value
        fallback = ~accepted & (passed > 0)
        radius = jnp.where(fallback, radii[jnp.maximum(passed - 1, 0)], radius)
        ratio, damping, step, value = lax.cond(fallback, lambda: trial(radius), lambda: (ratio, damping, step, value))
        started = lin_is_finite(lin) & jnp.isfinite(model.unit)  # a non-finite start moves nothing
        accepted = started & (value < lin.value)
        log_damping = jnp.log10(jnp.maximum(damping, jnp.finfo(dtype).eps ** 2))  # less is none
        # A rejection raises the damping of the next step by itself: it says nothing about the bottom.
        fast, slow = (
            jnp.where(accepted, jnp.where(state.steps == 0, log_damping, (1 - rate) * mean + rate * log_damping), mean)
            for mean, rate in ((state.fast, FAST), (state.slow, SLOW))
        )
        late = state.late | ((state.steps >= TRAVEL) & (fast > slow))
        scale = jnp.maximum(tree_norm(params), 1)
        eps = jnp.finfo(dtype).eps
        new_radius = jnp.clip(jnp.where(accepted, radius, radii[0]), eps * scale, 1e3 * scale)
        update = jax.tree.map(lambda s: jnp.where(accepted, s, jnp.zeros_like(s)), step)
        optimality = lin.jacobian.rmv(residual + lin.jacobian.mv(step))
        left = tree_add(optimality, tree_scale(damping * model.unit**2, step))
        info = StepInfo.of(
            params,
            loss=lin.value,
            trial_loss=value,
            accepted=accepted,
            damping=damping * model.unit**2,
            radius=radius,
            gain_ratio=ratio,
            step_norm=tree_norm(step),
            grad_norm=tree_norm(lin.grad),
            evaluations=self.radii + 1 + fallback.astype(jnp.int32),
            linearizations=1,
            products=2,
            linear_residual=quotient(tree_norm(left), tree_norm(lin.grad)),
            rung=fallback,
        )
        new = TargetRatioState(new_radius, fast, slow, late, state.steps + 1, info)
        return update, keep(started, new, state)

    def _model(self, jacobian: StructuredJacobian, residual: Float[Array, " N"], key: PRNGKeyArray) -> RadiusModel:
        if self.sketch_rows is not None or self.sketch_columns is not None:
            return RadiusModel.sketched(jacobian, residual, key, self.sketch_rows, self.sketch_columns)
        by = RadiusModel.by_svd if self.decomposition == "svd" else RadiusModel.by_gram
        return by(jacobian, residual)


def _crossing(radii: Float[Array, " n"], ratios: Float[Array, " n"], target: Scalar) -> tuple[Scalar, Int[Array, ""]]:
    """Where the falling `ratios` cross the target, log-linear between two radii; and how many radii meet it.

    The largest radius if all of them do, the smallest if none does.
    """
    n = radii.shape[0]
    passed = jnp.sum(ratios >= target, dtype=jnp.int32)
    left = jnp.clip(passed - 1, 0, n - 2)
    gap = ratios[left] - ratios[left + 1]
    share = jnp.clip((ratios[left] - target) / jnp.where(gap > 0, gap, 1), 0, 1)
    between = jnp.exp(jnp.log(radii[left]) + share * (jnp.log(radii[left + 1]) - jnp.log(radii[left])))
    return jnp.where(passed == 0, radii[0], jnp.where(passed == n, radii[-1], between)), passed
