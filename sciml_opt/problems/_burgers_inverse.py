"""The viscosity of Burgers' equation from noisy measurements of the velocity."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .._check import number, one_of
from ..calculus import forward_laplacian
from ..models import MLP, HardConstraint, Positive
from ..objective import Objective, Term
from ._burgers import VISCOSITY, cole_hopf, dense_points, denser, interior_points
from ._problem import Problem

KNOWN = {"advection": 1.0, "viscosity": VISCOSITY}
START = {"advection": 0.5, "viscosity": 0.02}


class BurgersModel(eqx.Module):
    """The velocity, which takes its known initial and boundary values, and the unknown coefficients by name."""

    u: HardConstraint
    unknown: dict[str, Positive]


def burgers_inverse(
    noise: float = 0.01, noise_seed: int = 0, unknown: Literal["viscosity", "both"] = "viscosity"
) -> Problem:
    """Burgers' equation with an unknown viscosity, from noisy measurements at 1000 random points (x, t).

        c u u_x + u_t = nu u_xx  in (-1, 1) x (0, 1),   u(x, 0) = -sin(pi x),   u(+-1, t) = 0
        d_j = u(x_j) + noise std(u) N(0, 1),            nu = 0.01 / pi unknown, started at 0.02

    The sensors stand as densely as the collocation points, four times denser at the shock, which alone tells the
    viscosity: there the Cramer-Rao bound of the default noise is 0.3 % of nu, with uniform sensors 0.6 %.

    **Arguments:**

    - `noise`: standard deviation of the measurements, relative to that of u (0.61).
    - `noise_seed`: of the noise; the sensors stay where they are.
    - `unknown`: the viscosity alone (c = 1), or `"both"` coefficients, c started at 0.5.

    The coefficients of a model are `model.unknown["viscosity"].value` and `model.unknown["advection"].value`.

    **Source:** Raissi, Perdikaris and Karniadakis, doi:10.1016/j.jcp.2018.10.045, section 4; reference by Cole and
    Hopf.
    """
    level = float(number("noise", noise, at_least=0))
    names = tuple(KNOWN) if one_of("unknown", unknown, ("viscosity", "both")) == "both" else ("viscosity",)

    def network(key, layers, dtype):
        u = HardConstraint(MLP(2, "scalar", layers, key=key, dtype=dtype), _distance, _initial)
        return BurgersModel(u, {name: Positive(START[name], dtype) for name in names})

    return Problem(
        name="burgers_inverse",
        title="Burgers equation, unknown viscosity",
        description=(
            "c u u_x + u_t = nu u_xx for x in (-1, 1), t in (0, 1), u(x, 0) = -sin(pi x), u(+-1, t) = 0; nu = 0.01/pi "
            "is unknown and starts at 0.02 (option: c = 1, too, from 0.5). u is measured at 1000 random points, denser "
            "around the shock, with errors of 1 % of its standard deviation. Initial and boundary values are built "
            "into the model. Raissi, Perdikaris and Karniadakis, doi:10.1016/j.jcp.2018.10.045. Cole-Hopf reference."
        ),
        objective=Objective(interior=Term(_residual), data=Term(_misfit)),
        domain={"x": (-1.0, 1.0), "t": (0.0, 1.0)},
        reference=cole_hopf,
        training_points=lambda: {"interior": interior_points(50), "data": _measurements(level, noise_seed)},
        dense_points=dense_points,
        layers=(20, 20),
        method="levenberg_marquardt",
        steps=300,
        target=5e-3,
        tags=("nonlinear", "parabolic", "shock", "inverse", "least_squares"),
        network=network,
        prediction=_prediction,
    )


def _initial(x):
    return -jnp.sin(jnp.pi * x[0])


def _distance(x):
    return x[1] * (1 - x[0] ** 2)


def _residual(model, x):
    c, nu = ({**KNOWN, **{n: p.value for n, p in model.unknown.items()}}[n] for n in ("advection", "viscosity"))
    # With space as the column and -time / nu as the drift, `second` is u_xx - u_t / nu: three channels.
    columns, drift = jnp.array([[1.0, 0.0]], x.dtype), jnp.array([0.0, -1.0], x.dtype) / nu
    value, (slope,), second = forward_laplacian(model.u, columns, drift)(x)
    return c * value * slope - nu * second


def _misfit(model, measurement):
    x, value = measurement
    return model.u(x) - value


def _prediction(model, x):
    return model.u(x)


def _measurements(noise: float, seed: int, n: int = 1000):
    s, t = np.random.default_rng(1).random((n, 2)).T
    points = np.stack([denser(s), t], axis=1)
    errors = np.random.default_rng([2, seed]).standard_normal(n)
    return points, cole_hopf(points) + noise * np.std(cole_hopf(dense_points())) * errors
