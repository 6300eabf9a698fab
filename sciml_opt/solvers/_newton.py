"""The public optimistix minimisers on the true Hessian."""

from collections.abc import Callable

import optimistix as optx
from jaxtyping import ArrayLike, PyTree, Scalar

from ..globalization import Search
from ..methods import (
    AdaptiveCubicMethod,
    NewtonKrylovMethod,
    NewtonTrustRegionMethod,
    NysNewtonCGMethod,
)
from ..methods._newton_krylov import Krylov
from ._adapter import MethodMinimiser


class NewtonKrylov(MethodMinimiser):
    """Newton's method with inexact, matrix-free solves and a line search.

    For `optimistix.minimise` on any scalar function, or `so.minimise` on a bound objective.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.newton_krylov`.

    **Cost:** as `so.newton_krylov`.

    Source: Dembo and Steihaug (1983), doi:10.1007/BF02592055; Eisenstat and Walker (1996), doi:10.1137/0917003.

    **Example:** `optx.minimise(fn, so.NewtonKrylov(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        krylov: Krylov = "cg",
        max_forcing: ArrayLike = 0.1,
        krylov_steps: int = 200,
        line_search: Search = "armijo",
    ):
        method = NewtonKrylovMethod(
            krylov=krylov, max_forcing=max_forcing, krylov_steps=krylov_steps, line_search=line_search
        )
        super().__init__(rtol, atol, norm, method)


class NewtonTrustRegion(MethodMinimiser):
    """Newton's method in a trust region (Steihaug-Toint).

    For `optimistix.minimise` on any scalar function, or `so.minimise` on a bound objective.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.newton_trust_region`.

    **Cost:** as `so.newton_trust_region`.

    Source: Steihaug (1983), doi:10.1137/0720042.

    **Example:** `optx.minimise(fn, so.NewtonTrustRegion(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        init_radius: ArrayLike = 1.0,
        max_forcing: ArrayLike = 0.1,
        krylov_steps: int = 200,
    ):
        method = NewtonTrustRegionMethod(init_radius, max_forcing=max_forcing, krylov_steps=krylov_steps)
        super().__init__(rtol, atol, norm, method)


class AdaptiveCubic(MethodMinimiser):
    """Adaptive regularisation by cubics (ARC) in a Lanczos subspace.

    For `optimistix.minimise` on any scalar function, or `so.minimise` on a bound objective.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.adaptive_cubic`.

    **Cost:** as `so.adaptive_cubic`.

    Source: Cartis, Gould and Toint (2011), doi:10.1007/s10107-009-0286-5.

    **Example:** `optx.minimise(fn, so.AdaptiveCubic(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        init_weight: ArrayLike = 1.0,
        dimension: int = 40,
    ):
        method = AdaptiveCubicMethod(init_weight, dimension=dimension)
        super().__init__(rtol, atol, norm, method)


class NysNewtonCG(MethodMinimiser):
    """NysNewton-CG: damped Newton, preconditioned by a sketch of the Hessian.

    For `optimistix.minimise` on any scalar function, or `so.minimise` on a bound objective.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.nys_newton_cg`.

    **Cost:** as `so.nys_newton_cg`.

    Source: Rathore, Lei, Frangella, Lu and Udell, arXiv:2402.01868.

    **Example:** `optx.minimise(fn, so.NysNewtonCG(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        damping: ArrayLike = 1e-7,
        rank: int = 60,
        refresh: int = 20,
        cg_rtol: ArrayLike = 1e-3,
        krylov_steps: int = 1000,
        seed: int = 0,
    ):
        method = NysNewtonCGMethod(
            damping, rank=rank, refresh=refresh, cg_rtol=cg_rtol, krylov_steps=krylov_steps, seed=seed
        )
        super().__init__(rtol, atol, norm, method)
