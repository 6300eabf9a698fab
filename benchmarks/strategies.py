"""Adaptive points and weights: the same method with and without a strategy, seed by seed.

    python benchmarks/strategies.py run                    # all pairs, five seeds
    python benchmarks/strategies.py run --names rad/burgers/adam
    python benchmarks/strategies.py show                   # the table of what has been run, in Markdown

Both sides of a pair start from the same parameters and get the same process CPU time of training, in which the cost of
the strategy counts. Without RAD the points are as many, uniform and fixed; causal weights are tried on 1000 uniform
points. Resumable: every run is written to results/strategies.json when it ends, and is not made again.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import optax

import sciml_opt as so

RESULTS = Path(__file__).parent / "results" / "strategies.json"
SEEDS = 5
METHODS: dict[str, Callable[[], Any]] = {
    "adam": lambda: optax.adam(2e-3),
    "ss_broyden": so.ss_broyden,
    "levenberg_marquardt": so.levenberg_marquardt,
}
POINTS = {"burgers": 2000, "allen_cahn": 500}  # of the equation, with RAD and without
POOL = 10_000


class Side(NamedTuple):
    """What `fit` needs for one side of a pair."""

    objective: so.Objective
    optimizer: Any
    data: Any
    resample_every: int = 1


def allen_cahn(key: Any) -> so.models.HardConstraint:
    """The usual network: periodic features, and the initial value; that of the problem knows the reaction besides."""
    features = so.models.PeriodicEmbedding(2, {0: 2.0}, 2, {1: (0.0, 1.0)})
    network = so.models.Chain(features, so.models.MLP(5, layers=(20, 20, 20), key=key))
    return so.models.HardConstraint(network, lambda x: x[1], lambda x: x[0] ** 2 * jax.numpy.cos(jax.numpy.pi * x[0]))


def uniform(problem: so.problems.Problem, count: int, seed: int) -> np.ndarray:
    lower, upper = np.array(list(problem.domain.values())).T
    return lower + (upper - lower) * so.sampling.unit_points(len(lower), count, seed=seed)


def rad(problem: so.problems.Problem, method: str) -> tuple[Side, Side]:
    """Points by the residual, renewed every so many steps, against as many uniform ones."""
    others = {name: entry for name, entry in problem.batch().items() if name != "interior"}
    every = {"adam": 250, "ss_broyden": 100, "levenberg_marquardt": 10}[method]
    sampler = so.sampling.RAD(problem.objective, "interior", uniform(problem, POOL, 1), POINTS[problem.name], others)
    fixed = others | {"interior": uniform(problem, POINTS[problem.name], 0)}
    make = METHODS[method]
    return Side(problem.objective, make(), fixed), Side(problem.objective, make(), sampler, every)


def causal(problem: so.problems.Problem, method: str) -> tuple[Side, Side]:
    batch, make = {"interior": uniform(problem, 1000, 0)}, METHODS[method]
    time = list(problem.domain).index("t")
    with_it = so.causal(make(), "interior", lambda x: x[time], problem.domain["t"], tolerance=10.0)
    return Side(problem.objective, make(), batch), Side(problem.objective, with_it, batch)


def grad_norm(problem: so.problems.Problem, method: str) -> tuple[Side, Side]:
    """A boundary of weight 1e-4, where the problem has 4."""
    terms = problem.objective.terms
    badly = so.Objective(interior=terms["interior"], boundary=so.Term(terms["boundary"].inner, weight=1e-4))
    make = METHODS[method]
    return Side(badly, make(), problem.batch()), Side(badly, so.grad_norm(make(), badly), problem.batch())


PAIRS = {
    "rad/burgers/adam": (rad, 30.0),
    "rad/burgers/ss_broyden": (rad, 30.0),
    "rad/burgers/levenberg_marquardt": (rad, 30.0),
    "rad/allen_cahn/adam": (rad, 20.0),
    "rad/allen_cahn/ss_broyden": (rad, 20.0),
    "rad/allen_cahn/levenberg_marquardt": (rad, 20.0),
    "causal/allen_cahn/adam": (causal, 30.0),
    "causal/allen_cahn/levenberg_marquardt": (causal, 20.0),
    "causal/allen_cahn/ss_broyden": (causal, 20.0),
    "grad_norm/poisson2d/adam": (grad_norm, 10.0),
    "grad_norm/poisson2d/levenberg_marquardt": (grad_norm, 10.0),
}


def read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else {}


def run(name: str, path: Path, seeds: int) -> None:
    """Both sides, seed by seed, each compiled once."""
    strategy, seconds = PAIRS[name]
    _, problem_name, method = name.split("/")
    problem = so.problems.get(problem_name)
    sides = dict(zip(("without", "with"), strategy(problem, method), strict=True))
    start = eqx.filter_jit(allen_cahn if problem_name == "allen_cahn" else problem.model)
    for seed in range(seeds):
        for side_name, side in sides.items():
            key = f"{name}/{side_name}/{seed}"
            if key in read(path):
                continue
            result = so.fit(
                start(jax.random.key(seed)),
                side.objective,
                side.optimizer,
                side.data,
                steps=10_000_000,
                key=jax.random.fold_in(jax.random.key(seed), 0),
                resample_every=side.resample_every,
                metric=problem.error,
                metric_every=100 if method == "adam" else 10,
                callback=lambda now: now.seconds >= seconds,
            )
            row = {"error": result.error, "steps": result.steps, "seconds": round(result.train_seconds, 1)}
            path.write_text(json.dumps(dict(sorted((read(path) | {key: row}).items())), indent=0) + "\n")
            print(f"{key}: {row}", flush=True)


def show(path: Path) -> None:
    rows = read(path)
    print(
        "| strategy, problem, method | CPU s | without: median (worst) | with: median (worst) | median ratio | <= 0.7 |"
    )
    print("|---|---|---|---|---|---|")
    for name, (_, seconds) in PAIRS.items():
        pairs = [
            (rows[f"{name}/without/{seed}"]["error"], rows[f"{name}/with/{seed}"]["error"])
            for seed in range(100)
            if f"{name}/with/{seed}" in rows
        ]
        if not pairs:
            continue
        without, with_it = np.array(pairs).T
        ratios = with_it / without
        cells = [f"{np.median(side):.1e} ({side.max():.0e})" for side in (without, with_it)]
        held = f"{(ratios <= 0.7).sum()} of {len(ratios)}"
        print(f"| {name.replace('/', ', ')} | {seconds:.0f} | {' | '.join(cells)} | {np.median(ratios):.2g} | {held} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("--names", nargs="+", default=list(PAIRS), choices=list(PAIRS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.what == "show":
        return show(options.out)
    jax.config.update("jax_enable_x64", True)
    for name in options.names:
        run(name, options.out, options.seeds)


if __name__ == "__main__":
    main()
