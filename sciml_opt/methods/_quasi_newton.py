"""What the quasi-Newton methods with a line search have in common."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._tree import ravel, tree_norm, unravel
from ..globalization import strong_wolfe_gradient_search
from ._method import StepInfo, quotient, search_info, searched_update

ROUNDING, MOST_ROUNDING = 100, 1e4  # of the loss, in units of eps: at first, and after failed searches
DROPPED = 2  # failed searches in a row after which what has been learnt is dropped
TRIALS = 20  # of a search
HOPELESS = 5  # and after which the point is stationary, but for rounding


class Searches(NamedTuple):
    """How the line searches fare."""

    failures: Int[Array, ""]  # in a row
    rounding: Scalar  # relative to the loss; smaller differences are left to the slopes
    lowest: Scalar  # loss so far, as long as it is the same function

    @classmethod
    def none(cls, dtype: jnp.dtype) -> "Searches":
        eps = jnp.asarray(jnp.finfo(dtype).eps, dtype)
        return cls(jnp.int32(0), ROUNDING * eps, jnp.full((), jnp.inf, dtype))


class Found(NamedTuple):
    """A search along `d`, and where it led to; `s` is the update as a vector, zero if nothing `moved`."""

    started: Bool[Array, ""]  # whether value and gradient were finite
    moved: Bool[Array, ""]
    step_size: Scalar
    s: Float[Array, " P"]
    update: PyTree
    value: Scalar
    grad: PyTree
    searches: Searches
    info: StepInfo


def search_along(
    loss: Callable[[PyTree], Scalar],
    params: PyTree,
    d: Float[Array, " P"],
    value: Scalar,
    grad: PyTree,
    carried: Scalar,
    searches: Searches,
    curvature: float = 0.9,
) -> Found:
    """A strong Wolfe search along `d`.

    The loss may rise to `rounding` above the lowest so far. How large its rounding is shows when a search fails: then
    ten times as much is allowed from the next one on, up to `1e4 eps`. A direction that is none of descent counts as
    `DROPPED` failures. At a point that has become `HOPELESS` one trial a step is made.

    **Arguments:** `carried`, the value that the last step left: as long as it is `value`, the loss is the same.
    """
    direction, g = unravel(d, params), ravel(grad)
    grad_norm, slope = tree_norm(g), jnp.vdot(g, d)
    same = value == carried
    lowest = jnp.where(same, searches.lowest, value)
    trials = jnp.where(same & (searches.failures >= HOPELESS), 1, TRIALS).astype(jnp.int32)
    ceiling = lowest + searches.rounding * jnp.abs(lowest)
    found, new_grad = strong_wolfe_gradient_search(
        loss, params, direction, value, grad, ceiling, curvature=curvature, trials=trials
    )
    started, moved = jnp.isfinite(value) & jnp.isfinite(grad_norm), found.step_size > 0
    failed = started & ~moved

    more = jnp.where(slope < 0, 1, DROPPED).astype(jnp.int32)
    failures = jnp.where(failed, searches.failures + more, jnp.where(moved, 0, searches.failures))
    most = MOST_ROUNDING * jnp.finfo(g.dtype).eps
    rounding = jnp.where(failed, jnp.minimum(10 * searches.rounding, most), searches.rounding)
    lowest = jnp.where(started, jnp.minimum(lowest, found.value), searches.lowest)

    report = search_info(found, d)
    # no step in any direction that was tried decreases the loss
    report["step_norm"] = jnp.where(failures >= HOPELESS, 0, report["step_norm"])
    info = StepInfo.of(
        params,
        loss=value,
        gain_ratio=quotient(value - found.value, -found.step_size * slope),  # over the linear model
        grad_norm=grad_norm,
        rung=failed,
        **report,
    )
    return Found(
        started,
        moved,
        found.step_size,
        jnp.where(moved, found.step_size * d, 0),
        searched_update(found, direction),
        found.value,
        new_grad,
        Searches(failures, rounding, lowest),
        info,
    )


def retry_length(searches: Searches, tried: int) -> Scalar:
    """A factor of the step along the gradient, other than 1 after more than `tried` failures: other trials."""
    retries = jnp.maximum(searches.failures - tried, 0) % 8
    return jnp.asarray(0.3, searches.lowest.dtype) ** retries.astype(searches.lowest.dtype)


def powell(
    s: Float[Array, " P"], y: Float[Array, " P"], Bs: Float[Array, " P"], fraction: float = 0.2
) -> Float[Array, " P"]:
    """`phi y + (1 - phi) B s`, with the largest `phi <= 1` for which `s^T y >= fraction s^T B s`.

    Source: Powell (1978), doi:10.1007/BFb0067703; Nocedal and Wright, procedure 18.2.
    """
    sy, sBs = jnp.vdot(s, y), jnp.vdot(s, Bs)
    phi = jnp.where(sy >= fraction * sBs, 1, (1 - fraction) * quotient(sBs, sBs - sy))
    return phi * y + (1 - phi) * Bs


def resolved(
    s: Float[Array, " P"], y: Float[Array, " P"], g: Float[Array, " P"], g_new: Float[Array, " P"]
) -> Bool[Array, ""]:
    """Whether the curvature along `s` is positive, and above the rounding of the gradients: the cautious update."""
    rounding = jnp.finfo(s.dtype).eps * tree_norm(s) * (tree_norm(g) + tree_norm(g_new))
    sy = jnp.vdot(s, y)
    return jnp.isfinite(sy) & (sy > rounding)
