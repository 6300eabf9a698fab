"""Pictures of a run and of a comparison."""

from functools import partial
from typing import Any

import jax
import numpy as np

from ..problems import Problem
from ..training import FitResult
from ._run import Job

STYLE: dict[Any, Any] = {
    "axes.formatter.limits": (-2, 4),
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
SIDE = 101  # grid points a coordinate


def plot_run(job: Job, result: FitResult, target: float | None) -> Any:
    """Solution, pointwise error, loss and error history: a matplotlib figure."""
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(9, 7))
        _draw_solution(figure, axes[0], job.problem, result.model, job.dtype)
        _draw_loss(axes[1, 0], result.history)
        _draw_error(axes[1, 1], result.history, target)
        figure.suptitle(f"{job.problem.title}: {job.method}, seed {job.seed}")
    plt.close(figure)
    return figure


def plot_comparison(problem: Problem, results: dict[str, list[FitResult]]) -> Any:
    """Error over training time; a thin line a seed, a thick one for the median seed of each method."""
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 5))
        for i, (name, runs) in enumerate(results.items()):
            colour = COLOURS[i % len(COLOURS)]
            curves = sorted((_measured(run.history) for run in runs), key=_last_error)
            for seconds, error in curves:
                axes.plot(seconds, error, color=colour, alpha=0.3, linewidth=0.8)
            axes.plot(*curves[(len(curves) - 1) // 2], color=colour, linewidth=2.2, label=name)
        axes.set(xlabel="training time (s)", ylabel="relative $L^2$ error", xscale="log", yscale="log")
        axes.set_title(f"{problem.title}: median of {len(next(iter(results.values())))} seeds")
        axes.legend()
    plt.close(figure)
    return figure


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")  # no window
    import matplotlib.pyplot as plt

    return plt


def _draw_solution(figure, axes, problem: Problem, model, dtype: str) -> None:
    names, ranges = list(problem.domain), np.array(list(problem.domain.values()))
    points = _plane(ranges)
    u = np.asarray(jax.jit(jax.vmap(partial(problem.prediction, model)))(jax.numpy.asarray(points, dtype)), np.float64)
    # of a system the first component, and nothing where the reference is not defined
    reference = problem.reference(points).reshape(len(points), -1)[:, 0]
    u = np.where(np.isnan(reference), np.nan, u.reshape(len(points), -1)[:, 0])
    error = np.abs(u - reference)
    name = problem.outputs[0]
    titles = (f"solution ${name}$", f"pointwise error $|{name} - {name}^*|$")
    if len(names) == 1:
        axes[0].plot(points[:, 0], reference, color="0.6", linewidth=4, label="reference")
        axes[0].plot(points[:, 0], u, color=COLOURS[0], label="network")
        axes[0].legend()
        axes[1].plot(points[:, 0], error, color=COLOURS[1])
        axes[1].set_yscale("log")
    else:
        for ax, values, colours in zip(axes, (u, error), ("viridis", "magma"), strict=True):
            image = ax.imshow(
                values.reshape(SIDE, SIDE).T,
                origin="lower",
                extent=ranges[:2].ravel(),
                aspect="auto",
                interpolation="bilinear",
                cmap=colours,
                vmin=0 if values is error else None,
            )
            ax.grid(False)
            figure.colorbar(image, ax=ax)
            ax.set_ylabel(names[1])
    if len(names) > 2:
        titles = tuple(f"{title}, central slice" for title in titles)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_xlabel(names[0])
        ax.set_title(title)
        ax.locator_params(axis="x", nbins=5)


def _plane(ranges: np.ndarray) -> np.ndarray:
    """A grid in the first two coordinates, the others at their centre."""
    axes = [np.linspace(low, high, SIDE if len(ranges) > 1 else 10 * SIDE) for low, high in ranges[:2]]
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    rest = np.broadcast_to(ranges[2:].mean(axis=1), (len(grid), max(len(ranges) - 2, 0)))
    return np.concatenate([grid, rest], axis=1)


def _draw_loss(axes, history) -> None:
    loss = history.get("loss", np.zeros(0))
    lowest = np.min(loss[np.isfinite(loss)], initial=np.inf)
    terms = {key.removeprefix("loss/"): values for key, values in history.items() if key.startswith("loss/")}
    steps = np.arange(len(loss))
    if lowest > 0:
        axes.plot(steps, loss, color="black", label="loss")
        if len(terms) > 1:
            for colour, (name, values) in zip(COLOURS, terms.items(), strict=False):
                known = np.isfinite(values)  # L-BFGS and its kind measure them now and then
                axes.plot(steps[known], values[known], color=colour, linewidth=0.9, label=name)
            axes.legend()
        axes.set_ylabel("loss")
    else:  # an energy may be negative
        above = loss - lowest
        axes.plot(steps, np.where(above > 0, above, np.nan), color="black")
        axes.set_ylabel("loss above its lowest value")
    axes.set(xlabel="step", yscale="log", title="loss history")


def _draw_error(axes, history, target: float | None) -> None:
    axes.plot(*_measured(history), color=COLOURS[1])
    if target is not None:
        axes.axhline(target, color="0.4", linewidth=1, linestyle="--", label=f"target {target:.0e}")
        axes.legend()
    axes.set(xlabel="training time (s)", ylabel="relative $L^2$ error", yscale="log", title="error history")


def _measured(history) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and errors, where the error was measured."""
    if not history:
        return np.zeros(0), np.zeros(0)
    finite = np.isfinite(history["error"])
    return history["seconds"][finite], history["error"][finite]


def _last_error(curve: tuple[np.ndarray, np.ndarray]) -> float:
    return float(curve[1][-1]) if curve[1].size else np.inf
