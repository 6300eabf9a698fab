"""The heat equation in four space dimensions."""

import jax.numpy as jnp
import numpy as np

from ..calculus import forward_laplacian
from ..objective import Objective, Term
from ._ansatz import ansatz
from ._points import faces, sobol
from ._problem import Problem, Published

DIFFUSIVITY = 0.25


def heat4d() -> Problem:
    """The heat equation in four space dimensions; a point is (x1, .., x4, t).

        u_t = Lap u / 4  in (0, 1)^4 x (0, 1),   u = u* on the sides and at t = 0,   u* = e^(-t) sum_i sin(2 x_i)

    The model is exact at t = 0: `u = u*(x, 0) + t N(x, t)`.

    **Source:** arXiv:2405.15603, arXiv:2505.12149.
    """
    return Problem(
        name="heat4d",
        title="Heat equation, four space dimensions",
        description=(
            "u_t = Lap u / 4 on the unit cube of four dimensions for t in (0, 1), with Dirichlet data and initial "
            "value of the exact solution exp(-t) (sin 2x1 + .. + sin 2x4). Dangel et al., arXiv:2405.15603, whose "
            "figures are absolute: 7.4e-7 over the root mean square 1.905 of the solution is 3.9e-7. The model is "
            "exact at t = 0; Sobol points: 2048 inside, 128 on each of the eight sides."
        ),
        objective=Objective(interior=Term(_residual), boundary=Term(_boundary, weight=10.0)),
        domain={**{f"x{i}": (0.0, 1.0) for i in range(1, 5)}, "t": (0.0, 1.0)},
        reference=_reference,
        training_points=_training_points,
        dense_points=_dense_points,
        layers=(16, 16),
        method="levenberg_marquardt",
        steps=600,
        target=8e-7,
        tags=("linear", "parabolic", "high_dimensional", "least_squares"),
        network=ansatz(_form, 5),
        published=Published(3.9e-7, "energy natural gradient", "arXiv:2405.15603"),
    )


def _form(network, x):
    return _initial(x) + x[4] * network(2 * x - 1)


def _initial(x):
    return jnp.sum(jnp.sin(2 * x[:4]))


def _residual(u, x):
    # A parabolic operator in six channels: space as the columns, MINUS time as the drift.
    columns, drift = DIFFUSIVITY**0.5 * jnp.eye(5)[:4], -jnp.eye(5)[4]
    return -forward_laplacian(u, columns, drift)(x).second


def _boundary(u, x):
    return u(x) - jnp.exp(-x[4]) * _initial(x)


def _reference(points):
    return np.exp(-points[:, 4]) * np.sum(np.sin(2 * points[:, :4]), axis=1)


def _training_points():
    # `faces` of the cube in space and time, less those of the first and the last time
    sides = faces(sobol(4, 7))[: 8 * 128]
    return {"interior": sobol(5, 11), "boundary": sides}


def _dense_points():
    return sobol(5, 12, skip=4096)
