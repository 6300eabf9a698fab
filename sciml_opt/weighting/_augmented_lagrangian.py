"""The augmented Lagrangian: terms that are constraints."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._check import number
from ..objective import BoundObjective
from ._weighting import PointRule, period, point_counts, weighting


def augmented_lagrangian(
    tx: optax.GradientTransformation,
    constraints: Mapping[str, Any],
    *,
    penalty: ArrayLike = 100.0,
    every: int = 10,
) -> optax.GradientTransformationExtraArgs:
    """The augmented Lagrangian: some terms (boundary, initial conditions, data) hold exactly, point by point.

        min  sum of the other terms  + sum_k w_k / N_k sum_i ( lambda_ki^T z_ki + penalty/2 |z_ki|^2 )
        lambda_ki <- lambda_ki + penalty z_ki           every so many steps, from 0

    A penalty alone leaves `z_i` about `-lambda_i / penalty`; with the multipliers `z_i = 0` is the minimum for a
    moderate penalty, which does not spoil the conditioning. The optimizer sees a least-squares loss, the terms with
    weight `penalty` and the residual `z_i + lambda_i / penalty`, and methods for least squares apply.

    If not all constraints can hold, the multipliers grow without bound; and where the steps of `tx` drown in the
    rounding of the loss (`z_i` near 1e-9 in float64) they drift by `penalty z_i` an update: stop there, or take
    `so.lbfgs()`, which goes on. The points must be the same in every step.

    **Arguments:**

    - `tx`: any optax transformation; ours and line searches get the augmented loss as `value_fn`.
    - `constraints`: of the terms that are constraints: a part of the batch, or their numbers of points; of an inner map
      with `m > 1` outputs the shape `(N, m)`.
    - `penalty`: times the weight of the term. The larger, the fewer updates are needed.
    - `every`: steps between two updates of the multipliers; the optimizer should come near the minimum in between, so
      that methods of first order need some hundred.

    **Returns:** an optax transformation whose `update` needs a bound objective as `value_fn`; `state.rule.multipliers`
    are those of each term, `(N, m)`. Where a constraint is not finite they stay. `so.info(state)` speaks of the
    augmented loss (without the constant `|lambda|^2 / (2 penalty)`).

    **Errors:** `ValueError` for other points than the loss has, blocks of data, a term that is not least squares, or if
    `updates` is not the gradient.

    **Cost:** one gradient a step, and at an update one evaluation of the constraints.

    Source: Son, Cho and Hwang, arXiv:2205.01059 (AL-PINN); Hestenes (1969), doi:10.1007/BF00927673.

    **Example:** `so.augmented_lagrangian(so.levenberg_marquardt(), {"boundary": B})`.
    """
    if not isinstance(constraints, Mapping):
        raise TypeError(
            "constraints must be a dict from names of terms to their points (a part of the batch) or to the number of "
            f"their points, got {type(constraints).__name__}."
        )
    shapes = {name: entry for name, entry in constraints.items() if _is_shape(entry)}
    counts = point_counts(dict(constraints) | {name: count for name, (count, _) in shapes.items()})
    sizes = tuple(shapes.get(name, (count, 1))[1] for name, count in counts)
    rule = AugmentedLagrangian(counts, sizes, number("penalty", penalty, above=0), period(every))
    return weighting(rule, tx)


def _is_shape(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and all(isinstance(size, int) for size in entry)


class AugmentedLagrangianState(NamedTuple):
    multipliers: dict[str, Array]


class AugmentedLagrangian(PointRule):
    outputs: tuple[int, ...] = eqx.field(static=True)
    penalty: Array
    period: Int[Array, ""]

    @property
    def every(self) -> Int[Array, ""]:
        return self.period

    def init(self, dtype: jnp.dtype) -> AugmentedLagrangianState:
        shapes = {name: (count, m) for (name, count), m in zip(self.counts, self.outputs, strict=True)}
        return AugmentedLagrangianState({name: jnp.zeros(shape, dtype) for name, shape in shapes.items()})

    def update(
        self, loss: BoundObjective, params: PyTree, state: AugmentedLagrangianState, steps: Int[Array, ""]
    ) -> AugmentedLagrangianState:
        new = {}
        for name, z in loss.outputs(params, self.names).items():
            old = state.multipliers[name]
            if z.shape != old.shape:
                raise ValueError(
                    f"The inner map of constraint {name!r} has {z.shape[1]} outputs, its multipliers {old.shape[1]}: "
                    f"give constraints={{{name!r}: {z.shape}}}."
                )
            rise = jnp.where(steps > 0, self.penalty.astype(z.dtype), 0)  # not at the start, which is no minimum
            new[name] = old + rise * z
        return AugmentedLagrangianState(new)

    def weigh(self, loss: BoundObjective, state: AugmentedLagrangianState) -> BoundObjective:
        penalty = {name: self.penalty.astype(leaf.dtype) for name, leaf in state.multipliers.items()}
        shifts = {name: leaf / penalty[name] for name, leaf in state.multipliers.items()}
        return loss.reweighted(penalty).shifted(shifts)
