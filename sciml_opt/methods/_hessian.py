"""What the methods on the true Hessian share."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from .._tree import ravel, unravel


def expand(
    loss: Callable[[PyTree], Scalar], params: PyTree
) -> tuple[Scalar, Float[Array, " P"], Callable[[Float[Array, " P"]], Float[Array, " P"]]]:
    """`L`, the flat gradient and `v -> H v` at `params`, from one linearization of the gradient.

    **Cost:** about three losses and the memory of the traced gradient; then about two losses a product.
    """
    (value, grad), push = jax.linearize(jax.value_and_grad(loss), params)
    return value, ravel(grad), lambda v: ravel(push(unravel(v, params))[1])


def forcing_term(forcing: Scalar, grad_norm: Scalar, old_norm: Scalar, largest: Scalar) -> Scalar:
    """How well to solve the next Newton system: the relative residual `eta` that follows the fall of the gradient.

        eta = 0.9 (|g| / |g_old|)^2,    at least 0.9 eta_old^2 while that exceeds 0.1,    at most `largest`

    Quadratic convergence in the end, and no work wasted on a model that does not hold yet.

    Source: Eisenstat and Walker (1996), doi:10.1137/0917003, choice 2 with its safeguard.
    """
    eta, guard = 0.9 * (grad_norm / old_norm) ** 2, 0.9 * forcing**2
    eta = jnp.where(guard > 0.1, jnp.maximum(eta, guard), eta)
    return jnp.where(eta < largest, eta, largest)  # also at the first step, where `old_norm` is zero
