"""Every problem with its recommended recipe: `sciml-opt run NAME` to the end, seed after seed.

    python benchmarks/problems.py run                       # one seed of all problems, five of the ten of FIVE_SEEDS
    python benchmarks/problems.py run --names wave burgers  # these only
    python benchmarks/problems.py show                      # the table of what has been run, in Markdown

Resumable: every run is written to results/problems.json when it ends, and is not made again unless its recipe has
changed since. A run is a process of its own, with one thread; seconds are process CPU time, compilation apart. On a
machine with a GPU they are wall time: `run --seeds 1 --out results/problems_gpu.json`, shown in a column of its own.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sciml_opt import problems

RESULTS = Path(__file__).parent / "results" / "problems.json"
ON_GPU = RESULTS.with_name("problems_gpu.json")
FIVE_SEEDS = (
    "allen_cahn",
    "convection40",
    "heat1d",
    "helmholtz",
    "klein_gordon",
    "kovasznay",
    "poisson2d",
    "poisson_nd",
    "reaction",
    "wave",
)
ONE_THREAD = {
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def recipe(name: str) -> str:
    problem = problems.get(name)
    layers = "-".join(map(str, problem.layers))
    slabs = f", {problem.slabs} slabs" if problem.slabs > 1 else ""
    fresh = f", fresh points every {problem.resample_every} steps" if problem.sampler else ""
    return f"{problem.method}, {problem.steps} steps{slabs}{fresh}, layers {layers}"


def read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else {}


def run(name: str, seed: int, path: Path) -> None:
    key = f"{name}/{seed}"
    if read(path).get(key, {}).get("recipe") == recipe(name):
        return
    steps = str(problems.get(name).steps)
    command = [sys.executable, "-m", "sciml_opt.cli", "run", name, "--steps", steps, "--seed", str(seed), "--json"]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(f"{key} failed:\n{done.stderr[-2000:]}")
    row = {"recipe": recipe(name)} | json.loads(done.stdout)
    path.write_text(json.dumps(dict(sorted((read(path) | {key: row}).items())), indent=0) + "\n")
    print(f"{key}: error {row['rel_l2']:.2e}, {row['train_seconds']:.1f} s, {row['status']}", flush=True)


def show(path: Path) -> None:
    rows, on_gpu = read(path), read(ON_GPU)
    print("| problem | recipe | parameters, points | CPU s | GPU s | median (worst), seeds | reference | published |")
    print("|---|---|---|---|---|---|---|---|")
    met = known = 0
    for name in problems.names():
        runs = [row for key, row in rows.items() if key.split("/")[0] == name]
        if not runs:
            print(f"| {name} | {recipe(name)} | not run | | | | | |")
            continue
        errors = [np.inf if row["rel_l2"] is None else row["rel_l2"] for row in runs]
        seconds = np.median([row["train_seconds"] for row in runs])
        published, median = problems.get(name).published, float(np.median(errors))
        known += published is not None
        met += published is not None and median <= published.error
        bold = "**" if published is not None and median <= published.error else ""
        own = problems.get(name).reference_error
        own = f"{own:.0e}" if own else "rounding"
        gpu = on_gpu.get(f"{name}/0", {})
        gpu_seconds = f"{gpu['train_seconds']:.1f}" if gpu.get("recipe") == recipe(name) else ""
        figure = "-" if published is None else f"{published.error:.1e}, {published.method}"
        print(
            f"| {name} | {recipe(name)} | {runs[0]['n_params']}, {runs[0]['n_points']} "
            f"| {seconds:.0f} | {gpu_seconds} | {bold}{median:.1e}{bold} ({max(errors):.0e}), {len(errors)} "
            f"| {own} | {figure} |"
        )
    print(f"\nAt or below the published figure: {met} of {known}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--names", nargs="+", default=problems.names(), choices=problems.names(), metavar="NAME")
    parser.add_argument("--seeds", type=int, help="seeds of every problem; default: 5 of the ten, 1 of the others")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.what == "show":
        return show(options.out)
    for seed in range(options.seeds or 5):
        for name in options.names:
            if seed == 0 or options.seeds or name in FIVE_SEEDS:
                run(name, seed, options.out)


if __name__ == "__main__":
    main()
