"""Subsampled Newton: the full gradient, curvature on a random part of the points."""

from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree, Scalar

from .._check import number, one_of
from .._tree import ravel, tree_dot, tree_dtype, tree_norm, tree_scale, unravel
from ..globalization import step_size_damping
from ..linear import Solve, conjugate_gradient, factorize
from ._gauss_newton import DampedState
from ._method import AbstractMethod, Loss, StepInfo, keep, quotient, search_info, searched, solve_info

Curvature = Literal["gauss_newton", "hessian"]
RTOL, MOST_ITERATIONS = 1e-2, 100  # of conjugate gradients


class SubsampledNewtonMethod(AbstractMethod):
    """Subsampled Newton: an exact gradient, curvature on a random part `S` of the points, a line search.

        B = J_S^T J_S,  or the Hessian of the loss on S
        (B + lambda I) d = -grad L
        eta = first of 1, 1/2, 1/4, ... with L(theta + eta d) <= L(theta) + 1e-4 eta <grad L, d>

    with lambda by `step_size_damping`. The system with the Hessian is solved by conjugate gradients, as far as they
    meet positive curvature. See `sciml_opt.subsampled_newton`.
    """

    init_damping: Array
    fraction: float = eqx.field(static=True)
    curvature: Curvature = eqx.field(static=True)
    solve: Solve = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(
        self,
        fraction: float = 0.25,
        *,
        curvature: Curvature = "gauss_newton",
        init_damping: ArrayLike = 1e-2,
        solve: Solve = "auto",
        seed: int = 0,
    ):
        self.fraction = fraction
        self.curvature = one_of("curvature", curvature, get_args(Curvature))
        self.init_damping = number("init_damping", init_damping, above=0)
        self.solve = one_of("solve", solve, get_args(Solve))
        self.seed = seed

    def init(self, params: PyTree) -> DampedState:
        damping = self.init_damping.astype(tree_dtype(params))
        return DampedState(damping, jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Any, params: PyTree, state: DampedState):  # a `Loss` with `subsample`
        value, grad = jax.value_and_grad(loss)(params)
        part = loss.subsample(jax.random.fold_in(jax.random.key(self.seed), state.steps), self.fraction)
        find = self._gauss_newton if self.curvature == "gauss_newton" else self._hessian
        direction, curved, report = find(part, params, grad, state.damping)
        update, found = searched(loss, params, direction, value, grad, "armijo")
        predicted = -tree_dot(grad, update) - 0.5 * tree_dot(update, curved(update))
        searching = search_info(found, direction)
        info = StepInfo.of(
            params,
            loss=value,
            gain_ratio=quotient(value - found.value, predicted),
            grad_norm=tree_norm(grad),
            **searching | report | {"gradients": searching["gradients"] + 1},
        )
        damping = step_size_damping(state.damping, info.step_size, shrink=4.0, growth=4.0)
        started = jnp.isfinite(value) & jnp.isfinite(info.grad_norm)
        return update, keep(started, DampedState(damping, state.steps + 1, info), state)

    def _gauss_newton(self, part: Loss, params: PyTree, grad: PyTree, damping: Scalar):
        lin = part.linearize(params)
        factor = factorize(lin.jacobian, damping, relative=True, solve=self.solve, residual_form=False)
        solved = factor.solve_gradient(grad)
        report = {"damping": factor.damping, "linearizations": 1, "clipped": lin.clipped, **solve_info(factor, solved)}
        J = lin.jacobian
        return jax.tree.map(jnp.negative, solved.value), lambda v: J.rmv(J.mv(v)), report

    def _hessian(self, part: Loss, params: PyTree, grad: PyTree, damping: Scalar):
        def product(v: PyTree) -> PyTree:
            return jax.jvp(jax.grad(part), (params,), (v,))[1]

        b = -ravel(grad)
        size = tree_norm(product(tree_scale(1 / tree_norm(grad), grad)))  # the curvature along the gradient
        damping = damping * size
        found = conjugate_gradient(
            lambda v: ravel(product(unravel(v, params))) + damping * v, b, rtol=RTOL, max_steps=MOST_ITERATIONS
        )
        at_once = found.negative_curvature & (found.iterations == 1)  # then only the gradient is known
        report = {
            "damping": damping,
            "products": found.iterations + 2,
            "iterations": found.iterations,
            "linear_residual": found.relative_residual,
            "rung": found.negative_curvature,
        }
        return unravel(jnp.where(at_once, b / (size + damping), found.value), params), product, report
