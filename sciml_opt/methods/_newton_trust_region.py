"""Newton's method in a trust region, by Steihaug's and Toint's truncated conjugate gradients."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree, Scalar

from .._check import count, number
from .._tree import tree_add, tree_dtype, tree_norm, unravel
from ..globalization import trust_region_update
from ..linear import positive_norm
from ._hessian import expand, forcing_term
from ._method import AbstractMethod, StepInfo, quotient


class SteihaugStep(NamedTuple):
    """The step `s`, the residual `g + H s` of the Newton equation, and how the iteration ended."""

    step: Float[Array, " P"]
    residual: Float[Array, " P"]
    iterations: Int[Array, ""]
    on_boundary: Bool[Array, ""]
    negative_curvature: Bool[Array, ""]


class _State(NamedTuple):
    s: Array
    r: Array
    p: Array
    steps: Array
    on_boundary: Array
    negative: Array


def steihaug(
    product: Callable[[Float[Array, " P"]], Float[Array, " P"]],
    g: Float[Array, " P"],
    radius: Scalar,
    rtol: Scalar,
    max_steps: Int[Array, ""],
) -> SteihaugStep:
    """Minimise `g^T s + s^T H s / 2` over `|s| <= radius` by conjugate gradients from `s = 0`, roughly.

    They stop at the relative residual `rtol`, after `max_steps`, and on the boundary: where an iterate would leave the
    region, or at a direction of negative curvature, which is followed to the boundary.

    **Cost:** one product an iteration; four vectors.

    Source: Steihaug (1983), doi:10.1137/0720042; Nocedal and Wright, Numerical Optimization, algorithm 7.2.
    """
    size = positive_norm(g)  # the squares of a small float32 gradient underflow
    radius = radius / size

    def unfinished(state: _State):
        return (state.steps < max_steps) & (tree_norm(state.r) > rtol) & ~state.on_boundary

    def body(state: _State) -> _State:
        s, r, p = state.s, state.r, state.p
        Hp = product(p)
        curvature, rho = jnp.vdot(p, Hp), jnp.vdot(r, r)
        negative = curvature <= 0
        alpha = rho / curvature
        inside = s + alpha * p
        on_boundary = negative | (jnp.vdot(inside, inside) >= radius**2)
        # |s + tau p| = radius; no cancellation, since s^T p >= 0 for conjugate gradients from zero
        sp, pp, room = jnp.vdot(s, p), jnp.vdot(p, p), radius**2 - jnp.vdot(s, s)
        tau = room / (sp + jnp.sqrt(sp**2 + pp * room))
        alpha = jnp.where(on_boundary, tau, alpha)
        r_new = r + alpha * Hp
        beta = jnp.vdot(r_new, r_new) / rho
        return _State(s + alpha * p, r_new, -r_new + beta * p, state.steps + 1, on_boundary, negative)

    unit, no = g / size, jnp.zeros((), bool)
    last = lax.while_loop(unfinished, body, _State(jnp.zeros_like(g), unit, -unit, jnp.int32(0), no, no))
    return SteihaugStep(size * last.s, size * last.r, last.steps, last.on_boundary, last.negative)


class NewtonTrustRegionState(NamedTuple):
    radius: Scalar
    forcing: Scalar  # eta of the last step
    grad_norm: Scalar  # of the last accepted step; 0 before the first
    info: StepInfo


class NewtonTrustRegionMethod(AbstractMethod):
    """Newton's method in a trust region.

        min g^T s + s^T H s / 2  over  |s| <= Delta,      roughly, by `steihaug`
        rho = (L(theta) - L(theta + s)) / -(g^T s + s^T H s / 2)
        accept if rho > 0.1,   Delta by `trust_region_update`

    See `sciml_opt.newton_trust_region`.
    """

    structured: ClassVar[bool] = False

    init_radius: Array
    max_forcing: Array
    krylov_steps: Int[Array, ""]

    def __init__(self, init_radius: ArrayLike = 1.0, *, max_forcing: ArrayLike = 0.1, krylov_steps: int = 200):
        self.init_radius = number("init_radius", init_radius, above=0)
        self.max_forcing = number("max_forcing", max_forcing, above=0, below=1)
        self.krylov_steps = jnp.int32(count("krylov_steps", krylov_steps))

    def init(self, params: PyTree) -> NewtonTrustRegionState:
        dtype = tree_dtype(params)
        radius, forcing = self.init_radius.astype(dtype), self.max_forcing.astype(dtype)
        return NewtonTrustRegionState(radius, forcing, jnp.zeros((), dtype), StepInfo.of(params))

    def step(
        self, loss: Callable[[PyTree], Scalar], params: PyTree, state: NewtonTrustRegionState
    ) -> tuple[PyTree, NewtonTrustRegionState]:
        value, g, product = expand(loss, params)
        grad_norm = tree_norm(g)
        largest = self.max_forcing.astype(g.dtype)
        forcing = forcing_term(state.forcing, grad_norm, state.grad_norm, largest)
        found = steihaug(product, g, state.radius, forcing, self.krylov_steps)
        s = unravel(found.step, params)
        step_norm = tree_norm(s)

        trial = loss(tree_add(params, s))
        predicted = -0.5 * jnp.vdot(found.step, g + found.residual)
        gain_ratio = quotient(value - trial, predicted)
        accepted = jnp.isfinite(value) & jnp.isfinite(trial) & (trial < value) & (gain_ratio > 0.1)
        least = jnp.finfo(g.dtype).eps * tree_norm(params)
        radius = trust_region_update(state.radius, gain_ratio, found.on_boundary, step_norm, least)
        started = jnp.isfinite(value) & (predicted > 0)  # neither a NaN nor a stationary start says what to trust
        info = StepInfo.of(
            params,
            loss=value,
            trial_loss=trial,
            accepted=accepted,
            radius=state.radius,
            gain_ratio=gain_ratio,
            step_norm=step_norm,
            grad_norm=grad_norm,
            evaluations=1,
            gradients=1,
            products=found.iterations,
            iterations=found.iterations,
            linear_residual=quotient(tree_norm(found.residual), grad_norm),
            rung=found.negative_curvature,
        )
        update = jax.tree.map(lambda leaf: jnp.where(accepted, leaf, jnp.zeros_like(leaf)), s)
        return update, NewtonTrustRegionState(
            radius=jnp.where(started, radius, state.radius),
            forcing=jnp.where(accepted, forcing, state.forcing),
            grad_norm=jnp.where(accepted, grad_norm, state.grad_norm),
            info=info,
        )
