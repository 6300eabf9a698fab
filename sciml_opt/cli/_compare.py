"""`sciml-opt compare`: several methods, several seeds, one table."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import click
import equinox as eqx
import jax
import numpy as np

from .._results import RESULTS
from ..problems import Problem
from ..training import FitResult, Progress, Stop, fit
from ._methods import METHODS
from ._run import LEVELS, Job, comparison, finite, march_problem, number, summarize

COLUMNS = LEVELS[1:6]
UNLIMITED = 10_000_000  # steps, where only the time budget ends a run


def compare(
    problem: Problem,
    methods: Sequence[str],
    seeds: int,
    steps: int | None,
    seconds: float | None,
    dtype: str,
    layers: tuple[int, ...],
) -> tuple[list[dict[str, Any]], dict[str, list[FitResult]]]:
    """One row a method, and all results. A method compiles once for its seeds."""
    start = eqx.filter_jit(problem.model)
    rows, results = [], {}
    with _Bar(len(methods) * seeds * problem.slabs) as bar:
        for name in methods:
            bar.enter(name)
            optimizer = METHODS[name].make(problem.objective)
            options: dict[str, Any] = dict(
                steps=steps or UNLIMITED, metric_every=METHODS[name].metric_every, callback=bar.show
            )
            if problem.slabs > 1:
                models = (start(jax.random.key(seed), layers, dtype) for seed in range(seeds))
                runs = []
                for model in models:
                    runs.append(march_problem(problem, model, optimizer, dtype, seconds, **options))
                    if bool(runs[-1].status == RESULTS.interrupted):
                        break
            else:
                runs = fit(
                    lambda key: start(key, layers, dtype),
                    problem.objective,
                    optimizer,
                    problem.sampler or problem.batch(dtype),
                    seeds=seeds,
                    resample_every=problem.resample_every,
                    metric=problem.error,
                    until=Stop(seconds=seconds),
                    **options,
                )
            results[name] = runs
            summaries = [summarize(Job(problem, name, seed, dtype, layers), run) for seed, run in enumerate(runs)]
            rows.append(_row(name, summaries))
            if any(summary["status"] == "interrupted" for summary in summaries):
                break
    return rows, results


def _row(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    errors = [_or_infinity(run["rel_l2"]) for run in runs]
    return {
        "method": name,
        "median_rel_l2": finite(float(np.median(errors))),
        "worst_rel_l2": finite(max(errors)),
        "median_seconds_to": {level: _median([run["seconds_to"][level] for run in runs]) for level in LEVELS},
        "median_steps": float(np.median([run["steps"] for run in runs])),
        "status": dict(Counter(run["status"] for run in runs)),
        "compile_seconds": round(sum(run["compile_seconds"] for run in runs), 4),
        "runs": runs,
    }


def print_table(problem: Problem, rows: list[dict[str, Any]], err: bool) -> None:
    head = ["method", "median", "worst", *COLUMNS, "steps", "status"]
    table = [head]
    for row in rows:
        seconds = [number(row["median_seconds_to"][level], ".2f") for level in COLUMNS]
        errors = [number(row["median_rel_l2"], ".1e"), number(row["worst_rel_l2"], ".1e")]
        status = ", ".join(name if len(row["status"]) == 1 else f"{n} {name}" for name, n in row["status"].items())
        table.append([row["method"], *errors, *seconds, f"{row['median_steps']:.0f}", status])
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    left = (0, len(head) - 1)
    click.echo(
        f"{problem.title}, {len(rows[0]['runs'])} seeds: relative L2 error (median, worst; {comparison(problem)}), "
        "median training seconds until it was 1e-2 ... 1e-6",
        err=err,
    )
    for line in table:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip(), err=err)


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value


def _median(values: list[float | None]) -> float | None:
    """`None` unless more than half of the runs got there."""
    return finite(float(np.median([_or_infinity(value) for value in values])))


class _Bar:
    """A progress bar over runs (their slabs, if they march); `show` is a callback of `fit`."""

    def __init__(self, runs: int):
        from tqdm import tqdm

        self.bar = tqdm(total=runs, unit="run", dynamic_ncols=True)
        self.done, self.step, self.name = 0, math.inf, ""

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error) -> None:
        self.bar.update(self.done - self.bar.n)
        self.bar.close()

    def enter(self, name: str) -> None:
        self.name = name
        self.bar.set_postfix_str(f"{name}: compiling")

    def show(self, now: Progress) -> None:
        if now.step <= self.step:  # the first chunk of a run: the one before is done
            self.bar.update(self.done - self.bar.n)
            self.done += 1
        self.step = now.step
        self.bar.set_postfix_str(f"{self.name}: step {now.step}, error {now.error:.1e}")
