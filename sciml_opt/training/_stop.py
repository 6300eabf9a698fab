"""When to stop."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike

from .._check import count, number


class Stop(eqx.Module):
    """Conditions that end a run or a phase; the first one met counts. Another number does not retrace.

    **Arguments:**

    - `loss`: stop when the loss is at most this.
    - `error`: stop when the error metric is at most this.
    - `grad_norm`: stop when the Euclidean norm of the gradient is at most this.
    - `noise`: stop when the batch is too small, by the norm test: the standard deviation of its gradient exceeds
      `noise` times the norm (`so.norm_test`, for batches drawn at random; 0.9 is usual). It is measured as often as the
      error, for two gradients. As the end of a phase it lets batches grow.
    - `plateau`: stop when the loss has not fallen by more than 0.1 % (of its size; it may be negative) in this many
      steps.
    - `seconds`: stop after this much wall-clock time of training, compilation excluded (`fit` only).

    **Example:** `so.fit(..., until=so.Stop(error=1e-6, seconds=30))`.
    """

    loss: Array
    error: Array
    grad_norm: Array | None  # nothing is computed for a condition that is not asked for
    noise: Array | None
    plateau: Array
    seconds: Array

    def __init__(
        self,
        *,
        loss: ArrayLike | None = None,
        error: ArrayLike | None = None,
        grad_norm: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        plateau: int | None = None,
        seconds: ArrayLike | None = None,
    ):
        self.loss = number("Stop(loss=...)", -jnp.inf if loss is None else loss, at_least=-jnp.inf, finite=False)
        self.error = number("Stop(error=...)", -jnp.inf if error is None else error, at_least=-jnp.inf, finite=False)
        self.grad_norm = None if grad_norm is None else number("Stop(grad_norm=...)", grad_norm, at_least=0)
        self.noise = None if noise is None else number("Stop(noise=...)", noise, above=0)
        never = jnp.iinfo(jnp.int32).max
        self.plateau = jnp.int32(never if plateau is None else count("Stop(plateau=...)", plateau))
        self.seconds = number("Stop(seconds=...)", jnp.inf if seconds is None else seconds, above=0, finite=False)
