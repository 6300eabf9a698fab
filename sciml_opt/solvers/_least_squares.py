"""Optimistix solvers of the Gauss-Newton family beyond `_solvers`."""

from collections.abc import Callable
from typing import Any

import optimistix as optx
from jaxtyping import ArrayLike, PyTree, Scalar

from ..linear import Solve
from ..methods import HessianFreeMethod, VariableProjectionMethod
from ._adapter import MethodSolver


class HessianFree(MethodSolver):
    """Hessian-free optimization (Gauss-Newton by conjugate gradients, Martens damping), as an optimistix solver.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.hessian_free`.
    `init_damping` as there.

    **Cost:** as `so.hessian_free`; for a plain function the Jacobian is dense, `min(N, P)` (co)tangent passes.

    Source: Martens, Deep learning via Hessian-free optimization (ICML 2010).

    **Example:** `so.least_squares(loss, so.HessianFree(rtol=1e-8, atol=1e-8), params)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        init_damping: ArrayLike = 0.1,
        cg_rtol: ArrayLike = 1e-4,
    ):
        method = HessianFreeMethod(init_damping, cg_rtol=cg_rtol)
        super().__init__(rtol, atol, norm, method)


class VariableProjection(MethodSolver):
    """Variable projection (Levenberg-Marquardt with the linear parameters eliminated), as an optimistix solver.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.variable_projection`.

    **Cost:** as `so.variable_projection`; for a plain function the Jacobian is dense, `min(N, P)` (co)tangent passes.

    Source: Golub and Pereyra (1973), doi:10.1137/0710036; Kaufman (1975), doi:10.1007/BF01932995.

    **Example:**

    ```python
    solver = so.VariableProjection(1e-8, 1e-8, linear=lambda y: y["amplitude"])
    optx.least_squares(lambda y, t: y["amplitude"] * jnp.exp(-y["rate"] * t) - data, solver, y0, args=t)
    ```
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        linear: Callable[[PyTree], Any] | None = None,
        init_damping: ArrayLike = 1e-2,
        solve: Solve = "qr",
    ):
        method = VariableProjectionMethod(linear, init_damping=init_damping, solve=solve)
        super().__init__(rtol, atol, norm, method)
