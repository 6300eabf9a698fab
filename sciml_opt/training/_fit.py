"""`fit`: the host shell around compiled chunks of training steps."""

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, PyTree

from .._check import count
from .._results import RESULTS
from ..objective import Objective
from ._checkpoint import load_checkpoint, read_header, save_checkpoint
from ._record import Record
from ._stop import Stop
from ._train import Run, TrainState

CHUNK = 100  # steps in one compiled program
CHUNK_SECONDS = 0.25  # a chunk is cut short to look at the clock about this often


class Phase(NamedTuple):
    """One stage of a run: an optimizer, its number of steps, when to leave it for the next stage, and its own data
    or objective (a curriculum goes through several, from an easy equation to the one that is meant).

    What carries over to the next phase: the parameters, the number of the step (from which samplers draw), and of what
    both phases hold as the same object: the best iterate, of one objective; the points of an adaptive sampler; the
    state of the optimizer, which is its moments, pairs, matrices, damping, and the count that its schedules go by.
    Another optimizer starts anew, at step 0 of its schedules, and so does the count of a plateau.

    **Arguments:** `optimizer`; `steps` at most; `until`, a `Stop` that ends the phase: after a plateau, at a loss, an
    error or a norm of the gradient, when the batch is too noisy, or after a time; `data` and `objective`, in place of
    those of `fit`, with the same terms. Objectives that differ in the numbers of their terms only (an `eqx.Module` as
    residual, with the coefficient as an array field) share one compiled program.

    **Example:**

    ```python
    warm_up = optax.warmup_cosine_decay_schedule(0.0, 5e-3, 200, 2000)
    phases = [
        so.Phase(optax.adam(warm_up), 2000, until=so.Stop(plateau=200)),
        so.Phase(so.lbfgs(), 1000, until=so.Stop(grad_norm=1e-4)),
        so.Phase(so.levenberg_marquardt(), 300),
    ]
    ```
    """

    optimizer: Any
    steps: int
    until: Stop | None = None
    data: Any = None
    objective: Objective | None = None


class Progress(NamedTuple):
    """What a callback sees after each chunk."""

    step: int
    steps: int
    phase: int
    loss: float
    error: float
    seconds: float
    params: PyTree


class FitResult(NamedTuple):
    """What `fit` returns.

    **Fields:**

    - `model`: the last iterate, or the best finite one if the run became non-finite.
    - `best_model`, `best_loss`: the finite iterate of lowest loss.
    - `loss` of the last iterate; `error` of `model` (NaN without a metric).
    - `status`: a `RESULTS` code; `RESULTS[status]` is its text.
    - `steps`: steps made.
    - `history`: numpy arrays of length `steps`: `loss` (before each step), `loss/NAME` of each term (of an optimizer
      that carries its loss, such as L-BFGS, only as often as the error), `error` (after each step; NaN where it was not
      evaluated), `phase`, `seconds` (training time until then, see below) and the
      fields of `StepInfo` (NaN or 0 for other optimizers).
    - `optimizer_state`: of the last phase, for `so.info` and `so.average`.
    - `compile_seconds`, `train_seconds`: process CPU seconds on CPU, wall-clock seconds on an accelerator.
    """

    model: Any
    best_model: Any
    best_loss: float
    loss: float
    error: float
    status: RESULTS
    steps: int
    history: dict[str, np.ndarray]
    optimizer_state: Any
    compile_seconds: float
    train_seconds: float


