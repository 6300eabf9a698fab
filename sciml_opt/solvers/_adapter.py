"""From a method to an optimistix solver, for any function or a structured objective."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree, Scalar

from .._check import number, parameters
from .._tree import ravel, tree_add, tree_dtype, tree_size, tree_structure
from ..linearization import Linearization, StructuredJacobian
from ..methods import AbstractGradientMethod, AbstractMethod, Loss
from ..methods._quasi_newton import HOPELESS
from ..objective import BoundObjective


class _SolverState(eqx.Module):
    method: PyTree
    terminate: Bool[Array, ""]
    result: optx.RESULTS


class _ResidualFunction(eqx.Module):
    """Any `fn(y, args) -> (residual pytree, aux)` as a `Loss`: its Jacobian is dense, from the cheaper side."""

    fn: Callable
    args: PyTree

    def residual(self, params: PyTree) -> Float[Array, " N"]:
        out = self.fn(params, self.args)[0]
        return ravel(out).astype(tree_dtype(params))

    def __call__(self, params: PyTree) -> Scalar:
        return 0.5 * jnp.sum(self.residual(params) ** 2)

    def linearize(self, params: PyTree) -> Linearization:
        residual = self.residual(params)
        reverse = residual.size < tree_size(params)
        jacobian = (jax.jacrev if reverse else jax.jacfwd)(self.residual)(params)
        leaves = [leaf.astype(residual.dtype).reshape(residual.size, -1).T for leaf in jax.tree.leaves(jacobian)]
        operator = StructuredJacobian(jnp.concatenate(leaves), tree_structure(params))
        return Linearization(
            0.5 * jnp.sum(residual**2), operator.rmv(residual), residual, operator, jnp.zeros((), jnp.int32)
        )

    def freeze(self, frozen: PyTree) -> "_ResidualFunction":
        return _ResidualFunction(_Frozen(self.fn, frozen), self.args)


class _Frozen(eqx.Module):
    """A function of the other parameters alone."""

    fn: Callable
    frozen: PyTree

    def __call__(self, params: PyTree, args: PyTree):
        return self.fn(eqx.combine(self.frozen, params), args)


class _ScalarFunction(eqx.Module):
    """Any `fn(y, args) -> (scalar, aux)` as a function of the parameters."""

    fn: Callable
    args: PyTree

    def __call__(self, params: PyTree) -> Scalar:
        return self.fn(params, self.args)[0].astype(tree_dtype(params))


class _MethodFace(eqx.Module):
    """What both kinds of solver share: the method's step, and when to stop.

    They stop when a step, accepted or not, would change neither the parameters (Euclidean norm of the step against
    `norm` of the parameters) nor the loss beyond `atol + rtol * size`, and with `RESULTS.nonfinite` on a non-finite
    loss or gradient.
    """

    rtol: Array
    atol: Array
    norm: Callable[[PyTree], Scalar]
    method: AbstractMethod

    def __init__(
        self, rtol: ArrayLike, atol: ArrayLike, norm: Callable[[PyTree], Scalar], method: AbstractMethod
    ) -> None:
        self.rtol = number("rtol", rtol, at_least=0)
        self.atol = number("atol", atol, at_least=0)
        self.norm = norm
        self.method = method

    @abc.abstractmethod
    def _loss(self, fn: Callable, args: PyTree) -> Any: ...

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> _SolverState:
        return _SolverState(self.method.init(parameters(y)), jnp.array(False), optx.RESULTS.successful)

    def step(self, fn, y, args, options, state: _SolverState, tags) -> tuple[PyTree, _SolverState, Any]:
        loss = options["objective"] if "objective" in options else self._loss(fn, args)
        if isinstance(self.method, AbstractGradientMethod):
            value, grad = optax.value_and_grad_from_state(loss)(y, state=state.method)
            update, method_state = self.method.advance(loss, y, jnp.asarray(value), grad, state.method)
        else:
            update, method_state = self.method.step(loss, y, state.method)
        new_y, info = tree_add(y, update), method_state.info
        dtype = tree_dtype(y)
        rtol, atol = self.rtol.astype(dtype), self.atol.astype(dtype)
        # A rejected trial counts as well: at rounding level no step decreases the loss any more.
        change = jnp.abs(info.loss - info.trial_loss)
        settled = (info.step_norm <= atol + rtol * self.norm(y)) & (change <= atol + rtol * jnp.abs(info.loss))
        searches = getattr(method_state, "searches", None)  # of a quasi-Newton method, which after a failure tries anew
        if searches is not None:
            settled = settled & ((searches.failures == 0) | (searches.failures >= HOPELESS))
        terminate = settled | (info.grad_norm == 0)
        finite = jnp.isfinite(info.loss) & jnp.isfinite(info.grad_norm)
        result = optx.RESULTS.where(finite, optx.RESULTS.successful, optx.RESULTS.nonfinite)
        return new_y, _SolverState(method_state, terminate, result), fn(new_y, args)[1]

    def terminate(self, fn, y, args, options, state: _SolverState, tags) -> tuple[Bool[Array, ""], optx.RESULTS]:
        return state.terminate, state.result

    def postprocess(self, fn, y, aux, args, options, state: _SolverState, tags, result):
        return y, aux, {"info": state.method.info}


class MethodSolver(_MethodFace, optx.AbstractLeastSquaresSolver):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A method as an optimistix least-squares solver.

    **Arguments:** `rtol`, `atol`, `norm` as in optimistix, kept as arrays so that another tolerance does not retrace;
    `method`: an `AbstractMethod`. Subclasses give it by its numbers.

    **Options:** `objective`: a bound objective whose structured linearization replaces the dense Jacobian of `fn`; set
    by `so.least_squares`.
    """

    __init__ = _MethodFace.__init__

    def _loss(self, fn, args) -> Loss:
        return _ResidualFunction(fn, args)


