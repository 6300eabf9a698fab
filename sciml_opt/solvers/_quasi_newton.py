"""The public optimistix minimisers of the quasi-Newton family."""

from collections.abc import Callable
from typing import Literal

import optimistix as optx
from jaxtyping import ArrayLike, PyTree, Scalar

from .._check import one_of
from ..methods import BroydenMethod, LBFGSMethod, SR1Method
from ..methods._lbfgs import Correction, Initial
from ._adapter import MethodMinimiser


class LBFGS(MethodMinimiser):
    """Limited-memory BFGS with a strong Wolfe line search.

    For `optimistix.minimise` on any scalar function, or `so.minimise` on a bound objective.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.lbfgs`.

    **Cost:** as `so.lbfgs`: one value and gradient a trial.

    Source: Liu and Nocedal (1989), doi:10.1007/BF01589116.

    **Example:** `optx.minimise(fn, so.LBFGS(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        memory: int = 20,
        correction: Correction = "cautious",
        initial: Initial = "diagonal",
    ):
        super().__init__(rtol, atol, norm, LBFGSMethod(memory, correction=correction, initial=initial))


class BFGS(MethodMinimiser):
    """BFGS, or the DFP method, with the dense inverse and a strong Wolfe line search.

    For `optimistix.minimise` on any scalar function, or `so.minimise` on a bound objective.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; `update`, `"bfgs"` or `"dfp"`; `damped` as in `so.bfgs`.

    **Cost:** as `so.bfgs`.

    Source: Nocedal and Wright, Numerical Optimization, algorithm 6.1.

    **Example:** `optx.minimise(fn, so.BFGS(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        update: Literal["bfgs", "dfp"] = "bfgs",
        damped: bool = False,
    ):
        method = BroydenMethod(one_of("update", update, ("bfgs", "dfp")), damped=damped)
        super().__init__(rtol, atol, norm, method)


class SelfScaled(MethodMinimiser):
    """Self-scaled quasi-Newton methods: SS-Broyden and SS-BFGS.

    For `optimistix.minimise` on any scalar function, or `so.minimise` on a bound objective.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; `update`: `"ss_broyden2"`, `"ss_broyden1"`, `"ss_bfgs_ab"`
    or `"ss_bfgs_ol"`, see `so.ss_broyden` and `so.ss_bfgs`.

    **Cost:** as `so.bfgs`.

    Source: Urban, Stefanou and Pons, arXiv:2405.04230.

    **Example:** `optx.minimise(fn, so.SelfScaled(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        update: Literal["ss_broyden2", "ss_broyden1", "ss_bfgs_ab", "ss_bfgs_ol"] = "ss_broyden2",
    ):
        allowed = ("ss_broyden2", "ss_broyden1", "ss_bfgs_ab", "ss_bfgs_ol")
        super().__init__(rtol, atol, norm, BroydenMethod(one_of("update", update, allowed)))


class TrustRegionSR1(MethodMinimiser):
    """Symmetric rank-one updates in a trust region.

    For `optimistix.minimise` on any scalar function, or `so.minimise` on a bound objective.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix; the others as in `so.trust_region_sr1`.

    **Cost:** as `so.trust_region_sr1`.

    Source: Byrd, Khalfan and Schnabel (1996), doi:10.1137/S1052623493252985.

    **Example:** `optx.minimise(fn, so.TrustRegionSR1(rtol=1e-8, atol=1e-8), y0)`.
    """

    def __init__(
        self,
        rtol: ArrayLike,
        atol: ArrayLike,
        norm: Callable[[PyTree], Scalar] = optx.max_norm,
        *,
        memory: int | None = 20,
        init_radius: ArrayLike = 1.0,
        max_forcing: ArrayLike = 1e-2,
    ):
        super().__init__(rtol, atol, norm, SR1Method(memory, init_radius=init_radius, max_forcing=max_forcing))
