"""Optax transformations of the natural-gradient family."""

from collections.abc import Callable

import optax
from jaxtyping import Array, ArrayLike, Int, Scalar

from ..linear import Solve
from ..methods import AnagramMethod, EnergyNaturalGradientMethod, SpringMethod
from ..objective import Metric
from ._adapter import to_transformation


def energy_natural_gradient(
    init_damping: ArrayLike = 1e-2, *, solve: Solve = "auto"
) -> optax.GradientTransformationExtraArgs:
    """Energy natural gradient descent with damping and a grid line search.

        (G + lambda I) d = -grad L,    G_ij = D^2 E(u)[d_i u, d_j u],    eta = argmin over {0, 2^0, ..., 2^-30}

    For least squares `G = J^T J`; for an energy (Deep Ritz) it is its second derivative in function space, pulled
    back. The published method is undamped and stalls from unlucky starts; here lambda starts large and follows the
    accepted step size, down to rounding level. Carried from step to step: lambda.

    **Arguments:** `init_damping`, the first lambda relative to the largest diagonal entry of `G`; `solve` as in
    `levenberg_marquardt`.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** per step one linearization, one factorisation and 31 evaluations of the loss.

    Source: Mueller and Zeinhofer, arXiv:2302.13163.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(EnergyNaturalGradientMethod(init_damping, solve=solve))


def natural_gradient(
    metric: Metric, init_damping: ArrayLike = 1e-2, *, solve: Solve = "auto"
) -> optax.GradientTransformationExtraArgs:
    """Natural gradient descent in a metric of your own, with damping and a grid line search.

        (G + lambda I) d = -grad L,    G_ij = <d_i m, d_j m>,    eta = argmin over {0, 2^0, ..., 2^-30}

    The gradient flow of the loss in function space, for the inner product `metric`: a Sobolev one (`so.sobolev`), or
    the Fisher metric of a likelihood, where `outer` is the divergence from the present prediction. (For a negative
    log-likelihood that is convex in the prediction, `so.energy_natural_gradient` is generalised Gauss-Newton, which for
    the natural parameters of an exponential family is the same.) Lambda follows the accepted step size, as there.

    For a PINN this is a gradient method: the metric knows nothing of the differential operator in the loss, and it
    stays far from the accuracy of `so.energy_natural_gradient`. The direction has the units of the loss: unlike the
    other methods, it changes with the scale of the loss.

    **Arguments:**

    - `metric`: a `Metric`, measured on the points of the terms that it names.
    - `init_damping`, `solve`: as in `energy_natural_gradient`.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Errors:** `ValueError` if the metric names an unknown term, or a product term.

    **Cost:** per step two linearizations (of the loss and of the metric), one factorisation, 31 evaluations.

    Source: Amari (1998), doi:10.1162/089976698300017746; Mueller and Zeinhofer, arXiv:2302.13163 and 2402.07318.

    **Example:**

    ```python
    h1 = so.natural_gradient(so.sobolev(1, terms=("interior",)))

    def divergence(m, x):  # of Bernoulli distributions with logit m
        old = jax.lax.stop_gradient(m)
        return jnp.sum(jax.nn.sigmoid(old) * (old - m) + jax.nn.softplus(m) - jax.nn.softplus(old))

    fisher = so.natural_gradient(so.Metric(lambda model, point: model(point[0]), divergence))
    ```
    """
    return to_transformation(EnergyNaturalGradientMethod(init_damping, metric=metric, solve=solve))


def spring(
    learning_rate: ArrayLike | None = None,
    *,
    damping: ArrayLike | Callable[[Int[Array, ""]], Scalar] = 1e-9,
    momentum: ArrayLike = 0.3,
    norm_constraint: ArrayLike = 1e-3,
    solve: Solve = "auto",
) -> optax.GradientTransformationExtraArgs:
    """SPRING: natural gradient descent whose increment stays near the last one where the residual does not care.

        zeta = r - mu J phi_(k-1)
        phi_k = mu phi_(k-1) + J^T (J J^T + lambda I)^-1 zeta
        theta -= eta phi_k / sqrt(1 - mu^(2k))

    With a `learning_rate`, `eta = min(learning_rate, sqrt(C) / |phi_k|)`; without, the best of `0, 2^0, ..., 2^-30`.
    A batch says nothing about the increments that its Jacobian does not see: there the momentum fills in what earlier
    batches said. Carried from step to step: `phi`, without the bias correction. A non-finite step moves nothing; with a
    fixed learning rate the loss may grow.

    **Arguments:**

    - `learning_rate`: a number, or `None` for the line search.
    - `damping`: lambda relative to the largest diagonal entry of `J^T J`, which frees it of the scale of the loss; a
      number, or a schedule of the step. The paper's lambda is absolute: this one times that entry, which
      `so.info(state).damping` shows. Larger ones start faster, smaller ones end lower: without momentum the 2-D Poisson
      equation ended at about 5e-6 with 1e-7, and at 3e-7 in most runs with 1e-13, after 600 steps in float64.
    - `momentum`: `mu` in `[0, 1)`. The paper tunes 0.06 to 0.94 with the line search, 0.8 to 0.98 with a fixed learning
      rate and fresh points.
    - `norm_constraint`: `C`, of the fixed learning rate only (also without momentum, where the paper has none);
      `jnp.inf` for none.
    - `solve`: as in `levenberg_marquardt`. The paper's are `"dual"`, exact; `"nystrom"`, conjugate gradients; and
      `"sketch"`, a Nystrom approximation of `J J^T` in its place, which needs a larger damping.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Errors:** `ValueError` for an objective that is not least squares.

    **Cost:** per step one linearization, one factorisation, and 31 evaluations of the loss or one; memory one more copy
    of the parameters.

    Source: Guzman-Cordero, Dangel, Goldshlager and Zeinhofer, arXiv:2505.12149; Goldshlager, Abrahamsen and Lin,
    arXiv:2401.10190.

    **Example:** `so.spring(0.05, damping=1e-8, momentum=0.9)`; use as in `levenberg_marquardt`.
    """
    return to_transformation(
        SpringMethod(learning_rate, damping=damping, momentum=momentum, norm_constraint=norm_constraint, solve=solve)
    )


def engd_w(
    damping: ArrayLike | Callable[[Int[Array, ""]], Scalar] = 1e-9, *, solve: Solve = "auto"
) -> optax.GradientTransformationExtraArgs:
    """Energy natural gradient descent by Woodbury's identity: a fixed damping and a grid line search.

        d = -J^T (J J^T + lambda I)^-1 r,      eta = argmin of L(theta + eta d) over {0, 2^0, ..., 2^-30}

    `spring` without momentum; `energy_natural_gradient` with a damping that does not move, for least squares only.
    `solve="auto"` forms `J J^T` where it is the smaller matrix, and `J^T J` otherwise. Nothing is carried over.

    **Arguments:** as in `spring`.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Errors:** `ValueError` for an objective that is not least squares.

    **Cost:** per step one linearization, one factorisation and 31 evaluations of the loss.

    Source: Guzman-Cordero, Dangel, Goldshlager and Zeinhofer, arXiv:2505.12149.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(SpringMethod(damping=damping, momentum=0.0, solve=solve))


