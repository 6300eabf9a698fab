"""Damped Gauss-Newton, globalised by an Armijo line search."""

from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import number, one_of
from .._tree import tree_dot, tree_dtype, tree_norm, tree_scale, tree_size, tree_where
from ..globalization import Search, step_size_damping
from ..linear import DampedSolve, Solve, Solved, factorize
from ..linearization import Linearization
from ._method import AbstractMethod, Loss, StepInfo, keep, lin_is_finite, line_search_step, quotient, solution

GaussNewtonScaling = Literal["identity", "marquardt", "jacobi"]


class DampedState(NamedTuple):
    damping: Scalar  # relative to the largest diagonal entry of D^-1 J^T J
    steps: Int[Array, ""]
    info: StepInfo


def gauss_newton_direction(
    lin: Linearization, damping: Scalar, marquardt: bool, solve: Solve
) -> tuple[PyTree, DampedSolve, Solved]:
    """`-(J^T J + lambda D)^-1 grad`, with lambda = `damping` times the largest diagonal entry of `D^-1 J^T J`.

    Returns it with the factorisation and the report of the solve.
    """
    form = lin.residual is not None
    factor = factorize(lin.jacobian, damping, relative=True, marquardt=marquardt, solve=solve, residual_form=form)
    solved = solution(factor, lin)
    return jax.tree.map(jnp.negative, solved.value), factor, solved


def jacobi_direction(lin: Linearization, damping: Scalar, solve: Solve) -> tuple[PyTree, DampedSolve, Solved]:
    """The direction from the smaller of `J J^T` and `J^T J`, scaled to a unit diagonal.

    N < P:  (W J J^T W + lambda I) y = W r,  d = -J^T W y,      W = diag(J J^T)^-1/2
    else:   (J^T J + lambda D) d = -J^T r,                      D = diag(J^T J)

    The first one is a step for the residual `W r`, and may point uphill for `r`: then it is `-grad`, of its length.
    """
    residual, count = lin.residual, lin.jacobian.out_structure().shape[0]
    if residual is None or count >= tree_size(lin.grad):
        return gauss_newton_direction(lin, damping, True, solve)
    norms = lin.jacobian.row_norms()
    W = 1 / jnp.where(norms == 0, jnp.ones_like(norms), norms)
    factor = factorize(lin.jacobian.row_scaled(W), damping, solve=solve)
    solved = factor.solve_residual(W * residual)
    descends = tree_dot(solved.value, lin.grad) > 0
    length = quotient(tree_norm(solved.value), tree_norm(lin.grad))
    direction = tree_where(descends, solved.value, tree_scale(length, lin.grad))
    return jax.tree.map(jnp.negative, direction), factor, solved


class GaussNewtonMethod(AbstractMethod):
    """Gauss-Newton: a damped direction, an Armijo line search, and damping that follows the step size.

        (J^T J + lambda D) d = -g
        eta = first of 1, 1/2, 1/4, ... with L(theta + eta d) <= L(theta) + 1e-4 eta <g, d>
        lambda /= 4 if eta >= 1/4,   lambda *= 4 if eta < 1/20

    With `scaling="jacobi"` the direction is that of `jacobi_direction`.

    See `sciml_opt.gauss_newton`.
    """

    init_damping: Array
    scaling: GaussNewtonScaling = eqx.field(static=True)
    line_search: Search = eqx.field(static=True)
    solve: Solve = eqx.field(static=True)

    def __init__(
        self,
        init_damping: ArrayLike = 1e-2,
        *,
        scaling: GaussNewtonScaling = "identity",
        line_search: Search = "armijo",
        solve: Solve = "auto",
    ):
        self.init_damping = number("init_damping", init_damping, above=0)
        self.scaling = one_of("scaling", scaling, get_args(GaussNewtonScaling))
        self.line_search = one_of("line_search", line_search, get_args(Search))
        self.solve = one_of("solve", solve, get_args(Solve))

    def init(self, params: PyTree) -> DampedState:
        return DampedState(self.init_damping.astype(tree_dtype(params)), jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Loss, params: PyTree, state: DampedState) -> tuple[PyTree, DampedState]:
        lin = loss.linearize(params)
        if self.scaling == "jacobi":
            direction, factor, solved = jacobi_direction(lin, state.damping, self.solve)
        else:
            direction, factor, solved = gauss_newton_direction(
                lin, state.damping, self.scaling == "marquardt", self.solve
            )
        update, info = line_search_step(loss, params, lin, direction, factor, solved, self.line_search)
        damping = step_size_damping(state.damping, info.step_size, shrink=4.0, growth=4.0)
        return update, keep(lin_is_finite(lin), DampedState(damping, state.steps + 1, info), state)
