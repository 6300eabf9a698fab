"""Weights inversely proportional to the norms of the gradients of the terms."""

from collections.abc import Iterable

import optax
from jaxtyping import ArrayLike, PyTree, Scalar

from .._tree import tree_norm
from ..objective import BoundObjective, Objective
from ._balance import Balance
from ._term_gradients import term_names
from ._weighting import weighting


def grad_norm_balance(
    tx: optax.GradientTransformation,
    terms: Objective | Iterable[str],
    *,
    decay: ArrayLike = 0.9,
    every: int = 100,
) -> optax.GradientTransformationExtraArgs:
    """Weigh the terms of the loss so that their gradients have the same norm.

        w_i <- decay w_i + (1 - decay) mean_j |g_j| / (|g_i| + 1e-5 mean_j |g_j|),      g_i = grad L_i

    before the first step and every so many steps, from `w = 1`. A weight stays below `1e5`.

    **Arguments:**

    - `tx`: any optax transformation; ours and line searches get the weighted loss as `value_fn`.
    - `terms`: the objective, or the names of its terms.
    - `decay`, in [0, 1): of the moving average.
    - `every`: steps between two updates; 1000 is common in runs of 1e5 steps of Adam.

    **Returns:** an optax transformation whose `update` needs a bound objective as `value_fn`; its state has the
    `weights`. Where a gradient is not finite the weights stay. `so.info(state)` speaks of the weighted loss.

    **Errors:** `ValueError` if `terms` are not all the terms, or if `updates` is not the gradient.

    **Cost:** one gradient of the weighted loss a step, and one more at an update; memory `K P` there, of `K` terms.

    Source: Wang, Teng and Perdikaris, arXiv:2001.04536; in this form Wang et al., arXiv:2308.08468, algorithm 1.

    **Example:** `so.grad_norm_balance(optax.adam(1e-3), objective)`.
    """
    return weighting(Balance(term_names("terms", terms), _gradient_norms, decay, every), tx)


def _gradient_norms(loss: BoundObjective, params: PyTree) -> dict[str, Scalar]:
    return {name: tree_norm(grad) for name, grad in loss.gradients(params)[1].items()}
