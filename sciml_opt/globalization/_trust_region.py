"""Gain-ratio control of a trust-region radius."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Scalar


def trust_region_update(
    radius: Scalar, gain_ratio: Scalar, on_boundary: Bool[Array, ""], step_norm: Scalar, least: Scalar
) -> Scalar:
    """The next radius after a step with gain ratio `rho` (actual over predicted decrease).

        rho < 1/4:                           Delta = |s| / 4
        rho > 3/4 and s on the boundary:     Delta *= 2

    **Arguments:** `radius` is Delta, `step_norm` is `|s|` (at most Delta). A NaN `gain_ratio` shrinks the radius.
    `least` is the smallest radius, below which steps are lost in rounding.

    Source: Nocedal and Wright, Numerical Optimization, algorithm 4.1 (with `Delta / 4`, which repeats an interior
    step).
    """
    grown = jnp.where((gain_ratio > 0.75) & on_boundary, 2 * radius, radius)
    return jnp.maximum(jnp.where(gain_ratio >= 0.25, grown, step_norm / 4), least)
