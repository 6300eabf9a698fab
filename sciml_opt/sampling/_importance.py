"""Importance sampling: few points of a pool, with weights that keep its mean."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._check import count as positive
from ..objective import Weighted
from ..objective._objective import point_count


def importance_sampled(
    key: PRNGKeyArray, points: PyTree, density: Float[Array, " M"], count: int, *, replace: bool = False
) -> Weighted:
    """`count` points of a pool, drawn by a density, with weights that make their sum an unbiased mean over the pool.

        E sum_i w_i f(x_i) = 1/M sum_{j=1..M} f(x_j)

    With replacement `w_i = 1 / (N M p_i)`. Without, the N largest `log p_j + Gumbel` are taken, the next one is the
    threshold `kappa`, and `w_i = 1 / (M P(log p_i + Gumbel > kappa))`.

    **Arguments:**

    - `key`; `points`, a pytree with leading axes `M`; `count`, the number `N`.
    - `density`: `p`, `(M,)`, not negative; its sum does not matter. Points where it is 0 are left out: there `f`
      should be 0.
    - `replace`: whether a point may be drawn more than once.

    **Returns:** `Weighted(points, weights)`.

    **Errors:** `ValueError` for a density of another shape, or more points than the pool has, without replacement.

    **Cost:** `M` random numbers, and the N largest of them.

    Source: Kool, van Hoof and Welling, arXiv:1903.06059, section 4.

    **Example:** `so.sampling.importance_sampled(key, pool, residual**2, 500)`
    """
    size = point_count("points", points, None)
    if density.shape != (size,):
        raise ValueError(f"density must have shape ({size},), one number a point, got {density.shape}.")
    chosen, weights = draw(key, density, count, replace)
    return Weighted(jax.tree.map(lambda leaf: jnp.asarray(leaf)[chosen], points), weights)


def draw(
    key: PRNGKeyArray, density: Float[Array, " M"], count: int, replace: bool
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """Indices of the points that are drawn, and their weights."""
    size, count = len(density), positive("count", count)
    if replace:
        chosen = jax.random.categorical(key, jnp.log(density), shape=(count,))
        return chosen, jnp.mean(density) / (count * density[chosen])
    if count > size:
        raise ValueError(f"count={count} different points cannot be drawn from a pool of {size}.")
    logs = jnp.log(density)
    perturbed = logs + jax.random.gumbel(key, logs.shape, logs.dtype)
    if count == size:
        return jnp.argsort(-perturbed), jnp.full(size, 1 / size, logs.dtype)
    largest, chosen = jax.lax.top_k(perturbed, count + 1)
    chosen, threshold = chosen[:count], largest[count]
    drawn = largest[:count] > -jnp.inf  # not so where fewer than `count` points have a density
    probability = -jnp.expm1(-jnp.exp(logs[chosen] - threshold))
    return chosen, jnp.where(drawn, 1 / (size * jnp.where(drawn, probability, 1)), 0)
