"""What every method has in common."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._tree import tree_dot, tree_dtype, tree_norm, tree_where
from ..globalization import LineSearch, Search, line_search
from ..linear import DampedSolve, Solved
from ..linearization import Linearization


@runtime_checkable
class Loss(Protocol):
    """What a method asks of a loss; `BoundObjective` is one."""

    def __call__(self, params: PyTree) -> Scalar: ...
    def residual(self, params: PyTree) -> Float[Array, " N"]: ...
    def linearize(self, params: PyTree) -> Linearization: ...


class StepInfo(NamedTuple):
    """What one step did; scalars of fixed shape for every method, so that histories stack.

    **Fields:**

    - `loss` before the step; `trial_loss` at the point that was tried last; `accepted`, whether the parameters moved.
    - `damping`, lambda as it was used (of KFAC relative to its factors), or the weight of a regularisation; `radius` of
      a trust region.
    - `gain_ratio`, actual over predicted decrease; `step_size` of the line search; `step_norm` (of the step that was
      tried) and `grad_norm`, Euclidean; `accelerated`, whether the geodesic correction was used.
    - Work: `evaluations` of the loss at trial points, `gradients` beyond those of the linearizations, `linearizations`,
      `products` with Hessians or Jacobians (`J^T J v` is one).
    - The linear system: `solve`, which one was taken (an index of `sciml_opt.linear.SOLVES`, -1 for none of them), its
      `predicted_flops` (at the rate of a matrix product), its `iterations` (0 for a direct one) and `linear_residual`,
      `|A s - b| / |b|`; `rung` of the fallback (0 for none; `damped_cholesky`, `orthogonal_factor`; 1 if a negative
      curvature was met, or if the search of a quasi-Newton method failed).
    - `clipped` negative eigenvalues of a non-convex outer function.

    What a method has not is zero (`step_size` 1 without a line search).
    """

    loss: Scalar
    trial_loss: Scalar
    accepted: Bool[Array, ""]
    damping: Scalar
    radius: Scalar
    gain_ratio: Scalar
    step_size: Scalar
    step_norm: Scalar
    grad_norm: Scalar
    accelerated: Bool[Array, ""]
    evaluations: Int[Array, ""]
    gradients: Int[Array, ""]
    linearizations: Int[Array, ""]
    products: Int[Array, ""]
    rung: Int[Array, ""]
    clipped: Int[Array, ""]
    solve: Int[Array, ""]
    predicted_flops: Scalar
    iterations: Int[Array, ""]
    linear_residual: Scalar

    @classmethod
    def of(cls, params: PyTree, **fields: Any) -> "StepInfo":
        """These fields, in the dtype of the parameters; the others zero."""
        dtype = tree_dtype(params)
        counts = ("evaluations", "gradients", "linearizations", "products", "rung", "clipped", "solve", "iterations")
        kinds = dict.fromkeys(cls._fields, dtype) | dict.fromkeys(counts, jnp.dtype(jnp.int32))
        kinds |= dict.fromkeys(("accepted", "accelerated"), jnp.dtype(bool))
        values = {"step_size": 1, "solve": -1} | fields
        # `jnp.asarray` would leave Python numbers weakly typed, and the second step would retrace
        return cls(**{name: lax.convert_element_type(values.get(name, 0), kind) for name, kind in kinds.items()})


class AbstractMethod(eqx.Module):
    """An algorithm: pure functions on parameters, with its numbers as arrays.

    **Attributes:** `structured`: whether `step` needs a `Loss`; otherwise any function of the parameters will do.
    """

    structured: ClassVar[bool] = True

    @abc.abstractmethod
    def init(self, params: PyTree) -> Any:
        """The state before the first step; arrays only, with a `StepInfo` named `info`."""

    @abc.abstractmethod
    def step(self, loss: Loss, params: PyTree, state: Any) -> tuple[PyTree, Any]:
        """One step. Returns the update (to be added to `params`; zero if the step was rejected) and the new state."""


class AbstractGradientMethod(AbstractMethod):
    """A method that needs values and gradients only, and leaves those at its new point in `state.value`, `state.grad`.

    They are what the next step starts from as long as the loss stays the same function, so that nothing is evaluated
    twice (`optax.value_and_grad_from_state` reads them). Before the first step `state.value` is infinite.
    """

    structured: ClassVar[bool] = False

    @abc.abstractmethod
    def advance(
        self, loss: Callable[[PyTree], Scalar], params: PyTree, value: Scalar, grad: PyTree, state: Any
    ) -> tuple[PyTree, Any]:
        """One step, as `step`, from the value and the gradient at `params`."""

    def step(self, loss: Callable[[PyTree], Scalar], params: PyTree, state: Any) -> tuple[PyTree, Any]:
        value, grad = jax.value_and_grad(loss)(params)
        return self.advance(loss, params, value, grad, state)


def line_search_step(
    loss: Loss,
    params: PyTree,
    lin: Linearization,
    direction: PyTree,
    factor: DampedSolve,
    solved: Solved,
    search: Search,
) -> tuple[PyTree, StepInfo]:
    """The update `eta d` found by a line search along `d = -(J^T J + lambda D)^-1 grad`, and what it did."""
    update, found = searched(loss, params, direction, lin.value, lin.grad, search)
    info = StepInfo.of(
        params,
        loss=lin.value,
        damping=factor.damping,
        gain_ratio=gain_ratio(lin, update, found.value),
        grad_norm=tree_norm(lin.grad),
        linearizations=1,
        clipped=lin.clipped,
        **search_info(found, direction),
        **solve_info(factor, solved, products=1),
    )
    return update, info


def gain_ratio(lin: Linearization, update: PyTree, value: Scalar) -> Scalar:
    """`(L(theta) - L(theta + s)) / -(<grad, s> + |J s|^2 / 2)`; one product with J."""
    predicted = -tree_dot(lin.grad, update) - 0.5 * jnp.sum(lin.jacobian.mv(update) ** 2)
    return quotient(lin.value - value, predicted)


def searched(
    loss: Callable[[PyTree], Scalar], params: PyTree, direction: PyTree, value: Scalar, grad: PyTree, search: Search
) -> tuple[PyTree, LineSearch]:
    """The update `eta d` found by a line search along `d`, see `searched_update`, and the search."""
    found = line_search(search, loss, params, direction, value, grad)
    return searched_update(found, direction), found


def searched_update(found: LineSearch, direction: PyTree) -> PyTree:
    """`eta d`; zero if the search found no step, also where `d` is not finite."""
    moved = found.step_size > 0
    return jax.tree.map(lambda d: jnp.where(moved, found.step_size.astype(d.dtype) * d, jnp.zeros_like(d)), direction)


def search_info(found: LineSearch, direction: PyTree) -> dict[str, Any]:
    """The fields of `StepInfo` about a line search."""
    moved = found.step_size > 0
    return {
        "trial_loss": found.value,
        "accepted": moved,
        "step_size": found.step_size,
        "step_norm": jnp.where(moved, found.step_size, 1) * tree_norm(direction),  # of the whole direction if it failed
        "evaluations": found.evaluations,
        "gradients": found.gradients,
    }


def keep(started: Bool[Array, ""], new: Any, old: Any) -> Any:
    """The state `new` after a finite start; otherwise `old`, which broken data thus leave usable, with the new info."""
    return tree_where(started, new, old)._replace(info=new.info)


def solution(factor: DampedSolve, lin: Linearization) -> Solved:
    """`(J^T J + lambda D)^-1 grad`, in the residual form where there is a residual."""
    return factor.solve_gradient(lin.grad) if lin.residual is None else factor.solve_residual(lin.residual)


def residual_of(lin: Linearization, method: str) -> Float[Array, " N"]:
    """The residual, which a loss has whose every term is 0.5 |z|^2."""
    if lin.residual is None:
        raise ValueError(
            f"{method} needs least squares, every term 0.5 |z|^2; this loss has another outer function. "
            "so.energy_natural_gradient and so.gauss_newton take it."
        )
    return lin.residual


def lin_is_finite(lin: Linearization) -> Bool[Array, ""]:
    """Whether there is something to start from."""
    return jnp.isfinite(lin.value) & jnp.isfinite(tree_norm(lin.grad))


def quotient(a: Scalar, b: Scalar) -> Scalar:
    """`a / b`, and 0 where `b = 0`: no step was taken, or the gradient vanishes."""
    return jnp.where(b == 0, jnp.zeros_like(a), a / jnp.where(b == 0, jnp.ones_like(b), b))


def solve_info(factor: DampedSolve, *solved: Solved, products: int = 0) -> dict[str, Any]:
    """The fields of `StepInfo` about the linear system; iterations added up, the residual of the first.

    `products` were made beyond those of the iterations.
    """
    iterations = sum((one.iterations for one in solved), start=jnp.int32(0))
    return {
        "rung": factor.rung,
        "solve": factor.choice,
        "predicted_flops": factor.predicted_flops,
        "iterations": iterations,
        "products": iterations + products,
        "linear_residual": solved[0].relative_residual,
    }
