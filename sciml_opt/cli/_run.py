"""`sciml-opt run`: one training run, its checkpoint and its summary."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import equinox as eqx
import jax
import numpy as np

from .._results import RESULTS
from .._tree import tree_size
from ..problems import Problem
from ..training import FitResult, Stop, fit, march
from ._methods import METHODS

LEVELS = tuple(f"1e-{k}" for k in range(1, 13))


@dataclass(frozen=True)
class Job:
    """What is run; a checkpoint belongs to one job."""

    problem: Problem
    method: str
    seed: int
    dtype: str
    layers: tuple[int, ...]

    def identity(self) -> dict[str, Any]:
        return {
            "problem": self.problem.name,
            "method": self.method,
            "seed": self.seed,
            "dtype": self.dtype,
            "layers": ",".join(map(str, self.layers)),
        }


def run(
    job: Job, steps: int, target: float | None, seconds: float | None, save: Path | None, resume: Path | None
) -> FitResult:
    """Train, with a progress bar on stderr; errors that the user can mend end the command with one line."""
    method = METHODS[job.method]
    model = eqx.filter_jit(job.problem.model)(jax.random.key(job.seed), job.layers, job.dtype)
    if resume is not None:
        _check_identity(resume, job)
    optimizer = method.make(job.problem.objective)
    options: dict[str, Any] = dict(steps=steps, metric_every=method.metric_every, progress=True)
    if job.problem.slabs > 1:
        if save is not None:
            raise click.ClickException(f"{job.problem.name} marches in time, of which there are no checkpoints.")
        return march_problem(job.problem, model, optimizer, job.dtype, seconds, **options)
    try:
        if save is not None:
            _prepare(save, resume, job)
        return fit(
            model,
            job.problem.objective,
            optimizer,
            job.problem.sampler or job.problem.batch(job.dtype),
            key=jax.random.fold_in(jax.random.key(job.seed), 0),
            resample_every=job.problem.resample_every,
            metric=job.problem.error,
            until=Stop(error=target, seconds=seconds),
            checkpoint=save,
            resume=resume is not None,
            **options,
        )
    except (OSError, ValueError) as error:
        if save is None:
            raise
        raise click.ClickException(str(error)) from None


def march_problem(
    problem: Problem, model: Any, optimizer: Any, dtype: str, seconds: float | None, **options: Any
) -> FitResult:
    """Slab after slab of a problem, `steps` in each; the time is shared equally."""
    begin, end = problem.domain["t"]
    length = (end - begin) / problem.slabs

    def restart(model, batch):
        return problem.restart(model, batch, length)  # pyright: ignore[reportOptionalCall]

    return march(
        model,
        problem.objective,
        optimizer,
        problem.batch(dtype),
        restart,
        slabs=problem.slabs,
        length=length,
        axis=list(problem.domain).index("t"),
        metric=problem.error,
        until=Stop(seconds=seconds and seconds / problem.slabs),
        **options,
    )


def summarize(job: Job, result: FitResult) -> dict[str, Any]:
    """The JSON object of a run; the error is that of the returned model."""
    params = eqx.filter(result.model, eqx.is_inexact_array)
    return {
        "problem": job.problem.name,
        "method": job.method,
        "seed": job.seed,
        "dtype": job.dtype,
        "n_params": tree_size(params),
        "n_points": sum(len(jax.tree.leaves(points)[0]) for points in job.problem.batch().values()),
        "steps": result.steps,
        "status": status_name(result.status),
        "loss": finite(result.loss),
        "rel_l2": finite(result.error),
        "reference_error": job.problem.reference_error,
        "published": job.problem.published and job.problem.published._asdict(),
        "compile_seconds": round(result.compile_seconds, 4),
        "train_seconds": round(result.train_seconds, 4),
        "seconds_to": seconds_to(result.history),
    }


def print_summary(job: Job, summary: dict[str, Any], target: float | None, cpu_seconds: float, err: bool) -> None:
    lines = {
        "problem": f"{job.problem.title} ({summary['n_points']} points)",
        "model": f"layers {'-'.join(map(str, job.layers))}, {summary['n_params']} parameters, {job.dtype}, "
        f"seed {job.seed}",
        "method": f"{job.method}, {summary['steps']} steps",
        "status": f"{summary['status']}{_verdict(summary, target)}",
        "rel. L2 error": f"{number(summary['rel_l2'])} ({comparison(job.problem)})",
        "loss": number(summary["loss"]),
        "seconds": f"{summary['train_seconds']:.2f} training, {summary['compile_seconds']:.2f} compiling; "
        f"{cpu_seconds:.2f} CPU seconds of the whole command",
    }
    click.echo("\n".join(f"{name:14} {text}" for name, text in lines.items()), err=err)


def comparison(problem: Problem) -> str:
    """What an error of a problem is to be read against."""
    own = f"{problem.reference_error:.0e}" if problem.reference_error else "rounding"
    text = f"the reference's own: {own}"
    if problem.published is not None:
        text += f"; published: {problem.published.error:.1e}, {problem.published.method}"
    return text


def _verdict(summary: dict[str, Any], target: float | None) -> str:
    if summary["status"] == "nonfinite_loss":
        return ": the run diverged; figures are those of its best iterate"
    if target is None:
        return ""
    reached = summary["rel_l2"] is not None and summary["rel_l2"] <= target
    return f" (error <= {target:.0e})" if reached else f": the target error {target:.0e} was NOT reached"


def status_name(status: RESULTS) -> str:
    """The short name of a result, such as `"target_reached"`."""
    return next(name for name, item in RESULTS._name_to_item.items() if int(item._value) == int(status._value))


def seconds_to(history: dict[str, np.ndarray]) -> dict[str, float | None]:
    """Training seconds until the error first was at most 1e-1, 1e-2, ..., 1e-12; `None` where it never was."""
    error, seconds = history.get("error", np.zeros(0)), history.get("seconds", np.zeros(0))
    below = {level: np.flatnonzero(error <= float(level)) for level in LEVELS}
    return {level: round(float(seconds[steps[0]]), 4) if steps.size else None for level, steps in below.items()}


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def number(value: float | None, form: str = ".2e") -> str:
    return "-" if value is None else format(value, form)


def _identity_file(checkpoint: Path) -> Path:
    """It stands beside the checkpoint, which holds arrays of the run only."""
    return checkpoint.with_name(checkpoint.name + ".json")


def _prepare(save: Path, resume: Path | None, job: Job) -> None:
    save.parent.mkdir(parents=True, exist_ok=True)
    if resume is None:
        save.unlink(missing_ok=True)  # an old checkpoint and the new identity would not fit together
        _identity_file(save).write_text(json.dumps(job.identity()) + "\n")
    elif save.resolve() != resume.resolve():
        for source, target in ((resume, save), (_identity_file(resume), _identity_file(save))):
            if source.exists():
                shutil.copyfile(source, target)


def _check_identity(checkpoint: Path, job: Job) -> None:
    file = _identity_file(checkpoint)
    if not file.exists():
        return  # the shapes are still compared
    try:
        saved = json.loads(file.read_text())
    except ValueError:
        raise click.ClickException(f"{file} is not the record of a checkpoint.") from None
    odd = [
        f"{name} {saved.get(name)}, not {value}" for name, value in job.identity().items() if saved.get(name) != value
    ]
    if odd:
        raise click.ClickException(f"{checkpoint} is of another run: {'; '.join(odd)}.")
