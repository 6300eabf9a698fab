"""The Allen-Cahn equation, with its thin fronts."""

import jax
import jax.numpy as jnp
import numpy as np

from ..calculus import forward_laplacian
from ..objective import Objective, Term
from ._ansatz import ansatz, harmonics
from ._points import grid
from ._problem import Problem, Published
from .references import tabulated

DIFFUSION = 1e-4


def allen_cahn() -> Problem:
    """The Allen-Cahn equation; a point is (x, t).

        u_t = 1e-4 u_xx + 5 (u - u^3)  in (-1, 1) x (0, 1),   u(x, 0) = x^2 cos(pi x),   periodic in x

    Small waves grow to plateaus at 1 and -1, with fronts of width 0.01 between them at x = +-0.5.

    The model is a network inside the flow of the reaction, which has a closed form,

        u = E w / sqrt(1 + (E^2 - 1) w^2),   E = e^(5 t),   w = x^2 cos(pi x) + k(x, t) + t N(x, t) / 100

    for `w` hardly moves. It is even in x, as the solution is, and periodic. The start has a kink at x = +-1, which
    diffusion rounds off at once: `k` is that of the heat equation.

    **Source:** Raissi, Perdikaris and Karniadakis, doi:10.1016/j.jcp.2018.10.045.
    """
    return Problem(
        name="allen_cahn",
        title="Allen-Cahn equation, diffusion 1e-4",
        description=(
            "u_t = 1e-4 u_xx + 5 (u - u^3) for x in (-1, 1), t in (0, 1) with u(x, 0) = x^2 cos(pi x), periodic in x. "
            "Raissi, Perdikaris and Karniadakis, doi:10.1016/j.jcp.2018.10.045. Reference by a cosine series and "
            "ETDRK4. The model is exact at t = 0, periodic, and even in x as the solution is, so that its points have "
            "x > 0; the network stands inside the closed-form flow of the reaction, and the kink of the initial value "
            "at x = 1 is rounded as the heat equation does."
        ),
        objective=Objective(interior=Term(_residual)),
        domain={"x": (-1.0, 1.0), "t": (0.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(20, 20),
        method="levenberg_marquardt",
        steps=400,
        target=1e-6,
        tags=("nonlinear", "parabolic", "stiff", "least_squares"),
        network=ansatz(_form, 5),
        reference_error=1.1e-11,
        published=Published(1.88e-6, "vRBA with SSBroyden", "arXiv:2509.14198"),
    )


def _form(network, x):
    x, t = x
    waves, _ = harmonics(jnp.pi * x, 2)
    y = 1 - jnp.abs(x)
    kink = _rounding(y, t)
    growth = jnp.exp(5 * t)
    w = x**2 * jnp.cos(jnp.pi * x) - 2 * jnp.cos(jnp.pi * x) * kink
    front = growth * w / jnp.sqrt(1 + (growth**2 - 1) * w**2)
    w += 0.01 * t * network(jnp.stack([*waves, jnp.tanh(20 * (y + kink)), 2 * t - 1, front]))
    return growth * w / jnp.sqrt(1 + (growth**2 - 1) * w**2)


def _rounding(y, t):
    """What the heat equation adds to `|y|` until t, for y >= 0."""
    width = jnp.sqrt(4 * DIFFUSION * t + 1e-20)
    z = y / width
    return width / jnp.sqrt(jnp.pi) * jnp.exp(-(z**2)) - y * jax.scipy.special.erfc(z)


def _residual(u, x):
    columns, drift = jnp.array([[DIFFUSION**0.5, 0.0]]), jnp.array([0.0, -1.0])
    value, _, second = forward_laplacian(u, columns, drift)(x)  # second = 1e-4 u_xx - u_t
    return second + 5 * (value - value**3)


_table = tabulated("allen_cahn", ("x", "t"))


def _reference(points):
    return _table(np.abs(points))


def _training_points(columns: int = 80, rows: int = 48):
    """One point in each cell of a grid, whose cells are narrower at the front, x = 0.5, and at the kink, x = 1."""
    jitter = np.random.default_rng(0).random((columns * rows, 2))
    s, t = ((grid(np.arange(columns), np.arange(rows)) + jitter) / [columns, rows]).T
    x = np.linspace(0.0, 1.0, 2001)
    density = 1 + 8 * np.exp(-np.abs(x - 0.5) / 0.03) + 20 * np.exp(-np.abs(x - 1) / 0.01)
    cumulative = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return {"interior": np.stack([np.interp(s, cumulative / cumulative[-1], x), t], axis=1)}


def _dense_points():
    return grid(np.linspace(-1.0, 1.0, 257), np.linspace(0.0, 1.0, 101))
