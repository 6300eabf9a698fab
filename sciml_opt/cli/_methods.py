"""The methods that the command knows, in one table."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from .. import transforms as t
from ..objective import Objective, sobolev
from ..weighting import conflict_free_gradient, equalised


class Method(NamedTuple):
    """One line of text, the optimizer for an objective, whether it needs least squares in every term, and how often the
    error is measured (it counts as training time)."""

    title: str
    make: Callable[[Objective], optax.GradientTransformation]
    least_squares: bool = False
    metric_every: int = 5


METHODS = {
    "adam": Method("Adam, learning rate 1e-3 (optax)", lambda _: optax.adam(1e-3), metric_every=10),
    "soap": Method("Adam in the eigenbases of SOAP, learning rate 3e-3", lambda _: t.soap(3e-3), metric_every=10),
    "conflict_free_adam": Method(
        "Adam on the conflict-free gradient of the terms (ConFIG)",
        lambda _: optax.chain(conflict_free_gradient(), optax.adam(1e-3)),
        metric_every=10,
    ),
    "objective_function_free": Method(
        "AdaGrad as a trust region, without function values", lambda _: t.objective_function_free(), metric_every=10
    ),
    "lbfgs": Method("L-BFGS with a strong Wolfe line search", lambda _: t.lbfgs()),
    "optax_lbfgs": Method("L-BFGS with a zoom line search (optax)", lambda _: optax.lbfgs()),
    "bfgs": Method("BFGS with the dense inverse", lambda _: t.bfgs()),
    "ss_broyden": Method("self-scaled Broyden, the best quasi-Newton method on PINNs", lambda _: t.ss_broyden()),
    "trust_region_sr1": Method("symmetric rank-one updates in a trust region", lambda _: t.trust_region_sr1()),
    "levenberg_marquardt": Method("Levenberg-Marquardt, geodesic acceleration", lambda _: t.levenberg_marquardt()),
    "target_ratio": Method(
        "target-ratio trust region, terms equalised: the last digits",
        lambda objective: equalised(t.target_ratio_trust_region(), objective),
        least_squares=True,
    ),
    "gauss_newton": Method("damped Gauss-Newton with an Armijo line search", lambda _: t.gauss_newton()),
    "energy_natural_gradient": Method(
        "energy natural gradient with a grid line search", lambda _: t.energy_natural_gradient()
    ),
    "engd_w": Method("energy natural gradient in residual space", lambda _: t.engd_w(), least_squares=True),
    "spring": Method("energy natural gradient with momentum (SPRING)", lambda _: t.spring(), least_squares=True),
    "anagram": Method("SVD cut-off, adaptive (ANaGRAM)", lambda _: t.anagram(adaptive=True), least_squares=True),
    "sobolev_gradient": Method("natural gradient in H1", lambda _: t.natural_gradient(sobolev(1))),
    "block_gauss_newton": Method("Gauss-Newton, one block a layer", lambda _: t.block_gauss_newton()),
    "kfac": Method("KFAC with momentum and a grid line search", lambda _: t.kfac()),
    "kfac_star": Method("KFAC, step and momentum from the quadratic model", lambda _: t.kfac_star()),
    "variable_projection": Method(
        "Levenberg-Marquardt, output layer eliminated", lambda _: t.variable_projection(), least_squares=True
    ),
    "hessian_free": Method("Gauss-Newton by conjugate gradients, Martens damping", lambda _: t.hessian_free()),
    "subsampled_newton": Method("curvature on a quarter of the points", lambda _: t.subsampled_newton()),
    "newton_krylov": Method("Newton by truncated conjugate gradients", lambda _: t.newton_krylov()),
    "newton_trust_region": Method("Newton in a trust region (Steihaug-Toint)", lambda _: t.newton_trust_region()),
    "adaptive_cubic": Method("Newton with adaptive cubic regularisation", lambda _: t.adaptive_cubic()),
    "nys_newton_cg": Method("Newton-CG with a Nystrom preconditioner", lambda _: t.nys_newton_cg()),
}
