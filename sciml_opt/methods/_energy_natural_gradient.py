"""Energy natural gradient descent, damped, with a grid line search."""

from typing import get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from .._check import number, one_of
from .._tree import tree_dtype
from ..globalization import Search, step_size_damping
from ..linear import Solve
from ._gauss_newton import DampedState, gauss_newton_direction
from ._method import AbstractMethod, Loss, StepInfo, line_search_step


class EnergyNaturalGradientMethod(AbstractMethod):
    """Energy natural gradient: Newton's method in function space, pulled back to the parameters.

        G = D^2 E(u)[d_i u, d_j u]           (J^T J of the composite form)
        (G + lambda I) d = -grad L
        eta = argmin of L(theta + eta d) over {0, 2^0, 2^-1, ..., 2^-30}

    with lambda by `step_size_damping`. See `sciml_opt.energy_natural_gradient`.
    """

    init_damping: Array
    line_search: Search = eqx.field(static=True)
    solve: Solve = eqx.field(static=True)

    def __init__(self, init_damping: ArrayLike = 1e-2, *, line_search: Search = "grid", solve: Solve = "auto"):
        self.init_damping = number("init_damping", init_damping, above=0)
        self.line_search = one_of("line_search", line_search, get_args(Search))
        self.solve = one_of("solve", solve, get_args(Solve))

    def init(self, params: PyTree) -> DampedState:
        return DampedState(self.init_damping.astype(tree_dtype(params)), jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Loss, params: PyTree, state: DampedState) -> tuple[PyTree, DampedState]:
        lin = loss.linearize(params)
        direction, factor, solved = gauss_newton_direction(lin, state.damping, False, self.solve)
        update, info = line_search_step(loss, params, lin, direction, factor, solved, self.line_search)
        damping = step_size_damping(state.damping, info.step_size, shrink=10.0, growth=4.0)
        return update, DampedState(damping, state.steps + 1, info)
