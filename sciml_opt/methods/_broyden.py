"""The dense quasi-Newton methods of Broyden's class: BFGS, DFP, and the self-scaled ones."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._check import one_of
from .._tree import ravel, tree_dtype, tree_norm, tree_size, tree_where, unravel
from ._method import AbstractGradientMethod, StepInfo, quotient
from ._quasi_newton import DROPPED, Searches, powell, resolved, retry_length, search_along

Update = Literal["bfgs", "dfp", "ss_bfgs_ab", "ss_bfgs_ol", "ss_broyden1", "ss_broyden2"]


class BroydenState(NamedTuple):
    inverse: Float[Array, "P P"]  # H
    updates: Int[Array, ""]  # of H since it was a multiple of the identity
    searches: Searches
    value: Scalar  # and gradient, at the point that the last step led to
    grad: PyTree
    info: StepInfo


class BroydenMethod(AbstractGradientMethod):
    """A quasi-Newton method of Broyden's class, with the dense inverse `H`.

        d = -H g,   s = eta d,   y = g+ - g,   eta by `strong_wolfe_gradient_search`
        v = s / s^T y - H y / y^T H y
        H+ = (H - H y y^T H / y^T H y + phi (y^T H y) v v^T) / tau + s s^T / s^T y

    with `phi` and `tau` by `broyden_coefficients`. See `sciml_opt.bfgs`, `sciml_opt.ss_broyden`.
    """

    update: Update = eqx.field(static=True)
    damped: bool = eqx.field(static=True)

    def __init__(self, update: Update, *, damped: bool = False):
        self.update = one_of("update", update, get_args(Update))
        self.damped = damped

    def init(self, params: PyTree) -> BroydenState:
        dtype, size = tree_dtype(params), tree_size(params)
        nowhere = jnp.full((), jnp.inf, dtype)
        grad = unravel(jnp.zeros(size, dtype), params)
        H = jnp.eye(size, dtype=dtype)
        return BroydenState(H, jnp.int32(0), Searches.none(dtype), nowhere, grad, StepInfo.of(params))

    def advance(
        self, loss: Callable[[PyTree], Scalar], params: PyTree, value: Scalar, grad: PyTree, state: BroydenState
    ) -> tuple[PyTree, BroydenState]:
        H, g = state.inverse, ravel(grad)
        first = state.updates == 0
        # as long as H is the identity, it stands for the multiple with which the first step has length 1
        unit = retry_length(state.searches, DROPPED) * quotient(jnp.ones_like(value), tree_norm(g))
        unit = jnp.where(first, unit, 1)
        d = -unit * (H @ g)
        curvature = 0.1 if self.update == "dfp" else 0.9  # DFP does not recover from a poor step
        found = search_along(loss, params, d, value, grad, state.value, state.searches, curvature)
        s, eta, g_new = found.s, found.step_size, ravel(found.grad)
        y = g_new - g
        if self.damped:
            y = powell(s, y, -eta * g)
        keep = found.moved & resolved(s, y, g, g_new)
        dropped = found.searches.failures >= DROPPED
        H = broyden_update(H, s, y, -eta * jnp.vdot(s, g), unit, keep, dropped, first, self.update)
        updates = jnp.where(dropped, 0, state.updates + keep.astype(jnp.int32))
        value, grad = tree_where(found.started, (found.value, found.grad), (state.value, state.grad))
        return found.update, BroydenState(H, updates, found.searches, value, grad, found.info)


def broyden_update(
    H: Float[Array, "P P"],
    s: Float[Array, " P"],
    y: Float[Array, " P"],
    sBs: Scalar,
    unit: Scalar,
    keep: Bool[Array, ""],
    reset: Bool[Array, ""],
    first: Bool[Array, ""],
    update: Update,
) -> Float[Array, "P P"]:
    """`H+`; `H` itself unless `keep`, the identity after `reset`.

    Everything is a coefficient of one pass over the matrix: a choice between matrices would copy them.

    **Arguments:** `unit` times `H` is the matrix that is updated; `first`, whether it is a multiple of the identity.
    """
    s, y, unit = jnp.where(keep, s, 0), jnp.where(keep, y, 0), jnp.where(keep, unit, 1)
    Hy = unit * (H @ y)
    sy, yHy = jnp.vdot(s, y), jnp.vdot(y, Hy)
    keep = keep & (yHy > 0)  # rounding: H is positive definite
    one = jnp.ones_like(sy)
    sy, yHy, sBs = (jnp.where(keep, x, one) for x in (sy, yHy, sBs))
    phi, tau = broyden_coefficients(sBs / sy, yHy / sy, len(s), first, update)
    usable = keep & jnp.isfinite(phi) & jnp.isfinite(tau) & (tau > 0)
    v = s / sy - Hy / yHy
    on = usable.astype(s.dtype)
    old = jnp.where(usable, unit / tau, 1) * (1 - reset.astype(s.dtype))
    gone = on / (jnp.where(usable, tau, 1) * yHy)
    extra = on * jnp.where(usable, phi / tau, 0) * yHy
    new = on / sy
    H = old * H - gone * jnp.outer(Hy, Hy) + extra * jnp.outer(v, v) + new * jnp.outer(s, s)
    return H + jnp.diag(jnp.full_like(s, reset))


def broyden_coefficients(
    b: Scalar, h: Scalar, size: int, first: Bool[Array, ""], update: Update
) -> tuple[Scalar, Scalar]:
    """`phi` and `tau` of the update.

    `tau = h` (`y^T H y / s^T y`, `phi = 1`) and its like for the other members scale the first multiple of the
    identity. After it, with `a = b h - 1`:

        BFGS, DFP      phi = 1, 0       tau = 1
        SS-BFGS (AB)   phi = 1          tau = min(1, 1/b);      (OL)  tau = 1/b
        SS-Broyden     phi = (1 - theta) / (1 + a theta),   c = sqrt(|a| / (1 + a)),   rho- = min(1, h (1 - c))
                       theta- = (rho- - 1) / a,   theta+ = 1 / rho-
                       (1)  theta = max(theta-, 1/(1 - b)) if b > 1, else min(theta+, 1/(1 - b))
                       (2)  theta = max(theta-, min(theta+, (1 - b) / b))
                       sigma = 1 + a theta,   sigma_n = |sigma|^(1 / (1 - P))
                       tau = min(min(1, 1/b) sigma_n, sigma)  if theta <= 0,  else  min(1, 1/b) min(sigma_n, 1 / theta)

    **Arguments:** `b = s^T B s / s^T y`, `h = y^T H y / s^T y`; `size`, the number of parameters P.

    Source: Urban, Stefanou and Pons, arXiv:2405.04230, equations 7 to 23; Al-Baali and Khalfan (2005); Oren and
    Luenberger (1974), doi:10.1287/mnsc.20.5.845.
    """
    one = jnp.ones_like(b)
    if update == "dfp":
        return 0 * one, jnp.where(first, h, 1)
    if not update.startswith("ss_broyden"):
        tau = {"bfgs": one, "ss_bfgs_ab": jnp.minimum(1, 1 / b), "ss_bfgs_ol": 1 / b}[update]
        return one, jnp.where(first, h, tau)
    a = jnp.maximum(b * h - 1, jnp.finfo(b.dtype).eps)  # zero on a quadratic in one dimension; theta- divides by it
    rho = jnp.minimum(1, h * (1 - jnp.sqrt(a / (1 + a))))
    lower, upper = (rho - 1) / a, 1 / rho
    if update == "ss_broyden1":
        rank_one = 1 / jnp.where(b == 1, 1, 1 - b)
        theta = jnp.where(b > 1, jnp.maximum(lower, rank_one), jnp.minimum(upper, rank_one))
        theta = jnp.where(b == 1, lower, theta)
    else:
        theta = jnp.maximum(lower, jnp.minimum(upper, (1 - b) / b))
    sigma = 1 + a * theta
    sigma_n = jnp.abs(sigma) ** (1 / (1 - size)) if size > 1 else one
    scale = jnp.minimum(1, 1 / b)
    tau = jnp.where(
        theta <= 0,
        jnp.minimum(scale * sigma_n, sigma),
        scale * jnp.minimum(sigma_n, 1 / jnp.where(theta > 0, theta, 1)),
    )
    return (1 - theta) / sigma, jnp.where(first, h / sigma, tau)
