"""The regularised gradient: a gradient method whose step size is found by accepting and rejecting."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree, Scalar

from .._check import number
from .._tree import tree_add, tree_dtype, tree_norm, tree_scale, tree_where
from ._method import AbstractMethod, StepInfo, keep, quotient


class RegularisedGradientState(NamedTuple):
    weight: Scalar  # lambda / scale
    scale: Scalar  # norm of the first gradient; 0 before it
    info: StepInfo


class RegularisedGradientMethod(AbstractMethod):
    """Minimise a regularised first-order model; accept if the loss of the same minibatch agrees.

        m(s) = f + g^T s + lambda |s|^2 / 2,      s = -g / lambda
        rho = (f(theta) - f(theta + s)) / (m(0) - m(s)),      m(0) - m(s) = |g|^2 / (2 lambda)
        accepted if rho >= eta:   lambda = max(lambda / gamma, lambda_min),      otherwise lambda *= gamma

    Where the model promises less than the rounding of f nothing can be judged: a step that fails there leaves lambda as
    it is. See `sciml_opt.regularised_gradient`.
    """

    structured: ClassVar[bool] = False

    init_weight: Array
    min_weight: Array
    acceptance: Array
    factor: Array

    def __init__(
        self,
        init_weight: ArrayLike = 10.0,
        *,
        min_weight: ArrayLike = 1e-8,
        acceptance: ArrayLike = 0.1,
        factor: ArrayLike = 2.0,
    ):
        self.init_weight = number("init_weight", init_weight, above=0)
        self.min_weight = number("min_weight", min_weight, above=0)
        self.acceptance = number("acceptance", acceptance, at_least=0, below=1)
        self.factor = number("factor", factor, above=1)

    def init(self, params: PyTree) -> RegularisedGradientState:
        dtype = tree_dtype(params)
        weight = jnp.maximum(self.init_weight.astype(dtype), self.min_weight.astype(dtype))
        return RegularisedGradientState(weight, jnp.zeros((), dtype), StepInfo.of(params))

    def step(
        self, loss: Callable[[PyTree], Scalar], params: PyTree, state: RegularisedGradientState
    ) -> tuple[PyTree, RegularisedGradientState]:
        value, grad = jax.value_and_grad(loss)(params)
        grad_norm = tree_norm(grad)
        scale = jnp.where(state.scale == 0, grad_norm, state.scale)
        damping = state.weight * scale

        s = tree_scale(-quotient(jnp.ones_like(damping), damping), grad)
        step_norm = tree_norm(s)
        predicted = 0.5 * grad_norm * step_norm  # |g|^2 would underflow in float32
        trial = loss(tree_add(params, s))
        rho = quotient(value - trial, predicted)
        accepted = (rho >= self.acceptance.astype(rho.dtype)) & (predicted > 0)
        judged = ~(predicted <= jnp.finfo(rho.dtype).eps * jnp.abs(value))

        factor = self.factor.astype(rho.dtype)
        smaller = jnp.maximum(state.weight / factor, self.min_weight.astype(rho.dtype))
        weight = jnp.where(accepted, smaller, jnp.where(judged, state.weight * factor, state.weight))
        info = StepInfo.of(
            params,
            loss=value,
            trial_loss=trial,
            accepted=accepted,
            damping=damping,
            gain_ratio=rho,
            step_norm=step_norm,
            grad_norm=grad_norm,
            evaluations=1,
            gradients=1,
        )
        started = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        update = tree_where(accepted & started, s, jax.tree.map(jnp.zeros_like, params))
        return update, keep(started, RegularisedGradientState(weight, scale, info), state)
