"""Newton's method with conjugate gradients preconditioned by a sketch of the Hessian (NysNewton-CG)."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Scalar

from .._check import count, number
from .._tree import tree_all_finite, tree_dtype, tree_norm, tree_size, unravel
from ..globalization import armijo_search
from ..linear import Nystrom, conjugate_gradient, rayleigh_ritz
from ._hessian import expand
from ._method import AbstractMethod, StepInfo, keep, quotient, search_info, searched_update


class NysNewtonCGState(NamedTuple):
    vectors: Float[Array, "P rank"]  # U
    eigenvalues: Float[Array, " rank"]  # |H| ~ U diag(eigenvalues) U^T
    direction: Float[Array, " P"]  # of the last step, where the next solve starts
    steps: Int[Array, ""]
    info: StepInfo


class NysNewtonCGMethod(AbstractMethod):
    """NysNewton-CG: damped Newton directions by preconditioned conjugate gradients.

        (H + mu I) d = -g,          mu = damping * lambda_1
        P = (U diag(lambda) U^T + mu I) / (lambda_r + mu) + (I - U U^T),      |H| ~ U diag(lambda) U^T
        eta = first of 1, 1/2, 1/4, ... with L(theta + eta d) <= L(theta) + 0.1 eta <g, d>

    The sketch is made anew every `refresh` steps, and the iteration starts from the last direction. See
    `sciml_opt.nys_newton_cg`.
    """

    structured: ClassVar[bool] = False

    damping: Array
    cg_rtol: Array
    krylov_steps: Int[Array, ""]
    rank: int = eqx.field(static=True)
    refresh: int = eqx.field(static=True)
    seed: int = eqx.field(static=True)

    def __init__(
        self,
        damping: ArrayLike = 1e-7,
        *,
        rank: int = 60,
        refresh: int = 20,
        cg_rtol: ArrayLike = 1e-3,
        krylov_steps: int = 1000,
        seed: int = 0,
    ):
        self.damping = number("damping", damping, above=0)
        self.cg_rtol = number("cg_rtol", cg_rtol, above=0)
        self.krylov_steps = jnp.int32(count("krylov_steps", krylov_steps))
        self.rank = count("rank", rank)
        self.refresh = count("refresh", refresh)
        self.seed = seed

    def init(self, params: PyTree) -> NysNewtonCGState:
        dtype, size = tree_dtype(params), tree_size(params)
        rank = min(self.rank, size)
        return NysNewtonCGState(
            vectors=jnp.zeros((size, rank), dtype),
            eigenvalues=jnp.zeros(rank, dtype),
            direction=jnp.zeros(size, dtype),
            steps=jnp.int32(0),
            info=StepInfo.of(params),
        )

    def step(
        self, loss: Callable[[PyTree], Scalar], params: PyTree, state: NysNewtonCGState
    ) -> tuple[PyTree, NysNewtonCGState]:
        value, g, product = expand(loss, params)
        grad_norm = tree_norm(g)
        size, rank = state.vectors.shape
        due = state.steps % self.refresh == 0
        # made here, since optimistix cannot return an error beside a state that holds a key
        key = jax.random.fold_in(jax.random.key(self.seed), state.steps)
        sketch = lax.cond(
            due,
            lambda: rayleigh_ritz(product, size, rank, g.dtype, key=key),
            lambda: Nystrom(state.vectors, state.eigenvalues, jnp.int32(0)),
        )
        rounding = 10 * jnp.finfo(g.dtype).eps
        mu = jnp.maximum(self.damping.astype(g.dtype), rounding) * sketch.eigenvalues[0]
        precondition = sketch.preconditioner(mu)

        def damped(v):
            return product(v) + mu * v

        found = conjugate_gradient(
            damped,
            -g,
            preconditioner=precondition,
            guess=state.direction,
            rtol=self.cg_rtol,
            max_steps=self.krylov_steps,
        )
        # Without a step the iterate is the last direction, which says nothing about this gradient.
        stale = found.negative_curvature & (found.iterations == 1)
        sketched = -precondition(g) / (sketch.eigenvalues[-1] + mu)  # the sketch in place of H
        d = jnp.where((jnp.vdot(g, found.value) < 0) & ~stale, found.value, sketched)
        d = jnp.where(jnp.isfinite(jnp.vdot(d, d)), d, -g)  # H = 0

        direction = unravel(d, params)
        slope = jnp.vdot(g, d)
        search = armijo_search(loss, params, direction, value, slope, sufficient=0.1)
        update = searched_update(search, direction)
        Hd, eta = product(d), search.step_size
        started = jnp.isfinite(value) & jnp.isfinite(grad_norm) & tree_all_finite(sketch.eigenvalues)
        info = StepInfo.of(
            params,
            loss=value,
            damping=mu,
            gain_ratio=quotient(search.value - value, eta * (slope + 0.5 * eta * jnp.vdot(d, Hd))),
            grad_norm=grad_norm,
            products=found.iterations + 2 + jnp.where(due, 2 * rank, 0),
            iterations=found.iterations,
            linear_residual=quotient(tree_norm(g + Hd + mu * d), grad_norm),
            rung=found.negative_curvature,
            **search_info(search, direction) | {"gradients": 1},
        )
        new = NysNewtonCGState(sketch.vectors, sketch.eigenvalues, d, state.steps + 1, info)
        return update, keep(started, new, state)
