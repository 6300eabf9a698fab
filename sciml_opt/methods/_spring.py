"""SPRING: subsampled projected-increment natural gradient descent; without momentum ENGD-W."""

from collections.abc import Callable
from typing import NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import number, one_of, schedule
from .._tree import tree_add, tree_all_finite, tree_dtype, tree_norm, tree_scale, tree_where
from ..globalization import LineSearch, grid_search
from ..linear import Solve, factorize
from ._method import AbstractMethod, Loss, StepInfo, gain_ratio, residual_of, search_info, searched_update, solve_info


class SpringState(NamedTuple):
    momentum: PyTree  # phi of the last step, without the bias correction
    steps: Int[Array, ""]
    info: StepInfo


class SpringMethod(AbstractMethod):
    """SPRING: of all increments that fit the residual, the one nearest to the decayed last increment.

        zeta = r - mu J phi_(k-1)
        phi_k = mu phi_(k-1) + J^T (J J^T + lambda I)^-1 zeta
        d = -phi_k / sqrt(1 - mu^(2k))
        theta += eta d,     eta = argmin of L over {0, 2^0, ..., 2^-30}
                            or min(learning_rate, sqrt(C) / |phi_k|)

    `mu = 0` is ENGD-W. See `sciml_opt.spring`.
    """

    learning_rate: Array | None
    damping: Partial
    momentum: Array
    norm_constraint: Array
    solve: Solve = eqx.field(static=True)

    def __init__(
        self,
        learning_rate: ArrayLike | None = None,
        *,
        damping: ArrayLike | Callable[[Int[Array, ""]], Scalar] = 1e-9,
        momentum: ArrayLike = 0.3,
        norm_constraint: ArrayLike = 1e-3,
        solve: Solve = "auto",
    ):
        self.learning_rate = None if learning_rate is None else number("learning_rate", learning_rate, above=0)
        self.damping = schedule("damping", damping, above=0)
        self.momentum = number("momentum", momentum, at_least=0, below=1)
        self.norm_constraint = number("norm_constraint", norm_constraint, above=0, finite=False)
        self.solve = one_of("solve", solve, get_args(Solve))

    def init(self, params: PyTree) -> SpringState:
        return SpringState(jax.tree.map(jnp.zeros_like, params), jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Loss, params: PyTree, state: SpringState) -> tuple[PyTree, SpringState]:
        dtype = tree_dtype(params)
        lin = loss.linearize(params)
        residual = residual_of(lin, "SPRING (ENGD-W)")
        damping = jnp.asarray(self.damping(state.steps)).astype(dtype)
        factor = factorize(lin.jacobian, damping, relative=True, solve=self.solve)
        mu = self.momentum.astype(dtype)
        decayed = tree_scale(mu, state.momentum)
        solved = factor.solve_residual(residual - lin.jacobian.mv(decayed))
        phi = tree_add(decayed, solved.value)

        correction = 1 / jnp.sqrt(1 - mu ** (2 * (state.steps + 1)).astype(dtype))
        direction = tree_scale(-correction, phi)
        if self.learning_rate is None:
            found = grid_search(loss, params, direction, lin.value)
        else:
            longest = jnp.sqrt(self.norm_constraint.astype(dtype)) / tree_norm(phi)  # of phi itself, as published
            found = _fixed_step(loss, params, direction, jnp.minimum(self.learning_rate.astype(dtype), longest))
        update = searched_update(found, direction)

        info = StepInfo.of(
            params,
            loss=lin.value,
            damping=factor.damping,
            gain_ratio=gain_ratio(lin, update, found.value),
            grad_norm=tree_norm(lin.grad),
            linearizations=1,
            clipped=lin.clipped,
            **search_info(found, direction),
            **solve_info(factor, solved, products=2),
        )
        usable = jnp.isfinite(lin.value) & tree_all_finite(phi)  # a NaN would never leave the momentum
        momentum = tree_where(usable, phi, state.momentum)
        return update, SpringState(momentum, state.steps + usable.astype(jnp.int32), info)


def _fixed_step(loss: Loss, params: PyTree, direction: PyTree, size: Scalar) -> LineSearch:
    """This step size, unless the loss is not finite there."""
    value = loss(tree_add(params, tree_scale(size, direction)))
    return LineSearch(jnp.where(jnp.isfinite(value), size, jnp.zeros_like(size)), value, jnp.int32(1), jnp.int32(0))
