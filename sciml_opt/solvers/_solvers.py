"""The public optimistix solvers."""

from collections.abc import Callable

import optimistix as optx
from jaxtyping import ArrayLike, PyTree, Scalar

from ..globalization import Search
from ..linear import Solve
from ..methods import GaussNewtonMethod, LevenbergMarquardtMethod
from ..methods._gauss_newton import GaussNewtonScaling
from ..methods._levenberg_marquardt import DampingRule, LevenbergMarquardtScaling, Schedule
from ._adapter import MethodSolver


class LevenbergMarquardt(MethodSolver):
    """Levenberg-Marquardt with geodesic acceleration, as an optimistix solver.

        (J^T J + lambda D) v = -J^T r,       (J^T J + lambda D) a = -J^T r_vv,       step = v + a/2

    For `optimistix.least_squares` on any residual function, or `so.least_squares` on a bound objective.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.levenberg_marquardt`.

    **Cost:** as `so.levenberg_marquardt`; for a plain function the Jacobian is dense, `min(N, P)` (co)tangent passes.

    Source: Marquardt (1963), doi:10.1137/0111030; Transtrum and Sethna, arXiv:1201.5885.

    **Example:** `optx.least_squares(residual, so.LevenbergMarquardt(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        init_damping: ArrayLike = 1e-2,
        geodesic: bool = True,
        acceleration_limit: ArrayLike = 0.75,
        damping_rule: DampingRule | Schedule = "nielsen",
        scaling: LevenbergMarquardtScaling = "identity",
        solve: Solve = "auto",
    ):
        method = LevenbergMarquardtMethod(
            init_damping,
            geodesic=geodesic,
            acceleration_limit=acceleration_limit,
            damping_rule=damping_rule,
            scaling=scaling,
            solve=solve,
        )
        super().__init__(rtol, atol, norm, method)


class GaussNewton(MethodSolver):
    """Damped Gauss-Newton with a line search, as an optimistix solver.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.gauss_newton`.

    **Cost:** as `so.gauss_newton`; for a plain function the Jacobian is dense, `min(N, P)` (co)tangent passes.

    Source: Nocedal and Wright, Numerical Optimization, section 10.3.

    **Example:** `optx.least_squares(residual, so.GaussNewton(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        init_damping: ArrayLike = 1e-2,
        scaling: GaussNewtonScaling = "identity",
        line_search: Search = "armijo",
        solve: Solve = "auto",
    ):
        method = GaussNewtonMethod(init_damping, scaling=scaling, line_search=line_search, solve=solve)
        super().__init__(rtol, atol, norm, method)
