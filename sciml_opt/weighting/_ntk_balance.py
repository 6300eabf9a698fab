"""Weights inversely proportional to the traces of the neural tangent kernels of the terms."""

from collections.abc import Iterable

import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike, PyTree, Scalar

from ..objective import BoundObjective, Objective
from ._balance import Balance
from ._term_gradients import term_names
from ._weighting import weighting


def ntk_balance(
    tx: optax.GradientTransformation,
    terms: Objective | Iterable[str],
    *,
    decay: ArrayLike = 0.9,
    every: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Weigh the terms of the loss so that their residuals decay at the same mean rate under gradient descent.

        w_i <- decay w_i + (1 - decay) mean_j t_j / (t_i + 1e-5 mean_j t_j),        t_i = tr(J_i J_i^T) = |J_i|_F^2

    before the first step and every so many steps, from `w = 1`. `J_i` is the Jacobian of the whitened residual of term
    `i`, so that `t_i = weight_i / N_i tr K_ii` with the neural tangent kernel `K_ii` of its `N_i` points. Of an energy
    `J_i^T J_i` is its generalised Gauss-Newton matrix. A weight stays below `1e5`.

    **Arguments:**

    - `tx`: any optax transformation; ours and line searches get the weighted loss as `value_fn`.
    - `terms`: the objective, or the names of its terms.
    - `decay`, in [0, 1): of the moving average.
    - `every`: steps between two updates.

    **Returns:** an optax transformation whose `update` needs a bound objective as `value_fn`; its state has the
    `weights`. Where a Jacobian is not finite the weights stay. `so.info(state)` speaks of the weighted loss.

    **Errors:** `ValueError` if `terms` are not all the terms, or if `updates` is not the gradient.

    **Cost:** one gradient of the weighted loss a step; at an update one linearization and a pass through its factors:
    the kernel is not formed.

    Source: Wang, Yu and Perdikaris, arXiv:2007.14527, algorithm 1, with the mean over the points of a term as in
    arXiv:2308.08468.

    **Example:** `so.ntk_balance(optax.adam(1e-3), objective)`.
    """
    return weighting(Balance(term_names("terms", terms), _kernel_traces, decay, every), tx)


def _kernel_traces(loss: BoundObjective, params: PyTree) -> dict[str, Scalar]:
    groups = loss.linearize(params).jacobian.rows  # one a term
    return {name: jnp.sum(rows.row_squares()) for name, rows in zip(loss.terms, groups, strict=True)}
