"""Steady flow in a square cavity under a lid with a parabolic speed, of the benchmark PINNacle."""

from ..objective import Objective, Term
from ._cavity import dense_points, flow, momentum_and_mass, pressure_at_origin, training_points
from ._corner import linear_lid
from ._problem import Problem, Published
from .references import tabulated


def navier_stokes2d_c() -> Problem:
    """Steady flow in the unit square under a lid with a parabolic speed, Re = 100; a point is (x, y).

        (u . grad) u + grad p = nu Lap u,   div u = 0   in (0, 1)^2,   nu = 1 / 100
        u = (4 x (1 - x), 0) on the lid y = 1,   u = 0 on the other sides,   p(0, 0) = 0

    In the corners under the lid the slope of the velocity jumps and the pressure grows as log r. The model holds the
    boundary values, and the Stokes flow of these corners.

    **Source:** NS 2d-C of PINNacle, arXiv:2306.08827.
    """
    return Problem(
        name="navier_stokes2d_c",
        title="Cavity flow under a parabolic lid, Re = 100 (PINNacle NS 2d-C)",
        description=(
            "Navier-Stokes equations in the unit square, nu = 1/100, lid y = 1 with velocity (4x(1-x), 0), the other "
            "sides at rest, p(0, 0) = 0; u, v and p are measured on 101 x 101 nodes, but for the two corners under the "
            "lid, where the pressure is infinite. NS 2d-C of PINNacle, arXiv:2306.08827. Reference by Chebyshev "
            "collocation of the stream function, corner singularities subtracted. The model is exact on the boundary, "
            "and holds the Stokes flow of the two corners. (DSGNAR reports 1.13e-4 on this flow, after 403 s of a GPU: "
            "arXiv:2607.02194.)"
        ),
        objective=Objective(interior=Term(momentum_and_mass), pressure=Term(pressure_at_origin)),
        domain={"x": (0.0, 1.0), "y": (0.0, 1.0)},
        reference=tabulated("navier_stokes2d_c", ("x", "y"), ("u", "v", "p")),
        training_points=training_points,
        dense_points=dense_points,
        layers=(20, 20, 20),
        method="levenberg_marquardt",
        steps=250,
        target=1e-4,
        tags=("nonlinear", "elliptic", "system", "least_squares"),
        outputs=("u", "v", "p"),
        network=flow(linear_lid, 4.0, lambda x: 4 * x * (1 - x)),
        reference_error=3.4e-6,
        published=Published(
            1.13e-4, "DSGNAR", "arXiv:2607.02194, 403 s of an H100; 2.35e-2 by AdaBGDA, openreview.net EQNp3sFrY3"
        ),
    )
