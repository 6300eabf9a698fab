"""ANaGRAM: the natural gradient by a singular value decomposition with a cut-off."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import number
from .._tree import tree_dtype, tree_norm, tree_size, unravel
from ..globalization import LineSearch, grid_search
from ..linear import SOLVES
from ._method import (
    AbstractMethod,
    Loss,
    StepInfo,
    gain_ratio,
    lin_is_finite,
    quotient,
    residual_of,
    search_info,
    searched_update,
)

# Of the last cut-off, the largest first: it wins a tie, and a step without any decrease. They lean to small ones: with
# symmetric factors (3, 1, 1/3; 10, 1, 1/10) poisson2d and heat1d ended at larger losses (two seeds each).
FACTORS = (2.0, 1.0, 0.5, 0.1)


class AnagramState(NamedTuple):
    cutoff: Scalar  # relative to the largest singular value
    steps: Int[Array, ""]
    info: StepInfo


class AnagramMethod(AbstractMethod):
    """ANaGRAM: the least-squares step on the singular vectors above a cut-off, and no damping.

        J = U diag(s) V^T
        d = -V diag(1/s where s >= cutoff max s, else 0) U^T r
        theta += eta d,     eta = argmin of L over {0, 2^0, ..., 2^-30}

    `adaptive`: the cut-off and eta of the lowest loss, over cut-offs around the last one. See `sciml_opt.anagram`.
    """

    cutoff: Array | None
    adaptive: bool = eqx.field(static=True)

    def __init__(self, cutoff: ArrayLike | None = None, *, adaptive: bool = False):
        self.cutoff = None if cutoff is None else number("cutoff", cutoff, above=0)
        self.adaptive = adaptive

    def init(self, params: PyTree) -> AnagramState:
        dtype = tree_dtype(params)
        default = jnp.sqrt(jnp.asarray(jnp.finfo(dtype).eps * tree_size(params), dtype))
        cutoff = default if self.cutoff is None else self.cutoff.astype(dtype)
        return AnagramState(cutoff, jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Loss, params: PyTree, state: AnagramState) -> tuple[PyTree, AnagramState]:
        lin = loss.linearize(params)
        residual = residual_of(lin, "ANaGRAM")
        U, s, Vt = jnp.linalg.svd(lin.jacobian.as_matrix(), full_matrices=False)
        inside = residual @ U

        def search(cutoff: Scalar) -> tuple[PyTree, LineSearch]:
            kept = (s >= cutoff * s[0]) & (s > 0)
            direction = unravel(-(jnp.where(kept, inside / jnp.where(kept, s, 1), 0) @ Vt), params)
            return direction, grid_search(loss, params, direction, lin.value)

        factors = jnp.asarray(FACTORS if self.adaptive else (1.0,), s.dtype)
        cutoffs = jnp.minimum(factors * state.cutoff, 1)
        tried = lax.map(search, cutoffs)
        best = jnp.argmin(tried[1].value)
        direction, found = jax.tree.map(lambda leaf: leaf[best], tried)
        update = searched_update(found, direction)

        cutoff = cutoffs[best]
        cut = jnp.where((s >= cutoff * s[0]) & (s > 0), 0, s * inside)  # of the gradient
        info = StepInfo.of(
            params,
            loss=lin.value,
            damping=(cutoff * s[0]) ** 2,
            gain_ratio=gain_ratio(lin, update, found.value),
            linear_residual=quotient(jnp.linalg.norm(cut), jnp.linalg.norm(s * inside)),
            products=1,
            grad_norm=tree_norm(lin.grad),
            linearizations=1,
            solve=SOLVES.index("svd"),
            **search_info(found, direction),
        )
        info = info._replace(evaluations=len(cutoffs) * found.evaluations)
        started = lin_is_finite(lin)
        cutoff = jnp.where(started, cutoff, state.cutoff)
        return update, AnagramState(cutoff, state.steps + started.astype(jnp.int32), info)
