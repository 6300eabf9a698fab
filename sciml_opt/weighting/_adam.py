"""Adam for the weights themselves."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

B1, B2, EPS = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
    """First and second moment of a gradient, not yet corrected for their start at zero."""

    first: Float[Array, "..."]
    second: Float[Array, "..."]

    @classmethod
    def none(cls, like: Float[Array, "..."]) -> "Moments":
        return cls(jnp.zeros_like(like), jnp.zeros_like(like))

    def follow(self, gradient: Float[Array, "..."]) -> "Moments":
        return Moments(B1 * self.first + (1 - B1) * gradient, B2 * self.second + (1 - B2) * gradient**2)

    def direction(self, steps: Int[Array, ""]) -> Float[Array, "..."]:
        """Adam's, after so many gradients."""
        t = steps.astype(self.first.dtype)
        return self.first / (1 - B1**t) / (jnp.sqrt(self.second / (1 - B2**t)) + EPS)
