"""What every method has in common."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._tree import tree_dot, tree_dtype, tree_norm
from ..globalization import LineSearch
from ..linear import DampedSolve
from ..linearization import Linearization


@runtime_checkable
class Loss(Protocol):
    """What a method asks of a loss; `BoundObjective` is one."""

    def __call__(self, params: PyTree) -> Scalar: ...
    def residual(self, params: PyTree) -> Float[Array, " N"]: ...
    def linearize(self, params: PyTree) -> Linearization: ...


class StepInfo(NamedTuple):
    """What one step did; scalars of fixed shape for every method, so that histories stack.

    **Fields:** `loss` before the step; `trial_loss` at the point that was tried last; `accepted`, whether the
    parameters moved; `damping`, lambda as it was used; `gain_ratio`, actual over predicted decrease; `step_size` of the
    line search; `step_norm` (of the step that was tried) and `grad_norm`, Euclidean; `accelerated`, whether the
    geodesic correction was used; `evaluations` of the loss at trial points; `rung` of the Cholesky ladder (0 Cholesky,
    1 more damping, 2 eigenvalues); `clipped` negative eigenvalues of a non-convex outer function; `solve`, which linear
    solve was taken (an index of `sciml_opt.linear.SOLVES`), `predicted_flops` of it (at the rate of a matrix product),
    and its `iterations` (0 for a direct one).
    """

    loss: Scalar
    trial_loss: Scalar
    accepted: Bool[Array, ""]
    damping: Scalar
    gain_ratio: Scalar
    step_size: Scalar
    step_norm: Scalar
    grad_norm: Scalar
    accelerated: Bool[Array, ""]
    evaluations: Int[Array, ""]
    rung: Int[Array, ""]
    clipped: Int[Array, ""]
    solve: Int[Array, ""]
    predicted_flops: Scalar
    iterations: Int[Array, ""]

    @classmethod
    def empty(cls, params: PyTree) -> "StepInfo":
        number, flag, count = jnp.zeros((), tree_dtype(params)), jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        return cls(
            loss=number,
            trial_loss=number,
            accepted=flag,
            damping=number,
            gain_ratio=number,
            step_size=number,
            step_norm=number,
            grad_norm=number,
            accelerated=flag,
            evaluations=count,
            rung=count,
            clipped=count,
            solve=count,
            predicted_flops=number,
            iterations=count,
        )


class AbstractMethod(eqx.Module):
    """An algorithm: pure functions on parameters, with its numbers as arrays."""

    @abc.abstractmethod
    def init(self, params: PyTree) -> Any:
        """The state before the first step; arrays only, with a `StepInfo` named `info`."""

    @abc.abstractmethod
    def step(self, loss: Loss, params: PyTree, state: Any) -> tuple[PyTree, Any]:
        """One step. Returns the update (to be added to `params`; zero if the step was rejected) and the new state."""


def line_search_step(
    lin: Linearization,
    direction: PyTree,
    factor: DampedSolve,
    iterations: Int[Array, ""],
    search: Callable[[Linearization, PyTree], LineSearch],
) -> tuple[PyTree, StepInfo]:
    """The update `eta d` found by a line search along `d`, and what it did."""
    found = search(lin, direction)
    moved = found.step_size > 0
    update = jax.tree.map(lambda d: jnp.where(moved, found.step_size.astype(d.dtype) * d, jnp.zeros_like(d)), direction)
    predicted = -tree_dot(lin.grad, update) - 0.5 * jnp.sum(lin.jacobian.mv(update) ** 2)
    info = StepInfo(
        loss=lin.value,
        trial_loss=found.value,
        accepted=moved,
        damping=factor.damping,
        gain_ratio=(lin.value - found.value) / predicted,
        step_size=found.step_size,
        step_norm=jnp.where(moved, found.step_size, 1) * tree_norm(direction),  # of the whole direction if it failed
        grad_norm=tree_norm(lin.grad),
        accelerated=jnp.zeros((), bool),
        evaluations=found.evaluations,
        rung=factor.rung,
        clipped=lin.clipped,
        solve=factor.choice,
        predicted_flops=factor.predicted_flops,
        iterations=iterations,
    )
    return update, info
