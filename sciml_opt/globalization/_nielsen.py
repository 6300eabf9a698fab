"""Gain-ratio control of the Levenberg-Marquardt damping."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Scalar


def nielsen_update(
    damping: Scalar, growth: Scalar, gain_ratio: Scalar, accepted: Bool[Array, ""], size: Scalar
) -> tuple[Scalar, Scalar]:
    """Nielsen's rule for the damping `lambda` after a trial with gain ratio `rho` (actual over predicted decrease).

        accepted:  lambda *= max(1/3, 1 - (2 rho - 1)^3),  nu = 2
        rejected:  lambda *= nu,                           nu *= 2

    **Arguments:** `damping` is lambda, `growth` nu, both scalars; `size` is the largest diagonal entry of `D^-1 J^T J`,
    the unit of lambda. **Returns:** the new pair, kept inside `[1e-20, 1e6] * size` and `[2, 1e6]`.

    Source: Nielsen, Damping parameter in Marquardt's method, IMM-REP-1999-05 (1999).
    """
    shrink = jnp.maximum(1 / 3, 1 - (2 * jnp.minimum(gain_ratio, 1) - 1) ** 3)
    damping = jnp.where(accepted, damping * shrink, damping * growth)
    growth = jnp.where(accepted, jnp.full_like(growth, 2), jnp.minimum(2 * growth, 1e6))
    return jnp.clip(damping, 1e-20 * size, 1e6 * size), growth
