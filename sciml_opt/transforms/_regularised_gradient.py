"""The public optax transformation of the regularised gradient; it takes any function of the parameters."""

import optax
from jaxtyping import ArrayLike

from ..methods import RegularisedGradientMethod
from ._adapter import to_transformation


def regularised_gradient(
    init_weight: ArrayLike = 10.0,
    *,
    min_weight: ArrayLike = 1e-8,
    acceptance: ArrayLike = 0.1,
    factor: ArrayLike = 2.0,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with an adaptive step size: the steps of one level of the stochastic method MUlSTREG.

        m(s) = f + g^T s + lambda |s|^2 / 2,      s = -g / lambda
        rho = (f(theta) - f(theta + s)) / (m(0) - m(s))
        accepted if rho >= eta:   lambda = max(lambda / gamma, lambda_min),      otherwise lambda *= gamma

    All on the minibatch of the step: both values of f and g. No learning rate is needed, but the noise of fixed small
    minibatches remains: let them grow (`norm_test`). Methods of this kind (STORM) also ask for `|g| >= eta_2 |s|`;
    with `s = -g / lambda` that is `lambda >= eta_2`, hence the least lambda. Carried from step to step: lambda, and the
    norm of the first gradient, which is the unit of lambda, so that scaling the loss changes nothing.

    **Arguments:**

    - `init_weight`, `min_weight`: the first and the least lambda, in units of the first gradient's norm over that of
      the parameters: the first step has the length `1 / init_weight`.
    - `acceptance`: eta, in [0, 1). On a quadratic loss of curvature `L`, `rho = 2 - L / lambda`.
    - `factor`: gamma, above 1.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did (lambda as `damping`).
    `value_fn` may be any function of the parameters.

    **Cost:** one gradient and one loss a step, also if it is rejected; memory `2 P`.

    Source: Marini, Porcelli and Riccietti, arXiv:2412.11630, without the coarse levels; STORM: Chen, Menickelly and
    Scheinberg (2018), doi:10.1007/s10107-017-1141-8.

    **Example:**

    ```python
    blocks = so.Blocks(batch, 100)
    result = so.fit(model, objective, so.regularised_gradient(), data=blocks, steps=2000, key=jax.random.key(0))
    ```
    """
    return to_transformation(
        RegularisedGradientMethod(init_weight, min_weight=min_weight, acceptance=acceptance, factor=factor)
    )
