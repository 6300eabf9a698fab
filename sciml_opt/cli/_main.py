"""The commands and their options."""

import json
import time
from pathlib import Path

import click
import jax

from .. import problems
from ._compare import compare, print_table
from ._methods import METHODS
from ._run import Job, print_summary, run, summarize
from ._types import Group, Layers, Name, Names, Picture, Positive

PROBLEM = Name("problem", problems.names)
COUNT = click.IntRange(min=1)
DTYPE = click.Choice(["float32", "float64"])
FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
BUDGET = "Stop after this much wall-clock time of training, compilation excluded."


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sciml_opt", message="%(prog)s %(version)s")
def cli():
    """Optimizers for scientific machine learning, tried on test problems.

    Start with: sciml-opt run poisson2d
    """


@cli.command("list")
@click.argument("what", type=click.Choice(["problems", "methods"]), required=False)
@click.option("--tag", metavar="TAG", help="Only problems with this tag, such as stiff, energy or inverse.")
def list_command(what, tag):
    """List the problems, with their tags, and the methods; or only one of them."""
    records = [problems.get(name) for name in problems.names()]
    tags = sorted({own for record in records for own in record.tags})
    if tag is not None and tag not in tags:
        raise click.BadParameter(f"{tag!r} is none of {', '.join(tags)}.", param_hint="--tag")
    groups = {
        "Problems": {
            record.name: f"{record.title} ({', '.join(record.tags)})"
            for record in records
            if tag is None or tag in record.tags
        },
        "Methods": {name: method.title for name, method in METHODS.items()},
    }
    for title, rows in groups.items():
        if what is None or what == title.lower():
            width = max(map(len, rows))
            click.echo(f"{title}:\n" + "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items()))


@cli.command("run")
@click.argument("problem", type=PROBLEM)
@click.option("--method", type=Name("method", lambda: METHODS), help="Default: the one recommended for the problem.")
@click.option("--steps", type=COUNT, help="Make this many steps. Default: stop at the problem's target error.")
@click.option("--time-budget", type=Positive(), metavar="SECONDS", help=BUDGET)
@click.option("--target-error", type=Positive(), metavar="ERROR", help="Stop at this relative L2 error.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--dtype", type=DTYPE, default="float64", show_default=True)
@click.option("--layers", type=Layers(), help="Widths of the hidden layers, such as 32,32.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; all else goes to stderr.")
@click.option("--plot", type=Picture(), help="Draw solution, error and history (.png, .pdf or .svg).")
@click.option("--save", type=FILE, help="Write checkpoints to this file.")
@click.option("--resume", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Continue from this file.")
def run_command(problem, method, steps, time_budget, target_error, seed, dtype, layers, as_json, plot, save, resume):
    """Train a model on PROBLEM and report its error.

    The run ends at the target error (--target-error, else the problem's unless --steps is given), after --steps
    steps (default: the problem's), or when --time-budget is spent. A resumed run counts its steps from the start.
    A problem that marches in time makes the steps, and spends its share of the time, in every slab, whatever the error.
    """
    _set_precision(dtype)
    record = problems.get(problem)
    job = Job(record, method or record.method, seed, dtype, layers or record.layers)
    target = target_error or (None if steps else record.target)
    result = run(job, steps or record.steps, target, time_budget, save or resume, resume)
    summary = summarize(job, result)
    if as_json:
        click.echo(json.dumps(summary))
    print_summary(job, summary, target, time.process_time(), err=as_json)
    if plot:
        from ._plot import plot_run

        _draw(plot, plot_run, job, result, target)
    _exit([summary["status"]])


@cli.command("compare")
@click.argument("problem", type=PROBLEM)
@click.option(
    "--methods",
    type=Names("method", lambda: METHODS),
    required=True,
    metavar="NAME,NAME,...",
    help="Methods to compare, separated by commas.",
)
@click.option("--seeds", type=COUNT, default=5, show_default=True, help="Runs of each method, from different starts.")
@click.option("--time-budget", type=Positive(), metavar="SECONDS", help=f"A run: {BUDGET.lower()}  [default: 5]")
@click.option("--steps", type=COUNT, help="Make this many steps a run. Default: as many as the time budget allows.")
@click.option("--dtype", type=DTYPE, default="float64", show_default=True)
@click.option("--layers", type=Layers(), help="Widths of the hidden layers, such as 32,32.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout; all else goes to stderr.")
@click.option("--plot", type=Picture(), help="Draw error versus time (.png, .pdf or .svg).")
def compare_command(problem, methods, seeds, time_budget, steps, dtype, layers, as_json, plot):
    """Compare methods on PROBLEM: error and time, median and worst of several seeds."""
    _set_precision(dtype)
    record = problems.get(problem)
    time_budget = time_budget or (None if steps else 5.0)
    rows, results = compare(record, methods, seeds, steps, time_budget, dtype, layers or record.layers)
    if as_json:
        setting = {"problem": problem, "dtype": dtype, "seeds": seeds, "steps": steps, "time_budget": time_budget}
        click.echo(json.dumps(setting | {"methods": rows}))
    print_table(record, rows, err=as_json)
    if plot:
        from ._plot import plot_comparison

        _draw(plot, plot_comparison, record, results)
    _exit([run["status"] for row in rows for run in row["runs"]])


def _set_precision(dtype: str) -> None:
    """Before any array is made: problems keep theirs in the default precision."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)


def _draw(path: Path, draw, *args) -> None:
    figure = draw(*args)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise click.ClickException(f"no picture: {error}") from None
    click.echo(f"picture: {path}", err=True)


def _exit(statuses: list[str]) -> None:
    if "interrupted" in statuses:
        raise SystemExit(130)
    if "nonfinite_loss" in statuses:
        raise SystemExit(1)