def fit(
    model: Any,
    objective: Objective,
    optimizer: Any,
    data: PyTree | Callable[[Array], PyTree],
    *,
    steps: int | None = None,
    key: Array | None = None,
    seeds: int | Iterable[int] | None = None,
    where: PyTree | Callable[[Any], bool] | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    metric: Callable[[Any], ArrayLike] | None = None,
    metric_every: int = 10,
    resample_every: int = 1,
    until: Stop | None = None,
    callback: Callable[[Progress], bool | None] | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_every: float = 10.0,
    resume: bool = False,
    progress: bool = False,
) -> Any:
    """Train a model: compiled chunks of steps, phases, stops, history, progress bar, checkpoints.

    **Arguments:**

    - `model`: an equinox module (or any pytree); its floating arrays are trained.
    - `objective`: the terms.
    - `optimizer`: an optax transformation, an optimistix solver, or a list of `Phase`.
    - `data`: a batch (a dict with one entry a term), a sampler `key -> batch` for fresh points each step, or an
      adaptive sampler (`so.sampling.RAD`, ...), whose points depend on the model.
    - `steps`: the number of steps (not with phases: each has its own).
    - `key`: needed by a sampler.
    - `seeds`: a number of seeds, or the seeds; `model` is then a function `key -> model`, and the runs follow one
      another in the same compiled program (Ctrl-C ends them all).
    - `where`, `chunk`, `mesh`: which parameters are trained, how many points are evaluated at a time, and over which
      devices they are sharded, as in `Objective.bind`.
    - `metric`: `model -> scalar` error; it is evaluated every `metric_every` steps.
    - `resample_every`: steps between two draws of a sampler. A method that carries curvature keeps it across draws.
    - `until`: a `Stop` for the whole run; the one of a `Phase` ends that phase only. Its loss is that of the objective
      of the phase: in a curriculum leave it to the last phase, or stop by the error.
    - `callback`: called with a `Progress` after each chunk; a true return value stops the run.
    - `checkpoint`: a file, written about every `checkpoint_every` seconds and at the end.
    - `resume`: continue from `checkpoint` if that file exists; the result is bit-identical to an uninterrupted run.
    - `progress`: show a progress bar on stderr.

    **Returns:** a `FitResult` (a list of them with `seeds`). A run that becomes non-finite ends with
    `RESULTS.nonfinite_loss` and its best finite iterate; Ctrl-C ends it with `RESULTS.interrupted`.

    **Cost:** that of the optimizer's steps; one host synchronisation a chunk.

    **Example:**

    ```python
    result = so.fit(model, objective, so.levenberg_marquardt(), data=batch, steps=500)
    result.model, result.history["loss"], result.status
    ```
    """
    phases = _phases(optimizer, steps)
    if resume and checkpoint is None:
        raise ValueError("resume=True needs checkpoint=FILE, the file to continue from.")
    options = dict(where=where, chunk=chunk, mesh=mesh, metric=metric, metric_every=metric_every)
    options |= dict(resample_every=resample_every, until=until or Stop())
    host = _Host(until or Stop(), callback, checkpoint, checkpoint_every, progress)
    if seeds is None:
        return host.fit(model, objective, phases, data, key, resume, options)
    if isinstance(model, eqx.Module) or not callable(model):
        raise TypeError("With seeds, model must be a function `key -> model`, so that every seed has its own start.")
    if checkpoint is not None:
        raise ValueError("checkpoint holds one run; call fit once a seed to use it.")
    keys = [jax.random.key(seed) for seed in (range(seeds) if isinstance(seeds, int) else seeds)]
    results = []
    for key in keys:
        sampling = jax.random.fold_in(key, 0)  # another stream than that of the model
        results.append(host.fit(model(key), objective, phases, data, sampling, False, options))
        if bool(results[-1].status == RESULTS.interrupted):
            break
    return results


