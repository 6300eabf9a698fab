"""Damping that follows the accepted step size of a line search."""

import jax.numpy as jnp
from jaxtyping import Scalar


def step_size_damping(damping: Scalar, step_size: Scalar, shrink: float, growth: float) -> Scalar:
    """The next damping after a damped direction was searched along.

        eta >= 1/4:        lambda /= shrink      (the model was trusted)
        0 < eta < 1/20:    lambda *= growth      (it was not)
        eta = 0:           lambda *= 3 growth    (no decrease anywhere)

    It needs no gain ratio, so it serves energies without a lower bound as well as least squares: large damping far from
    a solution, where an undamped Gram solve stalls, and almost none near it.

    **Arguments:** `damping` is lambda relative to the largest diagonal entry of the matrix; `step_size` is eta.
    **Returns:** the new lambda inside `[1e-20, 1e2]`.
    """
    factor = jnp.where(step_size >= 0.25, 1 / shrink, jnp.where(step_size < 0.05, growth, 1.0))
    factor = jnp.where(step_size == 0, 3 * growth, factor).astype(damping.dtype)
    return jnp.clip(damping * factor, 1e-20, 1e2)
