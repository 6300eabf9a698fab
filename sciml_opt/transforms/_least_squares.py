"""Optax transformations of the Gauss-Newton family beyond `_transforms`."""

from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import ArrayLike, PyTree

from ..linear import Solve
from ..methods import HessianFreeMethod, SubsampledNewtonMethod, VariableProjectionMethod
from ..methods._subsampled import Curvature
from ._adapter import to_transformation


def hessian_free(init_damping: ArrayLike = 0.1, *, cg_rtol: ArrayLike = 1e-4) -> optax.GradientTransformationExtraArgs:
    """Hessian-free optimization: Gauss-Newton by conjugate gradients, with Martens damping.

        (J^T J + lambda I) d = -grad L            by at most 250 iterations from 0.95 times the last d
        rho = (L(theta) - L(theta + d)) / (-<grad L, d> - 0.5 |J d|^2)
        lambda *= 3/2 if rho < 1/4,     lambda *= 2/3 if rho > 3/4

    A step is taken only if it decreases the loss on its batch. `J^T J` is the generalised Gauss-Newton matrix, so that
    energies work too. Carried from step to step: lambda and the last `d`. (Armijo backtracking in place of the
    rejection, and a diagonal preconditioner, measured no better on the Poisson and heat equations.)

    **Arguments:**

    - `init_damping`: the first lambda, relative to the largest diagonal entry of `J^T J`.
    - `cg_rtol`: conjugate gradients stop when the residual has fallen to this part of the gradient. (Martens stops by
      the progress of the quadratic model instead.)

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** per step one linearization, one trial loss, and a product with `J` and `J^T` an iteration; memory that of
    the factors of `J`. No matrix of `P^2` or `N^2` entries.

    Source: Martens, Deep learning via Hessian-free optimization (ICML 2010).

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(HessianFreeMethod(init_damping, cg_rtol=cg_rtol))


def subsampled_newton(
    fraction: float = 0.25,
    *,
    curvature: Curvature = "gauss_newton",
    init_damping: ArrayLike = 1e-2,
    solve: Solve = "auto",
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Subsampled Newton: the gradient of all points, the curvature of a random part of them.

        (B + lambda I) d = -grad L,      B = J_S^T J_S  or the Hessian of the loss on S,      step = eta d

    with `S` drawn anew each step without replacement from every term (product terms are kept whole), an Armijo line
    search on the whole loss, and damping that follows the accepted step size. Carried from step to step: lambda and
    the number of steps (which seeds the sample).

    **Arguments:**

    - `fraction`: of the points of each term, in (0, 1].
    - `curvature`: `"gauss_newton"`, or `"hessian"`: by conjugate gradients, at most 100 iterations, ended by negative
      curvature.
    - `init_damping`: the first lambda, relative to the largest diagonal entry of `J_S^T J_S`, or to `|H_S g| / |g|`.
    - `solve`: of `"gauss_newton"`, as in `levenberg_marquardt`.
    - `seed`: of the random parts.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** per step one gradient, `fraction` of a linearization and of a Gram matrix, one factorisation, one loss a
    trial step size. It pays where there are many more points than parameters; near a solution it converges linearly,
    where Gauss-Newton on all points is faster.

    Source: Roosta-Khorasani and Mahoney, arXiv:1601.04737; Byrd, Chin, Neveitt and Nocedal, doi:10.1137/10079923X.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(
        SubsampledNewtonMethod(fraction, curvature=curvature, init_damping=init_damping, solve=solve, seed=seed)
    )


def variable_projection(
    linear: Callable[[PyTree], Any] | None = None, *, init_damping: ArrayLike = 1e-2, solve: Solve = "qr"
) -> optax.GradientTransformationExtraArgs:
    """Variable projection: Levenberg-Marquardt, with the linear output layer eliminated by least squares each step.

        theta = (a, c),       min over a of  min over c of L(a, c)
        (J^T J + lambda D) v = -J^T r,        D = 1 on a, 1e-6 on c        (geodesic acceleration as in LM)
        a += v_a,             c += -(J_c^T J_c)^-1 J_c^T r(a, c)           at the new a

    The damping holds back `a` alone, so `v_a` is the step of the reduced problem with Kaufman's Jacobian
    `(I - J_c J_c^+) J_a`. The elimination is exact where the residual is affine in `c`: linear differential equations
    and data fits by a network with a linear last layer, a DeepONet in its last branch layer; elsewhere it is one
    Gauss-Newton step, taken if it helps. A step is accepted only if it decreases the loss. Carried from step to step:
    lambda and its growth factor.

    **Arguments:**

    - `linear`: `params -> ` the leaves or subtrees that enter linearly, as for `eqx.tree_at`:
      `lambda m: m["branch"].layers[-1]`. By default the last layer of the network that holds the last leaf.
    - `init_damping`: the first lambda, relative to the largest diagonal entry of `J^T J`.
    - `solve`: as in `levenberg_marquardt`, for both systems. By default QR: they are too ill-conditioned for Cholesky.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Errors:** `ValueError` if the parameters hold no list of layers and `linear` is not given.

    **Cost:** per step two linearizations (the second in `c` alone), one trial loss, one second derivative along a line,
    two factorisations: `4 (N + P) min(N, P)^2` flops; memory `2 N P`. On the Poisson equation with `P = 129`
    about 4 steps of Levenberg-Marquardt; 400 reach a loss of 1e-15, those of Levenberg-Marquardt 1e-11.

    Source: Golub and Pereyra (1973), doi:10.1137/0710036; Kaufman (1975), doi:10.1007/BF01932995; for the last branch
    layer arXiv:2508.15394. The acceleration is ours.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(VariableProjectionMethod(linear, init_damping=init_damping, solve=solve))