class _Host:
    """The host side of one run: clock, callback, meter, checkpoints, and the state as of the last chunk."""

    def __init__(self, until: Stop, callback, checkpoint, checkpoint_every: float, progress: bool):
        self.until, self.callback, self.progress = until, callback, progress
        self.checkpoint, self.checkpoint_every = checkpoint, checkpoint_every

    def fit(self, model, objective, phases, data, key, resume: bool, options: dict) -> FitResult:
        params, static = eqx.partition(model, eqx.is_inexact_array)
        runs = [
            Run.build(
                objective if phase.objective is None else phase.objective,
                phase.optimizer,
                data if phase.data is None else phase.data,
                static=static,
                **options,
            )
            for phase in phases
        ]
        if options["metric"] is None and any(phase.until and phase.until.error > -jnp.inf for phase in phases):
            raise ValueError("Phase(until=Stop(error=...)) needs a metric: fit(metric=model -> error).")
        self.total, self.phases = sum(phase.steps for phase in phases), len(phases)
        self.record = Record()
        self.meter = _Meter(self.total, self.progress)
        self.index, self.begin, self.state = 0, 0, runs[0].init(params, key)
        if resume and Path(self.checkpoint).exists():
            self.index, self.begin, self.state = self._load(runs, params, key)
        self.last, self.loss, self.error = self.state, jnp.asarray(jnp.nan), jnp.asarray(jnp.nan)
        try:
            status = self._phase(runs[self.index], phases[self.index])
            while bool(status == RESULTS.phase_done) and self.index + 1 < len(phases):
                self.index += 1
                same = phases[self.index].optimizer is phases[self.index - 1].optimizer
                self.state = _enter(runs[self.index], runs[self.index - 1], self.state, same)
                self.begin = int(self.state.step)
                status = self._phase(runs[self.index], phases[self.index])
        except KeyboardInterrupt:
            status = RESULTS.interrupted
            self._save()
        finally:
            self.meter.close()
        last = self.last
        status = RESULTS.where(last.result == RESULTS.nonfinite_loss, RESULTS.nonfinite_loss, status)
        return FitResult(
            model=eqx.combine(runs[0].final_params(last), static),
            best_model=eqx.combine(last.best_params, static),
            best_loss=float(last.best_loss),
            loss=float(self.loss),
            error=float(self.error),
            status=status,
            steps=int(last.step),
            history=self.record.arrays(),
            optimizer_state=last.optimizer,
            compile_seconds=self.record.compile_seconds,
            train_seconds=self.record.seconds,
        )

    def _phase(self, run: Run, phase: Phase) -> RESULTS:
        """Chunks of one phase; returns how it ended."""
        phase_until, end = phase.until or Stop(), self.begin + phase.steps
        record, begin, saved = self.record, self.record.wall, time.perf_counter()
        started = _clock()
        _chunk(run, self.state, self.until, phase_until, self.state.step)  # no steps: it compiles
        record.compile_seconds += _clock() - started
        length = 1
        while True:
            wall, seconds, first = time.perf_counter(), _clock(), int(self.state.step)
            limit = jnp.int32(min(first + length, end))
            self.state, records, self.last, self.loss, self.error = _chunk(
                run, self.state, self.until, phase_until, limit
            )
            wall, seconds = time.perf_counter() - wall, _clock() - seconds
            step = int(self.state.step)
            record.add(records, step - first, self.index, wall, seconds)
            length = max(1, min(CHUNK, int(CHUNK_SECONDS * max(step - first, 1) / wall)))

            verdict: Any = RESULTS.successful
            if bool(self.state.result != RESULTS.successful):
                verdict = self.state.result
            elif step >= end:
                verdict = RESULTS.phase_done if self.index + 1 < self.phases else RESULTS.steps_done
            elif record.wall >= self.until.seconds:
                verdict = RESULTS.time_budget_spent
            elif record.wall - begin >= phase_until.seconds:
                verdict = RESULTS.phase_done
            now = Progress(
                step, self.total, self.index, float(self.loss), float(self.error), record.seconds, self.state.params
            )
            self.meter.show(now)
            going_on = bool((verdict == RESULTS.successful) | (verdict == RESULTS.phase_done))
            if self.callback is not None and self.callback(now) and going_on:
                verdict = RESULTS.stopped_by_callback
            over = bool(verdict != RESULTS.successful)
            if over or time.perf_counter() - saved >= self.checkpoint_every:
                self._save()
                saved = time.perf_counter()
            if over:
                return verdict

    def _save(self) -> None:
        if self.checkpoint is not None:
            header = self.record.header() | {"phase": self.index, "begin": self.begin}
            save_checkpoint(self.checkpoint, self.state, self.record.arrays(), header)

    def _load(self, runs: list[Run], params: PyTree, key: Array | None) -> tuple[int, int, TrainState]:
        header = read_header(self.checkpoint)
        index = header["phase"]
        if index >= len(runs):
            raise ValueError(f"{self.checkpoint} is in phase {index + 1}, but only {len(runs)} phases are given.")
        like = runs[index].init(params, key)
        state, history = load_checkpoint(self.checkpoint, like)
        self.record = Record.restore(header, history)
        until = self.until  # the run goes on if what stopped it no longer holds: a stricter target, more patience
        error = np.fmin.reduce(history["error"], initial=np.inf) if history else np.inf
        run = runs[index]
        holds = (state.best_loss <= until.loss) | (error <= until.error) | (state.stalled >= until.plateau)
        holds = holds | run.stopped(state, until)
        ends = (RESULTS.target_reached, RESULTS.plateau, RESULTS.too_noisy)
        if any(bool(state.result == end) for end in ends) and not bool(holds):
            running: Any = RESULTS.successful
            # a run that ends at a target keeps the point before the last step, of which the optimizer knows nothing
            optimizer = run.stepper.forget(state.optimizer, like.optimizer)
            state = state._replace(result=running, optimizer=optimizer)
        return index, header["begin"], state


