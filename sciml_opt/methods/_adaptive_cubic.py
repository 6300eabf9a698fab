"""Adaptive regularisation by cubics in a Lanczos subspace."""

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Scalar

from .._check import count, number
from .._tree import tree_add, tree_dtype, tree_norm, unravel
from ..linear import positive_norm
from ._hessian import expand
from ._method import AbstractMethod, StepInfo, keep, quotient


class _Lanczos(NamedTuple):
    """`H V^T = V^T T + residual v e_k^T` with orthonormal rows of `V`, `k` of them used."""

    vectors: Float[Array, "m P"]
    tridiagonal: Float[Array, "m m"]
    residual: Scalar
    steps: Int[Array, ""]  # k, at most m


def lanczos(
    product: Callable[[Float[Array, " P"]], Float[Array, " P"]], g: Float[Array, " P"], dimension: int
) -> _Lanczos:
    """Lanczos from `g / |g|` with full reorthogonalisation, to at most `dimension` vectors.

    It stops where the Krylov space is complete. Rows and columns that were not reached belong to eigenvalues above
    all others, on which `g` has no component.

    **Cost:** a product and `4 P dimension` flops (twice) a vector; memory `P dimension`.

    Source: Golub and Van Loan, Matrix Computations, section 10.3.
    """
    eps = jnp.finfo(g.dtype).eps

    def unfinished(carry):
        _, _, beta, largest, k = carry
        previous = jnp.where(k == 0, jnp.ones_like(largest), beta[k - 1])
        return (k < dimension) & (previous > dimension * eps * largest)  # a NaN ends it

    def body(carry):
        V, alpha, beta, largest, k = carry
        w = product(V[k])
        diagonal = jnp.vdot(V[k], w)
        for _ in range(2):  # twice is enough
            w = w - (V @ w) @ V
        residual = tree_norm(w)
        largest = jnp.maximum(largest, jnp.maximum(jnp.abs(diagonal), residual))
        following = w / jnp.where(residual > 0, residual, 1)
        V = V.at[k + 1].set(following, mode="drop")
        return V, alpha.at[k].set(diagonal), beta.at[k].set(residual), largest, k + 1

    none = jnp.zeros(dimension, g.dtype)
    V = jnp.zeros((dimension, g.size), g.dtype).at[0].set(g / positive_norm(g))
    V, alpha, beta, largest, k = lax.while_loop(unfinished, body, (V, none, none, none[0], jnp.int32(0)))
    reached = jnp.arange(dimension, dtype=jnp.int32) < k
    alpha = jnp.where(reached, alpha, 4 * largest)  # the eigenvalues of T are below 3 `largest`
    off = jnp.where(reached[1:], beta[:-1], 0)
    return _Lanczos(V, jnp.diag(alpha) + jnp.diag(off, 1) + jnp.diag(off, -1), beta[k - 1], k)


class CubicStep(NamedTuple):
    """The minimiser of the cubic model and the decrease that it predicts."""

    step: Float[Array, " m"]
    predicted: Scalar


def minimise_cubic(T: Float[Array, "m m"], g: Float[Array, " m"], sigma: Scalar) -> CubicStep:
    """The global minimiser of `g^T y + y^T T y / 2 + sigma |y|^3 / 3` for a symmetric `T`.

        (T + lambda I) y = -g,     lambda = sigma |y|,     T + lambda I >= 0

    With `T = Q diag(theta) Q^T`, `lambda` is the root of `|y(lambda)| = lambda / sigma` above `max(0, -theta_1)`, by
    bisection of the logarithm of the difference. In the hard case, `g` without a component on the lowest eigenvector,
    there is no root, and `y` is made long enough along that eigenvector.

    **Cost:** an eigendecomposition.

    Source: Cartis, Gould and Toint (2011), doi:10.1007/s10107-009-0286-5, section 6.
    """
    theta, Q = jnp.linalg.eigh(T)
    c = g @ Q
    floor = jnp.maximum(-theta[0], 0)
    tiny = jnp.finfo(T.dtype).tiny

    def solution(delta):
        z = -c / ((theta + floor) + delta)
        return z, tree_norm(z)

    def below_the_root(delta):
        return sigma * solution(delta)[1] > floor + delta

    def halve(_, bracket):
        low, high = bracket
        middle = jnp.sqrt(low) * jnp.sqrt(high)
        below = below_the_root(middle)
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    least = jnp.finfo(T.dtype).eps * jnp.max(jnp.abs(theta)) + tiny  # what the eigenvalues are known to
    most = least + jnp.sqrt(sigma) * jnp.sqrt(tree_norm(c))
    hard = (theta[0] < 0) & ~below_the_root(least)
    delta = lax.fori_loop(0, 64, halve, (least, most))[1]
    z, _ = solution(delta)
    multiplier = floor + delta
    rest = tree_norm(z[1:])
    along = jnp.sqrt(jnp.maximum((multiplier / sigma) ** 2 - rest**2, 0))
    z = z.at[0].set(jnp.where(hard, jnp.where(c[0] > 0, -along, along), z[0]))
    # -m(y), by c = -(theta + lambda) z and lambda = sigma |z|: all terms are positive
    length = jnp.vdot(z, z)
    predicted = 0.5 * jnp.vdot(z, ((theta + floor) + delta) * z) + multiplier * length / 6
    return CubicStep(Q @ z, predicted)


