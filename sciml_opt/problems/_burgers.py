"""The viscous Burgers equation, with its shock at x = 0."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

from .._check import one_of
from ..calculus import bundle, forward_laplacian
from ..objective import Objective, Term
from ._points import grid, midpoints
from ._problem import Problem, Published

VISCOSITY = 0.01 / np.pi


def burgers(boundary: Literal["dirichlet", "periodic"] = "dirichlet") -> Problem:
    """The viscous Burgers equation; a point is (x, t).

        u_t + u u_x = nu u_xx  in (-1, 1) x (0, 1),   nu = 0.01 / pi,   u(x, 0) = -sin(pi x),   u(+-1, t) = 0

    A shock of width about 4 nu stands at x = 0 from t = 0.4 on.

    **Arguments:** `boundary`: `"dirichlet"` as above, or `"periodic"` (value and slope agree at -1 and 1, one
    two-component term), which has the same solution.

    **Source:** Raissi, Perdikaris and Karniadakis, doi:10.1016/j.jcp.2018.10.045; reference by Cole and Hopf.
    """
    periodic = one_of("boundary", boundary, ("dirichlet", "periodic")) == "periodic"
    return Problem(
        name="burgers",
        title="Viscous Burgers equation, nu = 0.01 / pi",
        description=(
            "u_t + u u_x = nu u_xx for x in (-1, 1), t in (0, 1), nu = 0.01 / pi, u(x, 0) = -sin(pi x), "
            f"{'periodic' if periodic else 'zero Dirichlet'} boundary; a shock forms at x = 0. Reference by Cole-Hopf "
            "quadrature. Raissi, Perdikaris and Karniadakis, doi:10.1016/j.jcp.2018.10.045. 56 x 56 stratified points, "
            "denser around x = 0: with 1000 even ones the loss falls to 1e-8 and the error stays 0.4."
        ),
        objective=Objective(
            interior=Term(_residual),
            initial=Term(_initial, weight=10.0),
            boundary=Term(_periodic if periodic else _dirichlet, weight=10.0),
        ),
        domain={"x": (-1.0, 1.0), "t": (0.0, 1.0)},
        reference=cole_hopf,
        training_points=_periodic_points if periodic else _dirichlet_points,
        dense_points=dense_points,
        layers=(16, 16, 16),
        method="levenberg_marquardt",
        steps=800,
        target=1e-4,
        tags=("nonlinear", "parabolic", "shock", "stiff", "least_squares"),
        published=Published(8.25e-9, "SS-Broyden with residual-based points", "arXiv:2509.14198"),
    )


def _residual(u, x):
    # With space as the column and -time / nu as the drift, `second` is u_xx - u_t / nu: three channels.
    columns, drift = jnp.array([[1.0, 0.0]]), jnp.array([0.0, -1.0 / VISCOSITY])
    value, (slope,), second = forward_laplacian(u, columns, drift)(x)
    return value * slope - VISCOSITY * second


def _initial(u, x):
    return u(x) + jnp.sin(jnp.pi * x[0])


def _dirichlet(u, x):
    return u(x)


def _periodic(u, pair):
    left, right = (bundle(u)(x) for x in pair)
    return jnp.stack([left.value - right.value, left.gradient[0] - right.gradient[0]])


def cole_hopf(points: np.ndarray, nodes: int = 100) -> np.ndarray:
    """The solution of Burgers' equation by the Cole-Hopf transform and Gauss-Hermite quadrature.

        u = -sum_k p_k sin(pi y_k),   y_k = x - z_k sqrt(4 nu t),   p = softmax(log w_k - cos(pi y_k) / (2 pi nu))

    **Arguments:** `points`, `(N, 2)` rows (x, t); `nodes`, the number of Gauss-Hermite nodes z_k with weights w_k.

    **Returns:** `(N,)`.

    **Accuracy:** 1e-14 absolute for t <= 1, whose hardest points are |x| < 0.02, t -> 1 (two distant saddle points;
    80 nodes: 1e-13, 50 nodes: 2e-7). The softmax form neither over- nor underflows. Near x = 0 the two saddle points
    cancel, so that digits relative to the small |u| are lost there.

    **Cost:** `N nodes` exponentials; memory `N nodes`.

    **Source:** Basdevant et al. (1986), doi:10.1016/0045-7930(86)90036-8.
    """
    z, w = np.polynomial.hermite.hermgauss(nodes)
    x, t = points[:, :1], points[:, 1:]
    y = x - np.sqrt(4 * VISCOSITY * t) * z
    exponent = np.log(w) - np.cos(np.pi * y) / (2 * np.pi * VISCOSITY)
    p = np.exp(exponent - np.max(exponent, axis=1, keepdims=True))
    return -np.sum(p * np.sin(np.pi * y), axis=1) / np.sum(p, axis=1)


def interior_points(n: int = 56):
    """One point in each cell of an n x n grid, four times denser at x = 0."""
    jitter = np.random.default_rng(0).random((n * n, 2))
    s, t = ((grid(np.arange(n), np.arange(n)) + jitter) / n).T
    return np.stack([denser(s), t], axis=1)


def denser(s: np.ndarray) -> np.ndarray:
    """From the unit interval to (-1, 1), four times denser at 0."""
    s = 2 * s - 1
    return 0.25 * s + 0.75 * s**3


def _dirichlet_points(n: int = 40):
    t = midpoints(n)
    return {
        "interior": interior_points(),
        "initial": grid(2 * midpoints(2 * n) - 1, np.zeros(1)),
        "boundary": grid(np.array([-1.0, 1.0]), t),
    }


def _periodic_points():
    points = _dirichlet_points()
    left, right = np.split(points["boundary"], 2)
    return points | {"boundary": np.stack([left, right], axis=1)}


def dense_points():
    return grid(np.linspace(-1.0, 1.0, 256), np.linspace(0.0, 0.99, 100))
