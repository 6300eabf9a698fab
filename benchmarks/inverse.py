"""Inverse problems: the viscosity of Burgers' equation, its error bar, and two conductivity fields.

python benchmarks/inverse.py seeds | coverage | exact | fields | show        (one to four minutes each, one core)

Resumable: a run that stands in results/inverse.json is not repeated. Seconds are process CPU seconds, compiling apart.

seeds: burgers_inverse, 1 % noise, five seeds, each with its own network and its own draw of the noise, from nu = 0.02.
coverage: 20 draws of the noise, each fitted from the network of the noise-free measurements; how many of the 95 % error
bars of `so.laplace` hold the true viscosity, with the noise given and with the noise estimated.
exact: noise-free measurements of weight 10, both coefficients unknown, from c = 0.5, nu = 0.02; five seeds.
fields: poisson_inverse and heat_inverse over draws of the noise, each with its own network; the error over (u, a), each
alone, and the error that the posterior expects, sqrt(mean std^2), relative like the error.
"""

import argparse
import dataclasses
import json
import os
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np

import sciml_opt as so
from sciml_opt import problems
from sciml_opt.problems._burgers_inverse import KNOWN

jax.config.update("jax_enable_x64", True)

SEEDS, DRAWS, FIELD_DRAWS = 5, 20, 5
STEPS, WARM_STEPS, EXACT_STEPS = 300, 60, 900
NOISE = 0.01
FILE = Path(__file__).parent / "results" / "inverse.json"


class Runs:
    """The file of results: what stands there is not computed again."""

    def __init__(self):
        self.results = json.loads(FILE.read_text()) if FILE.exists() else {}

    def missing(self, part, numbers):
        return [number for number in numbers if str(number) not in self.results.get(part, {})]

    def put(self, part, number, entry):
        self.results.setdefault(part, {})[str(number)] = entry
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(self.results, indent=1, sort_keys=True) + "\n")
        print(part, number, entry, flush=True)


def compiled_training(problem, steps, damping=1e-2, plateau=30):
    """`(model, batch) -> model, error, steps, CPU seconds`, compiled once for all draws."""

    @jax.jit
    def run(model, batch):
        tx, until = so.levenberg_marquardt(damping), so.Stop(plateau=plateau)
        result = so.train(model, problem.objective, tx, batch, steps=steps, until=until)
        return result.params, problem.error(result.params), result.state.step

    def timed(model, batch):
        start = time.process_time()
        model, error, made = jax.block_until_ready(program(model, batch))
        return model, float(error), int(made), round(time.process_time() - start, 2)

    program = run.lower(problem.model(jax.random.key(0)), problem.batch()).compile()
    return timed


def burgers(noise_seed=0, **options):
    return problems.get("burgers_inverse", noise_seed=noise_seed, **options)


def viscosity_bars(problem, model, batch):
    """Relative error of nu, its relative error bar with the noise given and estimated, and that estimate."""
    loss = problem.objective.bind(batch)
    entry = {"nu_error": float(model.unknown["viscosity"].value) / KNOWN["viscosity"] - 1}
    sigma = NOISE * float(np.std(problem.reference(np.asarray(problem.test_points()))))
    for name, noise in (("bar", sigma), ("bar_estimated", None)):
        posterior = so.laplace(loss, model, {"data": noise})
        entry[name] = 1.96 * float(posterior.std(lambda m: jnp.log(m.unknown["viscosity"].value)))
        entry["noise_estimated"] = float(posterior.noise["data"]) / sigma
    return entry


def seeds(runs):
    todo = runs.missing("seeds", range(SEEDS))
    if not todo:
        return
    train = compiled_training(burgers(), STEPS)
    for seed in todo:
        problem = burgers(seed)
        model, error, made, seconds = train(problem.model(jax.random.key(seed)), problem.batch())
        bars = viscosity_bars(problem, model, problem.batch())
        runs.put("seeds", seed, {"error": error, "steps": made, "seconds": seconds, **bars})