class AdaptiveCubicState(NamedTuple):
    weight: Scalar  # sigma; set from the first Hessian
    steps: Int[Array, ""]
    info: StepInfo


class AdaptiveCubicMethod(AbstractMethod):
    """ARC: adaptive regularisation by cubics.

        min g^T s + s^T H s / 2 + sigma |s|^3 / 3     over the Krylov space of H and g
        rho = (L(theta) - L(theta + s)) / -(the minimum)
        accept if rho > 0.1,    sigma /= 2 if rho > 0.9,    sigma *= 10 if rho < 0.1

    See `sciml_opt.adaptive_cubic`.
    """

    structured: ClassVar[bool] = False

    init_weight: Array
    dimension: int = eqx.field(static=True)

    def __init__(self, init_weight: ArrayLike = 1.0, *, dimension: int = 40):
        self.init_weight = number("init_weight", init_weight, above=0)
        self.dimension = count("dimension", dimension)

    def init(self, params: PyTree) -> AdaptiveCubicState:
        return AdaptiveCubicState(jnp.zeros((), tree_dtype(params)), jnp.int32(0), StepInfo.of(params))

    def step(
        self, loss: Callable[[PyTree], Scalar], params: PyTree, state: AdaptiveCubicState
    ) -> tuple[PyTree, AdaptiveCubicState]:
        value, g, product = expand(loss, params)
        grad_norm = tree_norm(g)
        space = lanczos(product, g, min(self.dimension, g.size))
        size = jnp.max(jnp.abs(space.tridiagonal))  # the unit of sigma, for parameters of size one
        sigma = jnp.where(state.steps == 0, self.init_weight.astype(g.dtype) * size, state.weight)
        projected = jnp.zeros_like(space.tridiagonal[0]).at[0].set(grad_norm)  # V g
        found = minimise_cubic(space.tridiagonal, projected, sigma)
        s = unravel(found.step @ space.vectors, params)
        step_norm = tree_norm(s)

        trial = loss(tree_add(params, s))
        gain_ratio = quotient(value - trial, found.predicted)
        accepted = jnp.isfinite(value) & jnp.isfinite(trial) & (trial < value) & (gain_ratio > 0.1)
        factor = jnp.where(gain_ratio > 0.9, 0.5, jnp.where(gain_ratio >= 0.1, 1.0, 10.0)).astype(g.dtype)
        eps = jnp.finfo(g.dtype).eps
        weight = jnp.clip(factor * sigma, eps * size, size / eps**2)  # outside, all steps are alike to rounding
        started = jnp.isfinite(value) & (found.predicted > 0)  # neither a NaN nor a stationary start says what to do
        info = StepInfo.of(
            params,
            loss=value,
            trial_loss=trial,
            accepted=accepted,
            damping=sigma,
            gain_ratio=gain_ratio,
            step_norm=step_norm,
            grad_norm=grad_norm,
            evaluations=1,
            gradients=1,
            products=space.steps,
            iterations=space.steps,
            linear_residual=quotient(space.residual * jnp.abs(found.step[space.steps - 1]), grad_norm),
        )
        update = jax.tree.map(lambda leaf: jnp.where(accepted, leaf, jnp.zeros_like(leaf)), s)
        return update, keep(started, AdaptiveCubicState(weight, state.steps + 1, info), state)
