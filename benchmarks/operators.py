"""Operator learning: a DeepONet on the antiderivative, a physics-informed one, and an FNO on Burgers' equation.

    python benchmarks/operators.py antiderivative   # 60 s a run, five seeds
    python benchmarks/operators.py physics          # 10 s a run, three seeds: no solution is given, only the equation
    python benchmarks/operators.py fno              # 10 s a run, three seeds
    python benchmarks/operators.py show             # the tables of what has been run, in Markdown

Options: `--methods NAME ...`, `--seeds K`, `--seconds S`. Resumable: every run is written to results/operators.json
when it ends, and is not made again. Every run gets the same process CPU time on one core (compilation apart, measuring
the error included); errors are the mean relative L2 error of the last iterate, on functions that no method has seen. A
seed draws the data and the network.

Adam's learning rate decays by a cosine to zero at the end of the budget (the number of steps is measured before the
run); its rates were tried on seed 0. `lbfgs` is ours, `scipy lbfgs` SciPy's, with the same 20 pairs.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree

import sciml_opt as so
from sciml_opt.models import FNO, MLP, DeepONet
from sciml_opt.problems import operators

jax.config.update("jax_enable_x64", True)

RESULTS = Path(__file__).parent / "results" / "operators.json"


class Errors(eqx.Module):
    """The mean relative L2 errors of a model: arrays, so that another seed is the same program."""

    data: dict[str, tuple[jax.Array, ...]]
    predict: Callable[..., jax.Array] = eqx.field(static=True)

    def __call__(self, model, part: str = "test"):
        *inputs, outputs = self.data[part]
        difference = self.predict(model, *inputs) - outputs
        return jnp.mean(jnp.linalg.norm(difference, axis=1) / jnp.linalg.norm(outputs, axis=1))


class Case(NamedTuple):
    """A model, its objective and batch, its errors, and the error of the solver that made the data."""

    model: Any
    objective: so.Objective
    batch: dict[str, Any]
    errors: Errors
    solver_error: float


class Trunk(eqx.Module):
    """The trunk of the DeepONet paper: its last layer has the activation too. With `envelope`, u = 0 where it is."""

    network: MLP
    envelope: Callable[[jax.Array], jax.Array] | None = eqx.field(static=True, default=None)

    def __call__(self, y):
        t = jnp.tanh(self.network(y))
        return t if self.envelope is None else self.envelope(y) * t


def deeponet(key, coordinates: int, envelope=None) -> DeepONet:
    """The branch starts almost linear, at a tenth of Glorot's first weights: both operators are, or nearly.

    From Glorot's, L-BFGS fits the training functions as well (5e-4), but stops at 1.9e-3 on unseen ones.
    """
    keys = jax.random.split(key)
    branch = MLP(100, 40, (40,), key=keys[0])
    branch = eqx.tree_at(lambda network: network.weights[0], branch, 0.1 * branch.weights[0])
    return DeepONet(branch, Trunk(MLP(coordinates, 40, (40,), key=keys[1]), envelope), bias=envelope is None)


def pairs(data: operators.OperatorData) -> Errors:
    return Errors({part: tuple(data.pairs(part)) for part in ("training", "test")}, DeepONet.pairs)


def antiderivative(seed: int) -> Case:
    """150 x 100 pairs, 100 sensors, networks [100, 40, 40] and [1, 40, 40] (tanh): 7401 parameters."""
    data_key, key = jax.random.split(jax.random.key(seed))
    data = operators.antiderivative(data_key)
    objective = so.Objective(data=so.Term(DeepONet.product()))
    return Case(deeponet(key, 1), objective, {"data": data.pairs()}, pairs(data), data.solver_error)


DIFFUSION, REACTION = 0.01, 0.01


def terms(u):
    """u and u_t - D u_xx, for y = (x, t)."""
    return lambda y: jnp.stack([u(y), so.partial(u, 1)(y) - DIFFUSION * so.partial(u, 0, 0)(y)])


def residual(z, source):
    return z[1] - REACTION * z[0] ** 2 - source


def envelope(y):
    return 4 * y[1] * y[0] * (1 - y[0])


def physics(seed: int) -> Case:
    """Diffusion-reaction by the equation alone: 100 sources at 100 sensors x 200 points, u = 0 by construction."""
    data_key, key = jax.random.split(jax.random.key(seed))
    data = operators.diffusion_reaction(data_key, diffusion=DIFFUSION, reaction=REACTION)
    rng = np.random.default_rng(seed)
    place, t = rng.integers(0, 100, 200), rng.random(200)
    points = np.stack([data.sensors[place, 0], t], axis=1)
    sources = data.inputs[: data.training]
    objective = so.Objective(physics=so.Term(DeepONet.product(terms, residual)))
    batch = {"physics": so.ProductBatch(sources, points, sources[:, place])}
    return Case(deeponet(key, 2, envelope), objective, batch, pairs(data), data.solver_error)


def misfit(model, sample):
    return model(sample[0]) - sample[1]


def fno(seed: int) -> Case:
    """Burgers, viscosity 0.05: 100 initial values on 64 points to the end; 8 modes, width 16, 3 layers."""
    data_key, key = jax.random.split(jax.random.key(seed))
    data = operators.burgers_operator(data_key)
    errors = Errors({part: data.fields(part) for part in ("training", "test")}, lambda model, a: jax.vmap(model)(a))
    model = FNO((8,), 16, 3, key=key)
    return Case(model, so.Objective(data=so.Term(misfit)), {"data": data.fields()}, errors, data.solver_error)


CASES = {"antiderivative": antiderivative, "physics": physics, "fno": fno}
SECONDS = {"antiderivative": 60.0, "physics": 10.0, "fno": 10.0}
SEEDS = {"antiderivative": 5, "physics": 3, "fno": 3}


class Method(NamedTuple):
    """An optimizer, given the number of steps that the budget allows (a schedule needs it), and steps a measurement."""

    make: Callable[[int], Any]
    metric_every: int
    scheduled: bool = False


def adam(rate: float) -> Method:
    return Method(lambda steps: optax.adam(optax.cosine_decay_schedule(rate, steps)), 200, scheduled=True)


METHODS = {
    "adam 1e-3": adam(1e-3),
    "adam 3e-3": adam(3e-3),
    "adam 1e-2": adam(1e-2),
    "lbfgs": Method(lambda _: so.lbfgs(), 50),
    "soap 3e-3": Method(lambda steps: so.soap(optax.cosine_decay_schedule(3e-3, steps)), 100, scheduled=True),
    "hessian_free": Method(lambda _: so.hessian_free(), 1),
    "hessian_free, cg_rtol 0.1": Method(lambda _: so.hessian_free(cg_rtol=0.1), 1),
    "levenberg_marquardt, cg": Method(lambda _: so.levenberg_marquardt(solve="cg", geodesic=False), 1),
    "gauss_newton, cg": Method(lambda _: so.gauss_newton(solve="cg"), 1),
    "newton_krylov": Method(lambda _: so.newton_krylov(krylov_steps=50), 1),
    "kfac": Method(lambda _: so.kfac(), 5),
}


TABLE = {  # what `python benchmarks/operators.py CASE` runs
    "antiderivative": ["adam 3e-3", "scipy lbfgs", "lbfgs"],
    "physics": ["adam 3e-3", "lbfgs", "hessian_free, cg_rtol 0.1", "soap 3e-3"],
    "fno": ["adam 3e-3", "lbfgs", "hessian_free, cg_rtol 0.1", "soap 3e-3"],
}


def run(case: Case, name: str, seconds: float) -> dict[str, Any]:
    if name == "scipy lbfgs":
        return scipy_lbfgs(case, seconds)
    method = METHODS[name]

    def fit(steps: int, seconds: float):
        return so.fit(
            case.model,
            case.objective,
            method.make(steps),
            case.batch,
            steps=10**7,
            metric=case.errors,
            metric_every=method.metric_every,
            callback=lambda now: now.seconds >= seconds,
        )

    steps = 10**6
    if method.scheduled:
        trial = fit(steps, 2.0)
        steps = int(seconds / trial.train_seconds * trial.steps)
    result = fit(steps, seconds)
    measured = ~np.isnan(result.history["error"])
    times, path = result.history["seconds"][measured], result.history["error"][measured]
    shares = [share * seconds for share in (0.1, 0.25, 0.5) if times[0] <= share * seconds]
    marks = {f"{mark:g} s": float(path[times <= mark][-1]) for mark in shares}
    row = {"loss": result.loss, "steps": result.steps, "cpu_seconds": round(result.train_seconds, 1), "path": marks}
    row |= {"best_test": float(np.min(path)), "compile_seconds": round(result.compile_seconds, 1)}
    return row | errors_of(case, result.model)


def errors_of(case: Case, model: Any) -> dict[str, float]:
    return {part: float(eqx.filter_jit(case.errors)(model, part)) for part in ("training", "test")}


def scipy_lbfgs(case: Case, seconds: float) -> dict[str, Any]:
    """Begun anew from its last point where it stops early."""
    params, static = eqx.partition(case.model, eqx.is_inexact_array)
    x, unravel = ravel_pytree(params)
    loss = case.objective.bind(case.batch, static=static)
    value_and_grad = jax.jit(lambda x: jax.value_and_grad(lambda x: loss(unravel(x)))(x))
    jax.block_until_ready(value_and_grad(x))
    started, x, made = time.process_time(), np.asarray(x), 0

    class Over(Exception):
        pass

    def fun(x):
        nonlocal made
        made += 1
        return tuple(map(np.asarray, value_and_grad(x)))

    def stop(now):
        nonlocal x
        x = np.copy(now)
        if time.process_time() - started >= seconds:
            raise Over

    options = {"maxcor": 20, "maxfun": 10**9, "maxiter": 10**9, "ftol": 0, "gtol": 0, "maxls": 50}
    try:
        while time.process_time() - started < seconds:
            x = scipy.optimize.minimize(fun, x, jac=True, method="L-BFGS-B", callback=stop, options=options).x
    except Over:
        pass
    spent = round(time.process_time() - started, 1)
    row = {"loss": float(loss(unravel(jnp.asarray(x)))), "steps": made, "cpu_seconds": spent}
    model = eqx.combine(unravel(jnp.asarray(x)), static)
    return row | errors_of(case, model)


def read() -> dict[str, dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def show() -> None:
    """Median (worst) of the seeds; the paired ratio to the better of Adam and L-BFGS is for the reader to take."""
    rows = read()
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, row in rows.items():
        case, budget, method, _ = key.split("/")
        groups.setdefault((f"{case}, {budget}", method), []).append(row)
    for case in sorted({case for case, _ in groups}):
        print(f"\n{case}\n\n| method | test error | training error | loss | steps | seeds |\n|---|---|---|---|---|---|")
        found = [(method, runs) for (other, method), runs in groups.items() if other == case]
        for method, runs in sorted(found, key=lambda item: np.median([run["test"] for run in item[1]])):
            test, training, loss, steps = ([run[k] for run in runs] for k in ("test", "training", "loss", "steps"))
            errors = " | ".join(f"{np.median(e):.1e} ({np.max(e):.1e})" for e in (test, training))
            print(f"| {method} | {errors} | {np.median(loss):.1e} | {np.median(steps):.0f} | {len(runs)} |")


def main():
    parser = argparse.ArgumentParser(description="Operator learning at equal CPU time.")
    parser.add_argument("case", choices=[*CASES, "show"])
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--seconds", type=float)
    args = parser.parse_args()
    if args.case == "show":
        return show()
    seconds = args.seconds or SECONDS[args.case]
    for name in args.methods or TABLE[args.case]:
        for seed in range(args.seeds or SEEDS[args.case]):
            key = f"{args.case}/{seconds:g} s/{name}/{seed}"
            if key not in read():
                row = run(CASES[args.case](seed), name, seconds)
                RESULTS.write_text(json.dumps(dict(sorted((read() | {key: row}).items())), indent=0) + "\n")
                print(f"{key}: {row}", flush=True)


if __name__ == "__main__":
    main()
