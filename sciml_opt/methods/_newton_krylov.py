"""Inexact Newton with conjugate gradients or MINRES, and a line search."""

from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple, get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import count, number, one_of
from .._tree import tree_dtype, tree_norm, unravel
from ..globalization import Search
from ..linear import conjugate_gradient, minres
from ._hessian import expand, forcing_term
from ._method import AbstractMethod, StepInfo, keep, quotient, search_info, searched

Krylov = Literal["cg", "minres"]


class NewtonKrylovState(NamedTuple):
    forcing: Scalar  # eta of the last step
    grad_norm: Scalar  # of the last step; 0 before the first
    info: StepInfo


class NewtonKrylovMethod(AbstractMethod):
    """Newton-Krylov: the true Hessian through its products, solved as well as the progress deserves.

        |H d + g| <= eta |g|,   eta by `forcing_term`,   theta += (step size of the line search) d

    Conjugate gradients stop at a direction of negative curvature, with the iterate before it. At the first step that is
    `-g`, which gets the length `|g|^2 / |g^T H g|`, independent of the scale of the loss. Of a solution `d` by MINRES
    and `-d` the one that descends is taken. See `sciml_opt.newton_krylov`.
    """

    structured: ClassVar[bool] = False

    max_forcing: Array
    krylov_steps: Int[Array, ""]
    krylov: Krylov = eqx.field(static=True)
    line_search: Search = eqx.field(static=True)

    def __init__(
        self,
        *,
        krylov: Krylov = "cg",
        max_forcing: ArrayLike = 0.1,
        krylov_steps: int = 200,
        line_search: Search = "armijo",
    ):
        self.max_forcing = number("max_forcing", max_forcing, above=0, below=1)
        self.krylov_steps = jnp.int32(count("krylov_steps", krylov_steps))
        self.krylov = one_of("krylov", krylov, get_args(Krylov))
        self.line_search = one_of("line_search", line_search, get_args(Search))

    def init(self, params: PyTree) -> NewtonKrylovState:
        dtype = tree_dtype(params)
        return NewtonKrylovState(self.max_forcing.astype(dtype), jnp.zeros((), dtype), StepInfo.of(params))

    def step(
        self, loss: Callable[[PyTree], Scalar], params: PyTree, state: NewtonKrylovState
    ) -> tuple[PyTree, NewtonKrylovState]:
        value, g, product = expand(loss, params)
        grad_norm = tree_norm(g)
        largest = self.max_forcing.astype(g.dtype)
        forcing = forcing_term(state.forcing, grad_norm, state.grad_norm, largest)
        if self.krylov == "cg":
            found = conjugate_gradient(product, -g, rtol=forcing, max_steps=self.krylov_steps)
            negative_curvature = found.negative_curvature
            steepest = negative_curvature & (found.iterations == 1)
        else:
            found = minres(product, -g, rtol=forcing, max_steps=self.krylov_steps)
            negative_curvature = jnp.vdot(g, found.value) > 0
            steepest = jnp.zeros((), bool)
        slope = jnp.vdot(g, found.value)
        steepest = steepest | (slope == 0) | ~jnp.isfinite(slope)
        # At a saddle the solution of MINRES may point uphill, and its opposite away from the saddle.
        d = jnp.where(steepest, -g, -jnp.sign(slope) * found.value)
        Hd = product(d)
        curvature = jnp.abs(jnp.vdot(d, Hd))
        length = jnp.where(steepest & (curvature > 0), jnp.vdot(g, g) / curvature, 1)
        d, Hd = length * d, length * Hd

        direction = unravel(d, params)
        update, search = searched(loss, params, direction, value, unravel(g, params), self.line_search)
        eta = search.step_size
        predicted = -eta * (jnp.vdot(g, d) + 0.5 * eta * jnp.vdot(d, Hd))
        info = StepInfo.of(
            params,
            loss=value,
            gain_ratio=quotient(value - search.value, predicted),
            grad_norm=grad_norm,
            products=found.iterations + 1,
            iterations=found.iterations,
            linear_residual=quotient(tree_norm(g + Hd), grad_norm),
            rung=negative_curvature,
            **search_info(search, direction) | {"gradients": 1 + search.gradients},
        )
        started = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        return update, keep(started, NewtonKrylovState(forcing, grad_norm, info), state)
