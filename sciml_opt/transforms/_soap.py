"""SOAP: Adam in the eigenbases of Shampoo's factors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int

from ..curvature._eigenbasis import gradient_factors, power_iteration, reorder, rotate, rotate_back
from ._stacked import Stack, StackedRule, StackedState, running_factors, running_mean, to_ascent, to_descent


class _Soap(StackedRule):
    def step(self, gradients: tuple[Array, ...], state: StackedState) -> tuple[tuple[Array, ...], tuple[Stack, ...]]:
        leaves = jax.vmap(self._leaf, in_axes=(0, 0, None))
        directions, stacks = zip(
            *(leaves(G, stack, state.steps) for G, stack in zip(gradients, state.stacks, strict=True)), strict=True
        )
        return directions, self.refreshed(stacks, state.steps)

    def _leaf(self, G: Array, stack: Stack, steps: Int[Array, ""]) -> tuple[Array, Stack]:
        """Algorithm 3 of the paper without its last lines, the new bases; `factors` are its L and R, `Q` its two Q."""
        M, V, factors, Q = stack
        M = running_mean(self.b1, M, G)
        V = running_mean(self.b2, V, rotate(Q, G) ** 2)
        N = rotate_back(Q, self.adam(rotate(Q, M), V, jnp.maximum(steps, 1)))
        factors = running_factors(self.b2, factors, gradient_factors(G, factors))

        first = steps == 0  # there are no bases yet

        def zero_if_first(x: Array) -> Array:
            return jnp.where(first, jnp.zeros_like(x), x)

        return zero_if_first(N), Stack(zero_if_first(M), zero_if_first(V), factors, Q)

    def turn(self, stack: Stack) -> Stack:
        bases, orders = power_iteration(stack.factors, stack.bases)
        return stack._replace(bases=bases, moments=reorder(orders, stack.moments))


def scale_by_soap(
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    refresh: int = 2,
    max_dim: int = 10_000,
) -> optax.GradientTransformationExtraArgs:
    """SOAP's direction: Adam in the eigenbases of the Kronecker factors of the gradient.

        L = EMA(G G^T),    R = EMA(G^T G),    L = Q_L Lambda_L Q_L^T,    R = Q_R Lambda_R Q_R^T
        G' = Q_L^T G Q_R,      M = EMA(G),    M' = Q_L^T M Q_R,      V = EMA(G' * G')
        direction = Q_L (M^' / (sqrt(V^) + eps)) Q_R^T

    with Adam's bias correction (the hats). The bases come from `eigh` of the first gradient's factors, later, every
    `refresh` steps, from one power iteration `Q <- qr(L Q)`, whose columns are sorted together with V. As in the paper
    the first gradient only makes the bases: the first update is zero, and no gradient is seen in a basis that knows it.
    An array with more axes has a factor for every axis (the products of its slices); vectors and scalars are Adam's.
    All arrays of one shape (the hidden layers of a network) are handled together, by batched products, `eigh` and `qr`.

    The defaults are those of SOAP for PINNs (jaxpi: `b1` 0.9, `b2` 0.999, `refresh` 2); the paper trains language
    models with 0.95, 0.95 and 10.

    **Arguments:**

    - `b1`, `b2`: in [0, 1), the weight of the past in M, and in V, L and R.
    - `eps`: in units of the gradient. Directions in which a layer has a gradient below rounding (about 1e-7 of its
      largest in float32) are noise, and noise above `eps` is scaled up to full steps, as Adam does with small entries.
    - `refresh`: steps from one change of the bases to the next.
    - `max_dim`: an axis with more entries keeps the identity.

    **Returns:** an optax transformation whose updates point uphill, as those of `optax.scale_by_adam`. After a gradient
    that is not finite, or whose square overflows, the update is zero and the state as it was.

    **Errors:** `TypeError` for parameters that are not real floats; `ValueError` for numbers out of range and for
    updates that are not shaped like the parameters.

    **Cost:** for a matrix of m x n `8 m n (m + n)` flops a step, and `7 (m^3 + n^3)` in a step that refreshes;
    memory `2 m n + 2 (m^2 + n^2)`. Under `vmap` every step computes new bases, also by `eigh`.

    Source: Vyas, Morwani, Zhao, Shapira, Brandfonbrener, Janson and Kakade, arXiv:2409.11321; for PINNs
    arXiv:2502.00604.

    **Example:** `tx = optax.chain(optax.clip_by_global_norm(1.0), so.scale_by_soap(), optax.scale(-1e-3))`
    """
    return to_ascent(_Soap(b1, b2, eps, refresh, max_dim))


def soap(
    learning_rate: ArrayLike | Callable[[Int[Array, ""]], ArrayLike] = 1e-3,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    *,
    refresh: int = 2,
    max_dim: int = 10_000,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """SOAP: Adam in the eigenbases of Shampoo's factors.

        step = -learning_rate * (direction + weight_decay * theta)

    with the direction of `scale_by_soap`, see there; the same as a chain of that, `optax.add_decayed_weights` and
    `optax.scale_by_learning_rate`, but its numbers are arrays, which can change without a retrace.

    On 2-D Poisson with a 2-32-32-1 network, after 2000 steps at the best of the learning rates 1e-3, 3e-3 and 1e-2, the
    median loss of 5 seeds was 2.0e-4, with Adam 2.8e-3; with one hidden layer (3000 steps) it was 7.5e-4 and 9.2e-4. On
    one CPU core a step of a 2-64-64-1 network took 1.17 times one of Adam.

    **Arguments:**

    - `learning_rate`: a number or a schedule, `step -> number`; it is about the largest change of a parameter a step.
    - `weight_decay`: of decoupled weight decay, relative to the learning rate.
    - The others as in `scale_by_soap`.

    **Returns:** an optax transformation; `update` needs `params`. The first update is the weight decay alone.

    **Errors:** as `scale_by_soap`; `ValueError` without `params`.

    **Cost:** as `scale_by_soap`.

    Source: arXiv:2409.11321.

    **Example:**

    ```python
    tx = so.soap(optax.exponential_decay(3e-3, 2000, 0.9))
    state = tx.init(params)
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
    ```
    """
    rule = _Soap(b1, b2, eps, refresh, max_dim)
    return to_descent(rule, learning_rate, weight_decay)
