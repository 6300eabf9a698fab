"""The target-ratio trust region as an optimistix solver."""

from collections.abc import Callable

import optimistix as optx
from jaxtyping import ArrayLike, PyTree, Scalar

from ..methods import Decomposition, TargetRatioMethod
from ._adapter import MethodSolver


class TargetRatioTrustRegion(MethodSolver):
    """The target-ratio trust region, as an optimistix least-squares solver.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.target_ratio_trust_region`.

    **Cost:** as `so.target_ratio_trust_region`; for a plain function the Jacobian is dense, `min(N, P)` (co)tangent
    passes.

    Source: Webb, Jerad and Cartis, arXiv:2607.02194.

    **Example:** `optx.least_squares(residual, so.TargetRatioTrustRegion(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        target: ArrayLike = 0.075,
        late_target: ArrayLike = 0.5,
        radii: int = 12,
        decomposition: Decomposition = "svd",
        sketch_rows: int | None = None,
        sketch_columns: int | None = None,
        seed: int = 0,
    ):
        method = TargetRatioMethod(
            target,
            late_target,
            radii=radii,
            decomposition=decomposition,
            sketch_rows=sketch_rows,
            sketch_columns=sketch_columns,
            seed=seed,
        )
        super().__init__(rtol, atol, norm, method)
