"""Natural gradient descent in the metric of the energy or in another one, damped, with a grid line search."""

from typing import get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from .._check import number, one_of
from .._tree import tree_dtype
from ..globalization import step_size_damping
from ..linear import Solve
from ..linearization import Linearization
from ..objective import BoundObjective, Metric
from ._gauss_newton import DampedState, gauss_newton_direction
from ._method import AbstractMethod, Loss, StepInfo, keep, lin_is_finite, line_search_step


class EnergyNaturalGradientMethod(AbstractMethod):
    """Energy natural gradient: Newton's method in function space, pulled back to the parameters.

        G = D^2 E(u)[d_i u, d_j u]           (J^T J of the composite form; or the pull-back of `metric`)
        (G + lambda I) d = -grad L
        eta = argmin of L(theta + eta d) over {0, 2^0, 2^-1, ..., 2^-30}

    with lambda by `step_size_damping`. See `sciml_opt.energy_natural_gradient` and `sciml_opt.natural_gradient`.
    """

    init_damping: Array
    metric: Metric | None = eqx.field(static=True)
    solve: Solve = eqx.field(static=True)

    def __init__(
        self,
        init_damping: ArrayLike = 1e-2,
        *,
        metric: Metric | None = None,
        solve: Solve = "auto",
    ):
        self.init_damping = number("init_damping", init_damping, above=0)
        if metric is not None and not isinstance(metric, Metric):
            raise TypeError(f"metric must be a Metric, such as so.sobolev(1), got {metric!r}.")
        self.metric = metric
        self.solve = one_of("solve", solve, get_args(Solve))

    def init(self, params: PyTree) -> DampedState:
        return DampedState(self.init_damping.astype(tree_dtype(params)), jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Loss, params: PyTree, state: DampedState) -> tuple[PyTree, DampedState]:
        lin = measured = loss.linearize(params)
        if self.metric is not None:
            assert isinstance(loss, BoundObjective)
            J = loss.pull_back(self.metric, params)
            measured = Linearization(lin.value, lin.grad, None, J, lin.clipped)
        direction, factor, solved = gauss_newton_direction(measured, state.damping, False, self.solve)
        update, info = line_search_step(loss, params, lin, direction, factor, solved, "grid")
        if self.metric is not None:
            info = info._replace(linearizations=info.linearizations + 1)
        damping = step_size_damping(state.damping, info.step_size, shrink=10.0, growth=4.0)
        return update, keep(lin_is_finite(lin), DampedState(damping, state.steps + 1, info), state)
