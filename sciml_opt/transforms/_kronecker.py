"""The public optax transformations with curvature block by block."""

import optax
from jaxtyping import ArrayLike

from ..globalization import Search
from ..methods import BlockDiagonalMethod, KfacMethod
from ..methods._block_diagonal import Blocks
from ._adapter import to_transformation


def kfac(
    init_damping: ArrayLike = 1e-2, *, ema: ArrayLike = 0.9, momentum: ArrayLike = 0.6
) -> optax.GradientTransformationExtraArgs:
    """KFAC for differential operators: Kronecker-factored curvature, momentum and a grid line search.

        A_k = mean of z z^T over points and products,    B_k = sum over points of their weight times sum_t g_t g_t^T
        [sum_k (B_k + lambda b_k) (x) (A_k + lambda a_k)] D = -grad L,       k = 1, 2,       layer by layer
        d = D + momentum d_prev,       step = eta d,       eta = argmin of L over {0, 2^0, 2^-1, ..., 2^-30}

    The z are what a layer multiplies by its weights (values, with a one for the bias, and all derivatives that a term
    propagates), the g what comes back, read from the traced residual whatever operator it has. A layer's two Kronecker
    products are those of two terms; of more, of the terms with the most derivatives and of the others. Parameters in no
    layer (`sciml_opt.curvature.kronecker_factors`) get the diagonal. The published method keeps its damping; here
    lambda starts large and follows the accepted step size. Carried from step to step: the averaged factors, d, lambda.
    For an objective with other outer functions than least squares, `J^T J` is the generalised Gauss-Newton matrix.

    **Arguments:**

    - `init_damping`: the first lambda, relative to the mean diagonal entry of each factor (`a_k`, `b_k`).
    - `ema`: in [0, 1), the weight of the past in the running averages of the factors, which start at the first ones (in
      the paper at the identity, to which the loss sets no scale).
    - `momentum`: of directions; a step without decrease ends it.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Errors:** `TypeError` if `value_fn` is no bound objective; `ValueError` if `updates` is not the gradient.

    **Cost:** per step one linearization, `2 N T (rows^2 + columns^2)` flops for the factors and
    `10 (rows^3 + columns^3)` for their inverse for each matrix, and 31 evaluations of the loss. Memory
    `N T (rows + columns)` a matrix; no matrix of the size of `P`.

    Source: Dangel, Mueller and Zeinhofer, arXiv:2405.15603.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(KfacMethod(init_damping, ema=ema, momentum=momentum))


def kfac_star(init_damping: ArrayLike = 1e-2, *, ema: ArrayLike = 0.9) -> optax.GradientTransformationExtraArgs:
    """KFAC*: Kronecker-factored curvature, learning rate and momentum from the exact quadratic model.

        step = alpha D + mu step_prev,     (alpha, mu) = argmin of <grad L, s> + |J s|^2 / 2 + lambda |s|^2 / 2

    with `D` as in `kfac`. The published method takes every step at a constant damping; here a step is taken if it
    decreases the loss, and lambda, of the factors and (times the largest diagonal entry of `J^T J`) of the model,
    follows the gain ratio by Nielsen's rule. Carried from step to step: the averaged factors, the step, lambda.

    **Arguments:** as in `kfac`.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** as `kfac`, with two products with J and one evaluation of the loss in place of 31.

    Source: Dangel, Mueller and Zeinhofer, arXiv:2405.15603; Martens and Grosse, arXiv:1503.05671.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(KfacMethod(init_damping, ema=ema, step_rule="quadratic_model"))


def block_gauss_newton(
    init_damping: ArrayLike = 1e-2, *, blocks: Blocks = "layer", line_search: Search = "armijo"
) -> optax.GradientTransformationExtraArgs:
    """Block-diagonal Gauss-Newton (for energies: energy natural gradient, layer by layer), with a line search.

        (J_b^T J_b + lambda_b I) d_b = -g_b  for every block b,       step = eta d

    with the exact blocks and lambda_b relative to the largest diagonal entry of each; lambda starts large and follows
    the accepted step size. Carried from step to step: lambda.

    **Arguments:**

    - `init_damping`: the first lambda.
    - `blocks`: `"layer"`, the leaves whose paths differ in the last name only (`layers[0].weight` and `layers[0].bias`;
      `weights[0]` and `biases[0]`), or `"leaf"`.
    - `line_search`: `"armijo"` (in our runs at least as accurate as the grid, at half the time), `"strong_wolfe"`, or
      as published `"grid"`, 31 evaluations of the loss.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** per step one linearization, `sum_b (N k_b^2 + k_b^3 / 3)` flops for blocks of `k_b` parameters, and the
    evaluations of the search. Memory `sum_b k_b^2` and rows in chunks.

    Source: the per-layer ENGD of arXiv:2405.15603.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(BlockDiagonalMethod(init_damping, blocks=blocks, line_search=line_search))
