"""How noisy is the gradient of a batch: the norm test."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, PyTree, Scalar

from .._check import count, number
from .._tree import ravel
from ..objective import BoundObjective


class GradientNoise(NamedTuple):
    """The noise of the gradient `g` of a batch.

    **Fields:** `variance`, an estimate of `E |g - E g|^2`; `squared_norm`, `|g|^2`; `ratio`, the first over the second
    (0 if nothing varies).
    """

    variance: Scalar
    squared_norm: Scalar
    ratio: Scalar


def gradient_noise(loss: BoundObjective, params: PyTree, groups: int = 16) -> GradientNoise:
    """The variance of the gradient of a batch, from the gradients of equal parts of it.

        Var(g) ~ sum_j |g_j - g|^2 / (G (G - 1)),      g = 1/G sum_j g_j,      j = 1 .. G

    The points of every term are dealt out at random to the parts. Product terms, and those of fewer than `G` points,
    are kept whole, and add no variance.
    The points are taken for independent draws: of a grid this tells how much its points differ, which is more than
    the quadrature error.

    **Arguments:** `loss`, a bound objective; `params`; `groups`, the number `G` of parts: the estimate has a relative
    standard deviation of about `sqrt(2 / (G - 1))` if few parameters dominate, and less if many share.

    **Returns:** a `GradientNoise`.

    **Errors:** `TypeError` if `loss` is no bound objective; `ValueError` if no term can be divided.

    **Cost:** two gradients; memory `G P`.

    Source: Byrd, Chin, Nocedal and Wu (2012), doi:10.1007/s10107-012-0572-5, there from the gradients of single points.

    **Example:** `so.gradient_noise(objective.bind(batch, static=static), params).ratio`
    """
    if not isinstance(loss, BoundObjective):
        raise TypeError(f"loss must be a bound objective, objective.bind(batch), got {type(loss).__name__}.")
    groups = count("groups", groups)
    if not 2 <= groups <= max(loss.sizes.values(), default=0):
        raise ValueError(
            f"groups must be at least 2 and at most the number of points of a term, {loss.sizes} (those of a Product "
            f"are not divided), got {groups}."
        )
    gradients = jax.vmap(lambda j: ravel(jax.grad(loss.part(j, groups))(params)))(jnp.arange(groups))
    deviations = gradients - jnp.mean(gradients, axis=0)[None]
    variance = jnp.sum(deviations**2) / (groups * (groups - 1))
    g = ravel(jax.grad(loss)(params))  # not the mean over the parts, some of which may have a point less
    squared_norm = jnp.vdot(g, g)
    ratio = jnp.where(variance == 0, jnp.zeros_like(variance), variance / squared_norm)
    return GradientNoise(variance, squared_norm, ratio)


def norm_test(loss: BoundObjective, params: PyTree, theta: ArrayLike = 0.9, groups: int = 16) -> Bool[Array, ""]:
    """Whether the gradient of a batch stands out of its noise.

        Var(g) <= theta^2 |g|^2

    If so, `-g` is probably a direction of descent of the expected loss. If not, the batch is too small: one larger by
    `ratio / theta^2` (of `gradient_noise`) would pass.

    **Arguments:** `loss`, `params`, `groups` as in `gradient_noise`; `theta`, the noise that is allowed.

    **Returns:** a boolean; false for a gradient that is not finite.

    **Errors** and **Cost:** as in `gradient_noise`.

    Source: Byrd, Chin, Nocedal and Wu (2012), doi:10.1007/s10107-012-0572-5, equation 3.4.

    **Example:** `so.norm_test(objective.bind(batch, static=static), params)`
    """
    theta = number("theta", theta, above=0)
    noise = gradient_noise(loss, params, groups)
    return noise.variance <= theta.astype(noise.variance.dtype) ** 2 * noise.squared_norm
