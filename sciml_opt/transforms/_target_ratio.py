"""The target-ratio trust region as an optax transformation."""

import optax
from jaxtyping import ArrayLike

from ..methods import Decomposition, TargetRatioMethod
from ._adapter import to_transformation


def target_ratio_trust_region(
    target: ArrayLike = 0.075,
    late_target: ArrayLike = 0.5,
    *,
    radii: int = 12,
    decomposition: Decomposition = "svd",
    sketch_rows: int | None = None,
    sketch_columns: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """The target-ratio trust region: for the last digits of a least-squares problem on fixed points.

        s(Delta) = argmin of 0.5 |r + J s|^2 within |s| <= Delta
        rho(Delta) = (L(theta) - L(theta + s)) / (m(0) - m(s)),     at radii from Delta_0 / 3 to 3 Delta_0
        Delta = where the running minimum of rho falls below the target

    One decomposition of `J` serves all radii. A small target travels fast: most of the predicted decrease may be lost
    as long as the loss falls. Once the damping has bottomed out (its logarithm, averaged over 10 accepted steps, no
    longer below the average over 30, after 60 steps at the earliest) the late target takes its place, and the iteration
    converges. It needs several times more points than parameters, and fixed ones unless each draw of them determines
    the solution. Where a run ends is a local minimum: of 64 runs of a Poisson problem 61 reach 1e-12, the others stop
    at up to 3e-11. A random step of length 1 and a second run leave such a minimum (README, "The last digits").
    A step is taken only if it decreases the loss. Carried from step to step: the radius, the averages, the phase.

    **Arguments:**

    - `target`, `late_target`: of the decrease ratio; 0.1 for the first one in float32.
    - `radii`: how many are tried.
    - `decomposition`: `"svd"` of the explicit `J` keeps the digits of singular values down to rounding; `"gram"`,
      eigenvectors of the smaller of `J^T J` and `J J^T`, is cheaper and loses those below 1e-8 of the largest.
    - `sketch_rows`, `sketch_columns`: work on a sketch of `J` of that size, drawn anew each step: rows by sparse signs,
      columns (a random subspace of steps) by a subsampled cosine transform. `seed` of the sketches.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Errors:** `ValueError` for a term that is not least squares, or if `updates` is not the gradient.

    **Cost:** per step one linearization, `2 N P^2 + 20 P^3` flops and `radii + 1` evaluations of the loss; memory
    `2 N P`.

    Source: Webb, Jerad and Cartis, arXiv:2607.02194; the interpolation and the change of the target are ours.

    **Example:** with the terms equalised, as in the paper, `so.equalised(so.target_ratio_trust_region(), objective)`;
    without where one term is much harder than the others, and would be given up (a shock).
    """
    return to_transformation(
        TargetRatioMethod(
            target,
            late_target,
            radii=radii,
            decomposition=decomposition,
            sketch_rows=sketch_rows,
            sketch_columns=sketch_columns,
            seed=seed,
        )
    )