def _phases(optimizer: Any, steps: int | None) -> list[Phase]:
    if isinstance(optimizer, list | tuple) and not hasattr(optimizer, "update"):
        phases = list(optimizer)
        if not phases or not all(isinstance(phase, Phase) for phase in phases):
            raise TypeError("optimizer must be an optimizer or a non-empty list of Phase(optimizer, steps).")
        if steps is not None:
            raise ValueError("steps belongs to each Phase when phases are given: Phase(optimizer, steps).")
    else:
        if steps is None:
            raise ValueError("steps is needed: fit(..., steps=500).")
        phases = [Phase(optimizer, steps)]
    for phase in phases:
        count("steps", phase.steps)
    return phases


def _enter(run: Run, last: Run, state: TrainState, same: bool) -> TrainState:
    """The start of the next phase; with the `same` optimizer its state goes on, but for losses of the old data."""
    fresh = run.init(state.params, state.key, state.step)
    optimizer = run.stepper.forget(state.optimizer, fresh.optimizer) if same else fresh.optimizer
    kept: dict[str, Any] = {}
    if run.objective is last.objective:  # losses of another one do not compare
        kept |= dict(best_params=state.best_params, best_loss=state.best_loss)
    if run.adaptive and run.data is last.data:
        kept |= dict(sampled=state.sampled)
    return fresh._replace(optimizer=optimizer, **kept)


@eqx.filter_jit
def _compiled_chunk(run: Run, state: TrainState, until: Stop, phase_until: Stop, limit: Array):
    state, records = run.scan(state, until, phase_until, limit, CHUNK)
    loss, last = run.finish(state)
    error = run.error(run.final_params(last), loss.dtype)
    return state, records, last, loss, error


def _chunk(*args):
    return jax.block_until_ready(_compiled_chunk(*args))


def _clock() -> float:
    """Process CPU time where the CPU does the work, so that a busy machine does not distort it; else wall time."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


class _Meter:
    """A tqdm bar on stderr, or nothing."""

    def __init__(self, total: int, show: bool):
        self.bar = None
        if show:
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit="step", desc="compiling", dynamic_ncols=True)

    def show(self, now: Progress) -> None:
        if self.bar is not None:
            if self.bar.desc:
                self.bar.reset()  # the clock starts after compilation
                self.bar.set_description_str(None, refresh=False)
            error = "" if math.isnan(now.error) else f", error {now.error:.2e}"
            self.bar.set_postfix_str(f"loss {now.loss:.2e}{error}", refresh=False)
            self.bar.update(now.step - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
