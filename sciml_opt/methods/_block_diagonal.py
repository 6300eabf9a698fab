"""Block-diagonal Gauss-Newton: the exact blocks of J^T J, layer by layer or leaf by leaf."""

from typing import Any, Literal, get_args

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jax.tree_util import DictKey, GetAttrKey, tree_leaves_with_path
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import number, one_of
from .._tree import ravel, tree_dtype, tree_norm, unravel
from ..globalization import Search, step_size_damping
from ..linear import damped_cholesky
from ..linearization import Linearization
from ._gauss_newton import DampedState
from ._method import AbstractMethod, Loss, StepInfo, gain_ratio, keep, lin_is_finite, quotient, search_info, searched

Blocks = Literal["layer", "leaf"]


class BlockDiagonalMethod(AbstractMethod):
    """Gauss-Newton with the blocks of `J^T J` that belong to one layer each, and a line search.

        (J_b^T J_b + lambda_b I) d_b = -g_b,      lambda_b = lambda max diag(J_b^T J_b),      for every block b
        eta by a line search along d

    with lambda by `step_size_damping`. See `sciml_opt.block_gauss_newton`.
    """

    init_damping: Array
    blocks: Blocks = eqx.field(static=True)
    line_search: Search = eqx.field(static=True)

    def __init__(self, init_damping: ArrayLike = 1e-2, *, blocks: Blocks = "layer", line_search: Search = "armijo"):
        self.init_damping = number("init_damping", init_damping, above=0)
        self.blocks = one_of("blocks", blocks, get_args(Blocks))
        self.line_search = one_of("line_search", line_search, get_args(Search))

    def init(self, params: PyTree) -> DampedState:
        return DampedState(self.init_damping.astype(tree_dtype(params)), jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Loss, params: PyTree, state: DampedState) -> tuple[PyTree, DampedState]:
        lin = loss.linearize(params)
        direction, report = _direction(lin, blocks_of(params, self.blocks), state.damping)
        update, found = searched(loss, params, direction, lin.value, lin.grad, self.line_search)
        info = StepInfo.of(
            params,
            loss=lin.value,
            gain_ratio=gain_ratio(lin, update, found.value),
            products=1,
            grad_norm=tree_norm(lin.grad),
            linearizations=1,
            clipped=lin.clipped,
            **report,
            **search_info(found, direction),
        )
        damping = step_size_damping(state.damping, info.step_size, shrink=10.0, growth=4.0)
        return update, keep(lin_is_finite(lin), DampedState(damping, state.steps + 1, info), state)


def blocks_of(params: PyTree, blocks: Blocks) -> list[Int[np.ndarray, " _"]]:
    """The entries of the flat parameter vector of every block.

    A layer is what differs in the last name of its path only: `layers[0].weight` and `layers[0].bias`, or `weights[0]`
    and `biases[0]`; without names (nested tuples), in the last index.
    """
    found: dict[Any, list[np.ndarray]] = {}
    start = 0
    for path, leaf in tree_leaves_with_path(params):
        names = [i for i, key in enumerate(path) if isinstance(key, GetAttrKey | DictKey)]
        last = names[-1] if names else len(path) - 1
        key = path if blocks == "leaf" else path[:last] + path[last + 1 :]
        found.setdefault(key, []).append(np.arange(start, start + leaf.size))
        start += leaf.size
    return [np.concatenate(entries) for entries in found.values()]


def _direction(
    lin: Linearization, blocks: list[Int[np.ndarray, " _"]], damping: Scalar
) -> tuple[PyTree, dict[str, Scalar]]:
    """`d`, and the fields of `StepInfo` about the linear systems; the damping is the largest one."""
    grad = ravel(lin.grad)
    direction, error = jnp.zeros_like(grad), jnp.zeros_like(grad)
    largest, rungs = jnp.zeros_like(damping), []
    for entries, gram in zip(blocks, lin.jacobian.gram_blocks(blocks), strict=True):
        unit = jnp.max(jnp.diagonal(gram))
        unit = jnp.where(unit > 0, unit, 1)  # a block that the loss does not see
        lower, used, rung = damped_cholesky(gram, jnp.ones_like(grad[entries]), damping * unit)
        d = cho_solve((lower, True), -grad[entries])
        direction = direction.at[entries].set(d)
        error = error.at[entries].set(gram @ d + used * d + grad[entries])
        largest, rungs = jnp.maximum(largest, used), [*rungs, rung]
    residual = quotient(jnp.linalg.norm(error), jnp.linalg.norm(grad))
    report = {"damping": largest, "rung": jnp.max(jnp.stack(rungs)), "linear_residual": residual}
    return unravel(direction, lin.grad), report
