"""`train`: the whole training run as one pure scan."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
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
    """What a step found: the loss before it, its terms (`None` where they are measured apart), and ends of the run."""

    loss: Scalar
    terms: dict[str, Scalar] | None
    info: Any
    left: Bool[Array, ""]  # the phase
    reached: Bool[Array, ""]  # the target


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
        if metric is None and not isinstance(until.error, jax.core.Tracer) and until.error > -jnp.inf:
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
        return sampler.draw(key, eqx.combine(params, self.static), state)

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
            return self.step(state, until, phase_until)

        nothing = jax.tree.map(
            lambda leaf: jnp.full(leaf.shape, jnp.nan if jnp.issubdtype(leaf.dtype, jnp.floating) else 0, leaf.dtype),
            jax.eval_shape(step, state)[1],
        )

        def body(state: TrainState, index: Int[Array, ""]):
            number = first + index + 1  # not from `state.step`: see `_when`
            active = (state.step < limit) & (state.result == RESULTS.successful)
            measured = number % self.metric_every == 0
            terms = self.terms_apart(state, measured, active)
            sampled = state.sampled
            state, made = lax.cond(active, step, lambda s: (s, nothing), state)
            dtype = made.loss.dtype
            nan, no = jnp.full((), jnp.nan, dtype), jnp.zeros((), bool)
            error = _when(measured, active, lambda p: self.error(p, dtype), nan, state.params)

            def noisy(stop: Stop):
                def fails(state: TrainState):
                    return _noisy(stop, self.bind(state.key, state.step - 1, sampled), state.params)

                return no if stop.noise is None else _when(measured, active, fails, no, state)

            left = made.left | noisy(phase_until) | (error <= phase_until.error.astype(dtype))
            reached = made.reached | (error <= until.error.astype(dtype))
            result = RESULTS.where(left, RESULTS.phase_done, state.result)
            result = RESULTS.where(noisy(until), RESULTS.too_noisy, result)
            result = RESULTS.where(state.stalled >= until.plateau, RESULTS.plateau, result)
            result = RESULTS.where(reached, RESULTS.target_reached, result)
            result = RESULTS.where(jnp.isfinite(made.loss), result, RESULTS.nonfinite_loss)
            state = state._replace(result=RESULTS.where(active, result, state.result))
            if self.adaptive:
                again, going = number % self.resample_every == 0, active & (state.result == RESULTS.successful)

                def draw(state: TrainState):
                    return self.draw(state.key, state.step, state.params, state.sampled[1])

                state = state._replace(sampled=_when(again, going, draw, state.sampled, state))
            record = {"loss": made.loss, "terms": made.terms if terms is None else terms, "error": error}
            return state, record | {"info": made.info}

        return lax.scan(body, state, jnp.arange(length, dtype=jnp.int32))

    def step(self, state: TrainState, until: Stop, phase_until: Stop) -> tuple[TrainState, StepMade]:
        """One step. `until` ends the run, `phase_until` only the phase."""
        loss = self.bind(state.key, state.step, state.sampled)
        dtype = state.best_loss.dtype
        value, grad, terms = self.evaluate(loss, state)
        params, optimizer, converged = self.stepper.step(loss, state.params, state.optimizer, value, grad)
        if self.where is not None:  # weight decay would move what is frozen
            params = eqx.combine(eqx.filter(params, self.where), state.params)
        # the loss and the gradient of these very parameters: they are kept
        reached = (value <= until.loss.astype(dtype)) | _flat(until, grad)
        params = tree_where(jnp.isfinite(value) & ~reached, params, state.params)
        state = _track(state, value)
        left = (value <= phase_until.loss.astype(dtype)) | (state.stalled >= phase_until.plateau)
        left = left | converged | _flat(phase_until, grad)
        info = next(iter(step_infos(optimizer)), None)
        state = state._replace(params=params, optimizer=optimizer, step=state.step + 1)
        return state, StepMade(value, terms, info, left, reached)

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
        if self.where is not None:  # with frozen parameters the point is not the one that the optimizer went to
            return None
        return None if self.fresh and self.resample_every == 1 else self.stepper.carried(state.optimizer)

    def terms_apart(
        self, state: TrainState, measured: Bool[Array, ""], active: Bool[Array, ""]
    ) -> dict[str, Scalar] | None:
        """The terms for an optimizer that carries value and gradient: they would cost another evaluation each step."""
        if self.carried(state) is None:
            return None

        def values(state: TrainState):
            return self.bind(state.key, state.step, state.sampled).values(state.params)

        nothing = dict.fromkeys(self.objective.terms, jnp.full_like(state.best_loss, jnp.nan))
        return _when(measured, active, values, nothing, state)

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
        error = jnp.asarray(self.metric(eqx.combine(params, self.static)))
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

    Under vmap a condition that differs between the runs becomes a mask, and both branches are computed: `due` must be
    the same in all of them, `active` need not.
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
