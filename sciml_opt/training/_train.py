"""`train`: the whole training run as one pure scan."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree, Scalar

from .._check import count
from .._results import RESULTS
from .._tree import tree_all_finite, tree_dtype, tree_norm, tree_where
from ..objective import BoundObjective, Objective
from ..sampling import AbstractAdaptiveSampler, norm_test
from ..transforms import step_infos
from ._stepper import Carried, OptaxStepper, OptimistixStepper, make_stepper
from ._stop import Stop

PLATEAU_DECREASE = 1e-3  # a relative decrease below this is no progress


class TrainState(NamedTuple):
    """Everything that a run carries from step to step; arrays only."""

    params: PyTree
    optimizer: PyTree
    key: Array  # step k uses fold_in(key, k)
    step: Int[Array, ""]
    # the finite iterate of lowest loss so far
    best_params: PyTree
    best_loss: Scalar
    # plateau detection: the loss at the last real decrease, and the steps since
    reference_loss: Scalar
    stalled: Int[Array, ""]
    sampled: PyTree  # of an adaptive sampler: the batch of the next step, and its state
    result: RESULTS  # `successful` while running


class StepMade(NamedTuple):
    """What a step found: the loss before it with its terms, and whether it ends the phase or the run."""

    loss: Scalar
    terms: dict[str, Scalar] | None  # `None` for an optimizer that carries its loss
    info: Any
    phase_over: Bool[Array, ""]
    on_target: Bool[Array, ""]


class TrainResult(eqx.Module):
    """What `train` returns; arrays only, so that `train` jits and vmaps.

    **Attributes:**

    - `params`: the last iterate, or the best one if the run became non-finite.
    - `loss`: its loss on the last batch.
    - `best_params`, `best_loss`: the finite iterate of lowest loss.
    - `result`: a `RESULTS` code: `steps_done`, `target_reached`, `plateau`, `too_noisy`, `nonfinite_loss`, or
      `phase_done` if an optimistix solver has converged.
    - `history`: `loss` (before each step), `terms` (one array a term; of an optimizer that carries its loss, such as
      L-BFGS, only as often as the error), `error` (after each step; NaN where it was not
      evaluated), `info` (`StepInfo` of our methods, else `None`), all with a leading axis of `steps`; rows from
      `state.step` on were not run and are NaN or zero.
    - `state`: the final `TrainState`.
    """

    params: PyTree
    loss: Scalar
    best_params: PyTree
    best_loss: Scalar
    result: RESULTS
    history: dict[str, Any]
    state: TrainState


def train(
    params: PyTree,
    objective: Objective,
    optimizer: Any,
    data: PyTree | Callable[[Array], PyTree],
    *,
    steps: int,
    static: PyTree = None,
    where: PyTree | Callable[[Any], bool] | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    key: Array | None = None,
    metric: Callable[[Any], ArrayLike] | None = None,
    metric_every: int = 1,
    resample_every: int = 1,
    until: Stop | None = None,
) -> TrainResult:
    """A training run as one pure function of arrays: one `lax.scan`, to be jitted, vmapped or mapped over seeds.

    **Arguments:**

    - `params`, `static`: from `eqx.partition(model, eqx.is_inexact_array)`; without `static`, `params` is the model.
    - `objective`: the terms.
    - `optimizer`: an optax transformation or an optimistix solver.
    - `data`: a batch (a dict with one entry a term), a sampler `key -> batch` that gives every step fresh points, or an
      adaptive sampler (`so.sampling.RAD`, ...), whose points depend on the model.
    - `steps`: the number of steps, a Python integer.
    - `where`, `chunk`, `mesh`: which parameters are trained, how many points are evaluated at a time, and over which
      devices they are sharded, as in `Objective.bind`.
    - `key`: needed by a sampler only.
    - `metric`: `model -> scalar` error, evaluated every `metric_every` steps.
    - `resample_every`: steps between two draws of a sampler.
    - `until`: early stop; the remaining steps of the scan do nothing.

    **Returns:** a `TrainResult`.

    **Cost:** the steps of the optimizer, one value and gradient (free if the optimizer computes its own), plus the
    metric where it is evaluated.

    **Example:**

    ```python
    tx = so.levenberg_marquardt()
    result = jax.jit(lambda p: so.train(p, objective, tx, batch, steps=300, static=static))(params)
    ```
    """
    until, steps = until or Stop(), count("steps", steps)
    run = Run.build(
        objective,
        optimizer,
        data,
        static=static,
        where=where,
        chunk=chunk,
        mesh=mesh,
        metric=metric,
        metric_every=metric_every,
        resample_every=resample_every,
        until=until,
    )
    state = run.init(params, key)
    state, history = run.scan(state, until, Stop(), jnp.int32(steps), steps)
    loss, state = run.finish(state)
    result = RESULTS.where(state.result == RESULTS.successful, RESULTS.steps_done, state.result)
    return TrainResult(
        params=run.final_params(state),
        loss=loss,
        best_params=state.best_params,
        best_loss=state.best_loss,
        result=result,
        history=history,
        state=state,
    )


class Run(eqx.Module):
    """What stays fixed during a run: the problem and the optimizer."""

    objective: Objective
    stepper: OptaxStepper | OptimistixStepper
    data: PyTree | Callable[[Array], PyTree] | AbstractAdaptiveSampler
    static: PyTree
    where: PyTree | Callable[[Any], bool] | None
    chunk: int | None = eqx.field(static=True)
    mesh: Mesh | None = eqx.field(static=True)
    metric: Callable[[Any], ArrayLike] | None
    metric_every: Int[Array, ""]
    resample_every: int = eqx.field(static=True)

    @classmethod
    def build(
        cls, objective, optimizer, data, *, static, where, chunk, mesh, metric, metric_every, resample_every, until
    ) -> "Run":
        stepper = make_stepper(optimizer)
        if not isinstance(objective, Objective):
            raise TypeError(f"objective must be an Objective of Terms, got {type(objective).__name__}.")
        fresh = callable(data) or isinstance(data, AbstractAdaptiveSampler)
        if fresh and stepper.fixed_batch:
            raise ValueError(
                "An optimistix solver compares losses across steps, so it needs one fixed batch; data is a sampler. "
                "Use an optax transformation for fresh points each step."
            )
        if metric is None and not isinstance(until.error, jax.core.Tracer) and np.asarray(until.error) > -np.inf:
            raise ValueError("Stop(error=...) needs a metric: metric=model -> error.")
        if not fresh:
            data = jax.tree.map(jnp.asarray, data)
        every = jnp.asarray(count("metric_every", metric_every), jnp.int32)
        resample = count("resample_every", resample_every)
        return cls(objective, stepper, data, static, where, chunk, mesh, metric, every, resample)

    @property
    def adaptive(self) -> bool:
        return isinstance(self.data, AbstractAdaptiveSampler)

    @property
    def fresh(self) -> bool:
        """Whether the points change from time to time."""
        return callable(self.data) or self.adaptive

    def model(self, params: PyTree) -> Any:
        return params if self.static is None else eqx.combine(params, self.static)

    def bind(self, key: Array, step: Int[Array, ""], sampled: PyTree) -> BoundObjective:
        batch: Any = self.data
        if self.adaptive:
            batch, _ = sampled
        elif callable(batch):
            batch = batch(jax.random.fold_in(key, step // self.resample_every))
        return self.objective.bind(batch, self.static, where=self.where, chunk=self.chunk, mesh=self.mesh)

    def draw(self, key: Array, step: Int[Array, ""], params: PyTree, state: PyTree) -> PyTree:
        """The batch for step number `step`, which sees the model that this step starts from."""
        key, sampler = jax.random.fold_in(key, step // self.resample_every), cast(AbstractAdaptiveSampler, self.data)
        return sampler.draw(key, self.model(params), state)

    def init(self, params: PyTree, key: Array | None, step: ArrayLike = 0) -> TrainState:
        if key is None and self.fresh:
            raise ValueError("key is needed: data is a sampler, which draws points from it.")
        key = jax.random.key(0) if key is None else key
        if not isinstance(key, jax.Array):
            raise TypeError(f"key must be a random key, jax.random.key(seed), got {key!r}.")
        step = jnp.asarray(step, jnp.int32)
        sampled = None
        if self.adaptive:
            sampler = cast(AbstractAdaptiveSampler, self.data)
            sampled = _draw(self, key, step, params, sampler.init(jax.random.fold_in(key, 2**31 - 1)))
        running: Any = RESULTS.successful
        infinity = jnp.full((), jnp.inf, tree_dtype(params))
        loss = self.bind(key, step, sampled)
        return TrainState(
            params=params,
            optimizer=self.stepper.init(loss, params),
            key=key,
            step=step,
            best_params=params,
            best_loss=infinity,
            reference_loss=infinity,
            stalled=jnp.int32(0),
            sampled=sampled,
            result=running,
        )

    def scan(
        self, state: TrainState, until: Stop, phase_until: Stop, limit: Int[Array, ""], length: int
    ) -> tuple[TrainState, dict[str, Any]]:
        """At most `length` steps, up to step number `limit` or until a stop; the remaining ones do nothing."""
        first = state.step

        def step(state: TrainState):
            return self.step(self.loss(state), state, until, phase_until)

        dtype = state.best_loss.dtype
        nan, no = jnp.full((), jnp.nan, dtype), jnp.zeros((), bool)
        not_made = jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 0, leaf.dtype),
            jax.eval_shape(step, state)[1],
        )

        def body(state: TrainState, index: Int[Array, ""]):
            number = first + index + 1
            active = (state.step < limit) & (state.result == RESULTS.successful)
            measured = number % self.metric_every == 0
            loss = self.loss(state)
            terms = None  # of an optimizer that carries its loss: not a by-product of the step, but another evaluation
            if self.carried(state) is not None:
                terms = _when(measured, active, loss.values, dict.fromkeys(loss.terms, nan), state.params)
            state, made = lax.cond(
                active, lambda s: self.step(loss, s, until, phase_until), lambda s: (s, not_made), state
            )

            def measure(params: PyTree):
                return self.error(params, dtype), _noisy(phase_until, loss, params), _noisy(until, loss, params)

            error, phase_noisy, noisy = _when(measured, active, measure, (nan, no, no), state.params)
            phase_over = made.phase_over | phase_noisy | (error <= phase_until.error.astype(dtype))
            phase_over = phase_over | (state.stalled >= phase_until.plateau)
            on_target = made.on_target | (error <= until.error.astype(dtype))
            result = RESULTS.where(phase_over, RESULTS.phase_done, state.result)
            result = RESULTS.where(noisy, RESULTS.too_noisy, result)
            result = RESULTS.where(state.stalled >= until.plateau, RESULTS.plateau, result)
            result = RESULTS.where(on_target, RESULTS.target_reached, result)
            result = RESULTS.where(jnp.isfinite(made.loss), result, RESULTS.nonfinite_loss)
            state = state._replace(result=RESULTS.where(active, result, state.result))
            if self.adaptive:

                def draw(state: TrainState):
                    return self.draw(state.key, state.step, state.params, state.sampled[1])

                again, going = number % self.resample_every == 0, active & (state.result == RESULTS.successful)
                state = state._replace(sampled=_when(again, going, draw, state.sampled, state))
            terms = made.terms if terms is None else terms
            return state, {"loss": made.loss, "terms": terms, "error": error, "info": made.info}

        return lax.scan(body, state, jnp.arange(length, dtype=jnp.int32))

    def loss(self, state: TrainState) -> BoundObjective:
        """The loss of the next step."""
        return self.bind(state.key, state.step, state.sampled)

    def step(
        self, loss: BoundObjective, state: TrainState, until: Stop, phase_until: Stop
    ) -> tuple[TrainState, StepMade]:
        """One step. `until` ends the run, `phase_until` only the phase."""
        dtype = state.best_loss.dtype
        value, grad, terms = self.evaluate(loss, state)
        params, optimizer, converged = self.stepper.step(loss, state.params, state.optimizer, value, grad)
        if self.where is not None:  # weight decay would move what is frozen
            params = eqx.combine(eqx.filter(params, self.where), state.params)
        # the loss and the gradient of these very parameters: they are kept
        on_target = (value <= until.loss.astype(dtype)) | _flat(until, grad)
        params = tree_where(jnp.isfinite(value) & ~on_target, params, state.params)
        phase_over = (value <= phase_until.loss.astype(dtype)) | converged | _flat(phase_until, grad)
        info = next(iter(step_infos(optimizer)), None)
        state = _track(state, value)._replace(params=params, optimizer=optimizer, step=state.step + 1)
        return state, StepMade(value, terms, info, phase_over, on_target)

    def evaluate(self, loss: BoundObjective, state: TrainState) -> tuple[Scalar, PyTree, dict[str, Scalar] | None]:
        """Value, gradient and terms of the loss at the present point; no terms where they are measured apart."""
        carried = self.carried(state)
        if carried is None:

            def value_and_terms(params):
                terms = loss.values(params)
                return sum(terms.values(), start=jnp.zeros((), state.best_loss.dtype)), terms

            (value, terms), grad = jax.value_and_grad(value_and_terms, has_aux=True)(state.params)
            return value, grad, terms
        if self.fresh:  # of other points the value is unknown
            changed = state.step % self.resample_every == 0
            carried = carried._replace(value=jnp.where(changed, jnp.inf, carried.value))
        value, grad = optax.value_and_grad_from_state(loss)(state.params, state=carried)
        return jnp.asarray(value), grad, None

    def carried(self, state: TrainState) -> Carried | None:
        """Value and gradient of the present point, where the optimizer has them from its last step."""
        if self.where is not None or (self.fresh and self.resample_every == 1):
            return None  # with frozen parameters the point is not the one that the optimizer went to
        return self.stepper.carried(state.optimizer)

    def stopped(self, state: TrainState, until: Stop) -> Bool[Array, ""]:
        """Whether the gradient or its noise at the present point stops a run."""
        if until.grad_norm is None and until.noise is None:
            return jnp.zeros((), bool)

        @jax.jit
        def check(params):
            loss = self.bind(state.key, jnp.maximum(state.step - 1, 0), state.sampled)
            return _flat(until, jax.grad(loss)(params)) | _noisy(until, loss, params)

        return check(state.params)

    def error(self, params: PyTree, dtype) -> Scalar:
        if self.metric is None:
            return jnp.full((), jnp.nan, dtype)
        error = jnp.asarray(self.metric(self.model(params)))
        if error.shape != ():
            raise ValueError(f"metric must return one number, got shape {error.shape}.")
        return error.astype(dtype)

    def finish(self, state: TrainState) -> tuple[Scalar, TrainState]:
        """Evaluate the last iterate, which no step has seen yet."""
        value = self.bind(state.key, jnp.maximum(state.step - 1, 0), state.sampled)(state.params)
        finite = jnp.isfinite(value) & tree_all_finite(state.params)
        result = RESULTS.where(finite, state.result, RESULTS.nonfinite_loss)
        return value, _track(state, value)._replace(result=result)

    def final_params(self, state: TrainState) -> PyTree:
        return tree_where(state.result == RESULTS.nonfinite_loss, state.best_params, state.params)


@eqx.filter_jit
def _draw(run: Run, *args: PyTree) -> PyTree:
    return run.draw(*args)


def _flat(until: Stop, grad: PyTree) -> Bool[Array, ""]:
    if until.grad_norm is None:
        return jnp.zeros((), bool)
    norm = tree_norm(grad)
    return norm <= until.grad_norm.astype(norm.dtype)


def _noisy(until: Stop, loss: BoundObjective, params: PyTree) -> Bool[Array, ""]:
    """Whether the norm test fails."""
    if until.noise is None:
        return jnp.zeros((), bool)
    groups = min(16, max(loss.sizes.values(), default=0))
    if groups < 2:
        raise ValueError("Stop(noise=...) needs a term of at least two points, other than a Product, to compare parts.")
    return ~norm_test(loss, params, until.noise, groups)


def _when(
    due: Bool[Array, ""], active: Bool[Array, ""], function: Callable[..., PyTree], otherwise: PyTree, *operands: PyTree
) -> PyTree:
    """`function(*operands)` where it is due in an active run.

    Under vmap a condition that differs between the runs becomes a mask, and both branches are computed. So `due` must
    not depend on what differs, which is all of the state, the number of steps made too; `active` may.
    """

    def idle(*_):
        return otherwise

    return lax.cond(due, lambda *args: lax.cond(active, function, idle, *args), idle, *operands)


def _track(state: TrainState, value: Scalar) -> TrainState:
    """Best iterate and plateau, given the loss of `state.params`."""
    better = jnp.isfinite(value) & (value < state.best_loss)  # an energy may fall to -inf
    progress = value < state.reference_loss - PLATEAU_DECREASE * jnp.where(
        jnp.isfinite(state.reference_loss), jnp.abs(state.reference_loss), 0
    )
    return state._replace(
        best_params=tree_where(better, state.params, state.best_params),
        best_loss=jnp.where(better, value, state.best_loss),
        reference_loss=jnp.where(progress, value, state.reference_loss),
        stalled=jnp.where(progress, 0, state.stalled + 1).astype(jnp.int32),
    )
