"""Shampoo with running means, roots from refreshed eigenbases, and Adam's step length."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int

from .._check import number
from ..curvature._eigenbasis import eigenvalues, gradient_factors, power_iteration, rotate, rotate_back
from ._stacked import Stack, StackedRule, StackedState, running_factors, running_mean, to_ascent, to_descent


class _Shampoo(StackedRule):
    damping: Array = eqx.field(converter=partial(number, "damping", above=0))

    def step(self, gradients: tuple[Array, ...], state: StackedState) -> tuple[tuple[Array, ...], tuple[Stack, ...]]:
        means = (jax.vmap(self._means)(G, stack) for G, stack in zip(gradients, state.stacks, strict=True))
        stacks = self.refreshed(tuple(means), state.steps)
        direction = jax.vmap(self._direction, in_axes=(0, None))
        return tuple(direction(stack, state.steps + 1) for stack in stacks), stacks

    def _means(self, G: Array, stack: Stack) -> Stack:
        M, V, factors, Q = stack
        M = running_mean(self.b1, M, G)
        V = running_mean(self.b2, V, G**2)
        return Stack(M, V, running_factors(self.b2, factors, gradient_factors(G, factors)), Q)

    def _direction(self, stack: Stack, steps: Int[Array, ""]) -> Array:
        """`L^(-1/2k) M R^(-1/2k)`, with the length of Adam's direction."""
        M, V, factors, Q = stack
        adam = self.adam(M, V, steps)
        spectra = eigenvalues(factors, Q)
        k = sum(values is not None for values in spectra)
        if k == 0:
            return adam
        S = rotate(Q, M)
        for axis, values in enumerate(spectra):
            if values is not None:
                roots = self._damped(values) ** (-1 / (2 * k))
                S = S * jnp.expand_dims(roots, [other for other in range(M.ndim) if other != axis])
        S = rotate_back(Q, S)
        length, own_length = (jnp.sqrt(jnp.sum(x**2)) for x in (adam, S))
        return jnp.where(own_length > 0, length / jnp.where(own_length > 0, own_length, 1), 0) * S

    def _damped(self, values: Array) -> Array:
        values = jnp.maximum(values, 0)  # rounding
        return jnp.maximum(values + self.damping.astype(values.dtype) * jnp.max(values), jnp.finfo(values.dtype).tiny)

    def turn(self, stack: Stack) -> Stack:
        return stack._replace(bases=power_iteration(stack.factors, stack.bases)[0])


def scale_by_shampoo(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    damping: ArrayLike = 1e-6,
    refresh: int = 2,
    max_dim: int = 10_000,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo's direction, a Kronecker approximation of full-matrix AdaGrad, with the length of Adam's.

        L = EMA(G G^T),    R = EMA(G^T G),    M = EMA(G),    A = Adam's direction
        S = (L + damping |L| I)^(-1/2k) M (R + damping |R| I)^(-1/2k),        direction = |A| / |S| S

    with `|L|` the largest eigenvalue, k the number of factors of the array (2 for a matrix, one for every axis in
    general) and the lengths taken array by array. The roots come from eigenbases Q: from `eigh` of the first gradient's
    factors, later, every `refresh` steps, from one power iteration `Q <- qr(L Q)`, and in every step from the
    eigenvalues `diag(Q^T L Q)`. The factors are those with the present gradient. Vectors and scalars are Adam's. All
    arrays of one shape are handled together.

    Other than in the first paper, the factors are running means and not sums, and the length is grafted (second paper),
    so that a learning rate for Adam fits.

    **Arguments:**

    - `b1`, `b2`: in [0, 1), the weight of the past in M, and in L, R and Adam's second moments.
    - `eps`: Adam's, in units of the gradient.
    - `damping`: relative to the largest eigenvalue of a factor. In float32 smaller ones than 1e-7 are noise.
    - `refresh`: steps from one change of the bases to the next.
    - `max_dim`: an axis with more entries has no factor.

    **Returns:** an optax transformation whose updates point uphill, as those of `optax.scale_by_adam`. After a gradient
    that is not finite, or whose square overflows, the update is zero and the state as it was.

    **Errors:** as `scale_by_soap`.

    **Cost:** for a matrix of m x n `6 m n (m + n) + 2 (m^3 + n^3)` flops a step, and `7 (m^3 + n^3)` in a step
    that refreshes; memory `2 m n + 2 (m^2 + n^2)`. Under `vmap` every step computes new bases, also by `eigh`.

    Source: Gupta, Koren and Singer, arXiv:1802.09568; Anil, Gupta, Koren, Regan and Singer, arXiv:2002.09018.

    **Example:** `tx = optax.chain(so.scale_by_shampoo(), optax.scale(-1e-3))`
    """
    return to_ascent(_Shampoo(b1, b2, eps, refresh, max_dim, damping))


def shampoo(
    learning_rate: ArrayLike | Callable[[Int[Array, ""]], ArrayLike] = 1e-3,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    damping: ArrayLike = 1e-6,
    refresh: int = 2,
    max_dim: int = 10_000,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Shampoo with running means and Adam's step length.

        step = -learning_rate * (direction + weight_decay * theta)

    with the direction of `scale_by_shampoo`, see there.

    **Arguments:** `learning_rate` and `weight_decay` as in `soap`, the others as in `scale_by_shampoo`.

    **Returns:** an optax transformation; `update` needs `params`.

    **Errors:** as `soap`.

    **Cost:** as `scale_by_shampoo`.

    Source: arXiv:1802.09568; arXiv:2002.09018.

    **Example:** as in `soap`.
    """
    rule = _Shampoo(b1, b2, eps, refresh, max_dim, damping)
    return to_descent(rule, learning_rate, weight_decay)