def anagram(cutoff: ArrayLike | None = None, *, adaptive: bool = False) -> optax.GradientTransformationExtraArgs:
    """ANaGRAM: natural gradient descent by a singular value decomposition with a cut-off, and a grid line search.

        J = U diag(s) V^T,      d = -V diag(1/s where s >= cutoff max s, else 0) U^T r
        eta = argmin of L(theta + eta d) over {0, 2^0, ..., 2^-30}

    The decomposition is that of `J` itself, so that no digits are lost to `J^T J`. A fixed cut-off may stop far from
    the solution (no `eta` decreases the loss).

    **Arguments:**

    - `cutoff`: relative to the largest singular value; by default `sqrt(eps P)` for `P` parameters. With `adaptive` it
      is the first one.
    - `adaptive`: each step tries the last cut-off times 2, 1, 1/2 and 1/10, every one with its own line search, and
      keeps the one of the lowest loss (the largest on a tie, and when none decreases it). A rule of this library.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did, as `damping` the square of the
    absolute cut-off. Carried from step to step: the cut-off.

    **Errors:** `ValueError` for an objective that is not least squares.

    **Cost:** per step one linearization, one decomposition of the explicit `J` (about `6 N P^2 + 20 P^3` flops for
    `N >= P`) and 31 evaluations of the loss, 124 with `adaptive`; memory `2 N P`.

    Source: Schwencke and Furtlehner, arXiv:2412.10782.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(AnagramMethod(cutoff, adaptive=adaptive))