def coverage(runs):
    todo = runs.missing("coverage", range(DRAWS))
    if not todo:
        return
    clean = burgers(noise=0.0)
    start = compiled_training(clean, STEPS)(clean.model(jax.random.key(0)), clean.batch())[0]
    train = compiled_training(clean, WARM_STEPS, damping=1e-6, plateau=15)
    for draw in todo:
        problem = burgers(100 + draw)
        model, error, made, seconds = train(start, problem.batch())
        bars = viscosity_bars(problem, model, problem.batch())
        runs.put("coverage", draw, {"error": error, "steps": made, "seconds": seconds, **bars})


def exact(runs):
    todo = runs.missing("exact", range(SEEDS))
    if not todo:
        return
    problem = burgers(noise=0.0, unknown="both")
    terms = problem.objective.terms
    trusted = so.Objective(interior=terms["interior"], data=so.Term(terms["data"].inner, weight=10.0))
    problem = dataclasses.replace(problem, objective=trusted)
    train = compiled_training(problem, EXACT_STEPS, plateau=60)
    for seed in todo:
        model, error, made, seconds = train(problem.model(jax.random.key(seed)), problem.batch())
        errors = {name: float(found.value) / KNOWN[name] - 1 for name, found in model.unknown.items()}
        runs.put("exact", seed, {"error": error, "steps": made, "seconds": seconds, **errors})


def fields(runs):
    for name in ("poisson_inverse", "heat_inverse"):
        todo = runs.missing(name, range(FIELD_DRAWS))
        if not todo:
            continue
        clean = problems.get(name)
        points = clean.test_points()
        values = clean.reference(np.asarray(points))
        train = compiled_training(clean, clean.steps)
        for draw in todo:
            problem = problems.get(name, noise_seed=draw)
            model, error, made, seconds = train(problem.model(jax.random.key(draw)), problem.batch())
            predicted = jax.jit(jax.vmap(partial(problem.prediction, model)))(points) - values
            posterior = so.laplace(problem.objective.bind(problem.batch()), model, {"data": 0.1})
            some = points[:: len(points) // 200]
            std = posterior.std(lambda m, some=some, problem=problem: jax.vmap(partial(problem.prediction, m))(some))
            expected = np.sqrt(np.mean(np.sum(std**2, 1)) / np.mean(np.sum(values**2, 1)))
            alone = np.linalg.norm(predicted, axis=0) / np.linalg.norm(values, axis=0)
            entry = {"error": error, "u": float(alone[0]), "a": float(alone[1]), "expected": float(expected)}
            runs.put(name, draw, {**entry, "steps": made, "seconds": seconds})


def show(runs):
    found = runs.results
    for part in ("seeds", "coverage"):
        if part in found:
            entries = list(found[part].values())
            nu, seconds = np.array([[e["nu_error"], e["seconds"]] for e in entries]).T
            print(f"{part}: {len(nu)} runs, |error of nu| median {np.median(abs(nu)):.1e}, worst {abs(nu).max():.1e};")
            print(f"  mean {nu.mean():.1e}, scatter {nu.std():.1e}, {np.median(seconds):.0f} s each;")
            for bar in ("bar", "bar_estimated"):
                widths = np.array([e[bar] for e in entries])
                inside = np.abs(np.log1p(nu)) <= widths
                print(f"  {bar}: +-{np.median(widths):.1e}, holds the truth in {inside.sum()} of {len(nu)}")
    for name, entry in found.get("exact", {}).items():
        errors = ", ".join(f"{k} {entry[k]:.1e}" for k in KNOWN)
        print(f"exact, seed {name}: {errors}, u {entry['error']:.1e}, {entry['seconds']:.0f} s")
    for name in ("poisson_inverse", "heat_inverse"):
        if name in found:
            keys = ("error", "u", "a", "expected", "seconds")
            table = np.array([[e[k] for k in keys] for e in found[name].values()])
            middle, worst = np.median(table, 0), table.max(0)
            texts = [f"{key} {m:.2g} ({w:.2g})" for key, m, w in zip(keys, middle, worst, strict=True)]
            print(f"{name}, median (worst): {', '.join(texts)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {part.__name__: part for part in (seeds, coverage, exact, fields, show)}
    parser.add_argument("part", choices=parts)
    parts[parser.parse_args().part](Runs())
