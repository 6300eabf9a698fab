"""Dual cone gradient descent, for two groups of terms."""

from collections.abc import Iterable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .._check import one_of, parameters
from .._tree import tree_dtype
from ..objective import BoundObjective
from ._term_gradients import as_updates, bound_terms, gradient_rows, unit

Variant = Literal["center", "projection", "average"]


def dual_cone_gradient(
    residual: str | Iterable[str], *, variant: Variant = "center"
) -> optax.GradientTransformationExtraArgs:
    """Dual cone gradient descent (DCGD): a direction along which neither of two groups of terms rises.

        g = g_r + g_b,      u_r = g_r / |g_r|,   u_b = g_b / |g_b|,      P_u g = g - (g^T u) u

        center:      (c^T g / |c|^2) c,      c = u_r + u_b
        projection:  g if g^T g_r >= 0 and g^T g_b >= 0, else P_r g (if g^T g_r < 0) or P_b g
        average:     g if g^T g_r >= 0 and g^T g_b >= 0, else (P_r g + P_b g) / 2

    Each has a non-negative inner product with `g_r` and with `g_b`. The center, the bisector, has the same angle with
    both whatever their lengths. Where one gradient is zero, `g` is the other; where they are opposite to rounding no
    direction lowers both, and the center is zero.

    **Arguments:**

    - `residual`: names of the terms of the first group, in a PINN the residuals of the equation; the second group are
      all others (boundary, initial, data).
    - `variant`: `"center"`, `"projection"` or `"average"`.

    **Returns:** an optax transformation with an ascent direction; its `update` needs a bound objective as `value_fn`,
    and `params`. If any gradient is not finite the update is zero.

    **Errors:** `ValueError` for a name that is no term, a group without terms, or if `updates` is not the gradient.

    **Cost:** one gradient, and a few vectors.

    Source: Hwang and Lim, arXiv:2409.18426.

    **Example:** `optax.chain(so.dual_cone_gradient("interior"), optax.adam(1e-3))`.
    """
    names = (residual,) if isinstance(residual, str) else tuple(residual)
    combine = jax.tree_util.Partial(_VARIANTS[one_of("variant", variant, get_args(Variant))])
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init), jax.tree_util.Partial(_update, combine, dict.fromkeys(names))
    )


def _init(params: PyTree) -> optax.EmptyState:
    tree_dtype(parameters(params))
    return optax.EmptyState()


def _update(combine, residual, updates, state, params=None, *, value_fn=None, grad=None, **extra):
    del extra
    loss = bound_terms(value_fn, updates, params, grad)
    _require_two_groups(tuple(residual), loss)
    rows = gradient_rows(loss, params)
    first = jnp.array([name in residual for name in loss.terms])[:, None]
    g_r = jnp.sum(jnp.where(first, rows, 0), axis=0)
    g_b = jnp.sum(jnp.where(first, 0, rows), axis=0)
    return as_updates(combine(g_r, g_b), jnp.all(jnp.isfinite(rows)), params), state


def _require_two_groups(residual: tuple[str, ...], loss: BoundObjective) -> None:
    odd = sorted(set(residual) - set(loss.terms))
    if odd or not 0 < len(residual) < len(loss.terms):
        raise ValueError(
            f"residual must name some of the terms of the objective, {list(loss.terms)}, and leave others for the "
            f"second group; got {sorted(residual)}."
        )


def _center(g_r: Float[Array, " P"], g_b: Float[Array, " P"]) -> Float[Array, " P"]:
    g, c = g_r + g_b, unit(g_r) + unit(g_b)
    square = jnp.vdot(c, c)  # 2 + 2 cos of the angle
    opposite = square <= 8 * jnp.finfo(c.dtype).eps
    return jnp.where(opposite, 0, jnp.vdot(c, g) / jnp.where(opposite, 1, square)) * c


def _projection(g_r: Float[Array, " P"], g_b: Float[Array, " P"]) -> Float[Array, " P"]:
    g = g_r + g_b  # |g|^2 = g^T g_r + g^T g_b: at most one is negative
    return g - sum(jnp.minimum(jnp.vdot(g, u), 0) * u for u in (unit(g_r), unit(g_b)))


def _average(g_r: Float[Array, " P"], g_b: Float[Array, " P"]) -> Float[Array, " P"]:
    g, u_r, u_b = g_r + g_b, unit(g_r), unit(g_b)
    inside = (jnp.vdot(g, u_r) >= 0) & (jnp.vdot(g, u_b) >= 0)
    return jnp.where(inside, g, g - (jnp.vdot(g, u_r) * u_r + jnp.vdot(g, u_b) * u_b) / 2)


_VARIANTS = {"center": _center, "projection": _projection, "average": _average}
