"""A nonlinear Deep Ritz problem in one dimension."""

import jax
import jax.numpy as jnp
import numpy as np

from ..objective import Objective, Term, Weighted
from ._problem import Problem, Published


def deep_ritz1d() -> Problem:
    """A nonlinear Deep Ritz problem: an energy with a quartic potential and natural boundary conditions.

        E(u) = int_{-1}^{1} u'^2 / 2 + u^4 / 4 - f u dx,    f = pi^2 cos(pi x) + cos(pi x)^3,    u* = cos(pi x)

    The minimiser solves -u'' + u^3 = f, u'(-1) = u'(1) = 0. The energy is negative: E(u*) = -pi^2 / 2 - 9 / 16.

    **Source:** arXiv:2302.13163, section 4.4.
    """
    return Problem(
        name="deep_ritz1d",
        title="Nonlinear Deep Ritz energy, one dimension",
        description=(
            "Minimise int_{-1}^{1} u'^2 / 2 + u^4 / 4 - f u dx with f = pi^2 cos(pi x) + cos(pi x)^3 and natural "
            "boundary conditions; exact minimiser cos(pi x), energy -pi^2 / 2 - 9 / 16. Composite Gauss-Legendre "
            "quadrature. After Mueller and Zeinhofer, arXiv:2302.13163."
        ),
        objective=Objective(energy=Term(_value_and_slope, outer=_density)),
        domain={"x": (-1.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(32,),
        method="energy_natural_gradient",
        steps=600,
        target=1e-6,
        tags=("nonlinear", "elliptic", "energy"),
        published=Published(1e-7, "energy natural gradient", "arXiv:2302.13163"),
    )


def _value_and_slope(u, x):
    return jnp.stack(jax.jvp(u, (x,), (jnp.ones_like(x),)))


def _density(z, x):
    value, slope = z
    c = jnp.cos(jnp.pi * x[0])
    return 0.5 * slope**2 + 0.25 * value**4 - (jnp.pi**2 * c + c**3) * value


def _reference(points):
    return np.cos(np.pi * points[:, 0])


def _training_points(panels: int = 64, order: int = 4):
    # The quadrature must be finer than what 32 neurons can resolve, or the network makes use of the gaps.
    nodes, weights = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(-1.0, 1.0, panels + 1)
    half = 1.0 / panels
    points = (0.5 * (edges[:-1] + edges[1:])[:, None] + half * nodes).reshape(-1, 1)
    return {"energy": Weighted(points, np.tile(half * weights, panels))}  # pyright: ignore[reportArgumentType]


def _dense_points():
    return np.linspace(-1.0, 1.0, 1001)[:, None]
