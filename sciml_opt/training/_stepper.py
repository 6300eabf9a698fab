"""One step of any optimizer: optax transformations and optimistix solvers behind one interface."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import optimistix as optx
from jaxtyping import PyTree, Scalar

from ..methods import AbstractGradientMethod
from ..objective import BoundObjective
from ..solvers import MethodMinimiser, MethodSolver


class Carried(NamedTuple):
    """Value and gradient that an optimizer carries for the point that its last step led to; value infinite at first."""

    value: Scalar
    grad: PyTree


def _holds(state: Any) -> bool:
    """Whether a state has `value` and `grad` of the point that its step led to, as optax's line searches and ours."""
    return {"value", "grad"} <= set(getattr(state, "_fields", ())) and state.grad is not None


class OptaxStepper(eqx.Module):
    """Steps by optax's own protocol: `tx.update(grad, state, params, value=..., grad=..., value_fn=loss)`."""

    optimizer: optax.GradientTransformationExtraArgs

    @property
    def fixed_batch(self) -> bool:
        return False

    def init(self, loss: BoundObjective, params: PyTree) -> Any:
        del loss
        # Strong types: the weakly typed counters of some states would retrace at the second step.
        return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), self.optimizer.init(params))

    def carried(self, state: Any) -> Carried | None:
        """What the state has for the present point, if the loss is still the same function."""
        last: Any = state[-1] if type(state) is tuple and state else state  # the end of a chain
        return Carried(last.value, last.grad) if _holds(last) else None

    def forget(self, state: Any, fresh: Any) -> Any:
        """The state for another loss, or another point: without the value that it carries."""
        if type(state) is tuple and state:
            return (*state[:-1], self.forget(state[-1], fresh))
        last: Any = state
        return last._replace(value=jnp.full_like(last.value, jnp.inf)) if _holds(last) else last

    def step(self, loss: BoundObjective, params: PyTree, state: Any, value: Scalar, grad: PyTree):
        updates, state = self.optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state, jnp.zeros((), bool)


class OptimistixStepper(eqx.Module):
    """Steps of an optimistix solver, until it stops; its state travels as arrays, the rest is rebuilt each trace."""

    optimizer: optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser

    @property
    def fixed_batch(self) -> bool:
        """Whether the solver compares losses across steps, as stock ones do; most steps of ours are self-contained."""
        if isinstance(self.optimizer, MethodSolver | MethodMinimiser):
            return isinstance(self.optimizer.method, AbstractGradientMethod)
        return True

    def carried(self, state: Any) -> Carried | None:
        method: Any = getattr(state, "method", None)  # of a solver of ours
        return Carried(method.value, method.grad) if _holds(method) else None

    def forget(self, state: Any, fresh: Any) -> Any:
        """The state for another loss; that of a stock solver is about the old one, and begins anew."""
        if not isinstance(self.optimizer, MethodSolver | MethodMinimiser):
            return fresh
        method: Any = state.method
        if _holds(method):
            method = method._replace(value=jnp.full_like(method.value, jnp.inf))
        return eqx.tree_at(lambda s: s.method, state, method)

    def _options(self, loss: BoundObjective) -> dict[str, Any]:
        return {"objective": loss} if isinstance(self.optimizer, MethodSolver | MethodMinimiser) else {}

    def _setup(self, loss: BoundObjective, params: PyTree):
        minimise = isinstance(self.optimizer, optx.AbstractMinimiser)

        def fn(y, args):
            return (loss(y) if minimise else loss.residual(y)), None

        out = jax.eval_shape(lambda y: fn(y, None)[0], params)
        fn = eqx.filter_closure_convert(fn, params, None)
        return fn, self.optimizer.init(fn, params, None, self._options(loss), out, None, frozenset())

    def init(self, loss: BoundObjective, params: PyTree) -> Any:
        # Traced like the step: the jaxprs inside some states number their constants by what is a tracer.
        return eqx.filter_jit(lambda loss, y: eqx.filter(self._setup(loss, y)[1], eqx.is_array))(loss, params)

    def step(self, loss: BoundObjective, params: PyTree, state: Any, value: Scalar, grad: PyTree):
        del value, grad
        fn, fresh = self._setup(loss, params)
        full = eqx.combine(state, eqx.filter(fresh, eqx.is_array, inverse=True))
        options = self._options(loss)
        new_params, full, _ = self.optimizer.step(fn, params, None, options, full, frozenset())
        done, result = self.optimizer.terminate(fn, new_params, None, options, full, frozenset())
        return new_params, eqx.filter(full, eqx.is_array), done | (result != optx.RESULTS.successful)


def make_stepper(optimizer: Any) -> OptaxStepper | OptimistixStepper:
    """Recognise an optimizer."""
    if isinstance(optimizer, optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser):
        return OptimistixStepper(optimizer)
    if isinstance(optimizer, optax.GradientTransformation):
        return OptaxStepper(optax.with_extra_args_support(optimizer))
    raise TypeError(
        "optimizer must be an optax transformation (so.levenberg_marquardt(), optax.adam(1e-3)) or an optimistix "
        f"solver, got {type(optimizer).__name__}."
    )