class MethodMinimiser(_MethodFace, optx.AbstractMinimiser):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A method as an optimistix minimiser of any scalar function; arguments and options as in `MethodSolver`."""

    __init__ = _MethodFace.__init__

    def _loss(self, fn, args) -> Callable[[PyTree], Scalar]:
        return _ScalarFunction(fn, args)


def least_squares(
    loss: BoundObjective,
    solver: optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser,
    params: PyTree,
    *,
    max_steps: int | None = 256,
    adjoint: optx.AbstractAdjoint | None = None,
    throw: bool = True,
) -> optx.Solution:
    """`optimistix.least_squares` on a bound objective, whose structured linearization our solvers then use.

    **Arguments:**

    - `loss`: `objective.bind(batch, static=static)`, least squares in every term.
    - `solver`: `so.LevenbergMarquardt(...)`, `so.GaussNewton(...)`, or any optimistix solver (which then sees the
      stacked residual only).
    - `params`: the start.
    - `max_steps`, `adjoint`, `throw`: as in optimistix.

    **Returns:** an `optimistix.Solution`; `solution.value` are the parameters.

    **Errors:** `ValueError` if a term is not least squares.

    **Example:**

    ```python
    solution = so.least_squares(loss, so.LevenbergMarquardt(rtol=1e-8, atol=1e-8), params, max_steps=500)
    ```
    """
    _check_bound(loss)
    jax.eval_shape(lambda p: loss.residual(p), params)  # raises for an energy, which has no residual
    return optx.least_squares(
        _bound_residual,
        solver,
        params,
        args=loss,
        options={"objective": loss} if isinstance(solver, MethodSolver) else None,
        max_steps=max_steps,
        adjoint=optx.ImplicitAdjoint() if adjoint is None else adjoint,
        throw=throw,
    )


def minimise(
    loss: BoundObjective,
    solver: optx.AbstractMinimiser,
    params: PyTree,
    *,
    max_steps: int | None = 256,
    adjoint: optx.AbstractAdjoint | None = None,
    throw: bool = True,
) -> optx.Solution:
    """`optimistix.minimise` on a bound objective of any kind, energies included.

    **Arguments:** as in `so.least_squares`; `solver`: `so.NewtonKrylov(...)`, or any optimistix minimiser.

    **Returns:** an `optimistix.Solution`; `solution.value` are the parameters.

    **Example:**

    ```python
    solution = so.minimise(loss, so.NewtonKrylov(rtol=1e-8, atol=1e-8), params, max_steps=500)
    ```
    """
    _check_bound(loss)
    if not isinstance(solver, optx.AbstractMinimiser):
        raise TypeError(
            f"solver must be an optimistix minimiser, got {type(solver).__name__}, which minimises 0.5 |r|^2: "
            "use so.least_squares(loss, solver, params), or so.NewtonKrylov."
        )
    return optx.minimise(
        _bound_value,
        solver,
        params,
        args=loss,
        options={"objective": loss} if isinstance(solver, MethodMinimiser) else None,
        max_steps=max_steps,
        adjoint=optx.ImplicitAdjoint() if adjoint is None else adjoint,
        throw=throw,
    )


def _check_bound(loss: Any) -> None:
    if not isinstance(loss, BoundObjective):
        raise TypeError(f"loss must be a bound objective, objective.bind(batch, ...), got {type(loss).__name__}.")


def _bound_residual(params: PyTree, loss: BoundObjective) -> Float[Array, " N"]:
    return loss.residual(params)


def _bound_value(params: PyTree, loss: BoundObjective) -> Scalar:
    return loss(params)
