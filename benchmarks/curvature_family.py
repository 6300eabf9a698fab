"""Every curvature method on every problem it applies to; accuracy targets of the best; equalised loss terms on and off.

    python benchmarks/curvature_family.py table          # methods x problems, 5 seeds, 10 CPU seconds each
    python benchmarks/curvature_family.py targets        # the last digits, 5 seeds
    python benchmarks/curvature_family.py digits         # poisson2d to 1e-12 on 64 seeds, also after a random step
    python benchmarks/curvature_family.py equalisation   # Levenberg-Marquardt and Gauss-Newton, with and without
    python benchmarks/curvature_family.py conditions     # poisson2d in float32, and on fresh points each step
    python benchmarks/curvature_family.py show           # the tables of what has been run, in Markdown

Resumable: every run is written to results/curvature_family.json when it ends, and is not made again.
Figures are relative L2 errors on each problem's test set, of the last iterate, after a budget of process CPU time
(compilation and error measurement apart), on one core, in float64. `nonfinite` counts steps in which anything that the
method reports was not finite, whether it was masked or not.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse
import fcntl
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sciml_opt as so
from sciml_opt.cli._methods import METHODS
from sciml_opt.problems import Problem

RESULTS = Path(__file__).parent / "results" / "curvature_family.json"
SEEDS = 5
BUDGET = 10.0  # CPU seconds a run of the table
PROBLEMS = ("poisson2d", "heat1d", "poisson5d", "burgers", "deep_ritz1d")
FAILED = 0.1  # a run that ends above this relative error has not left its start
CHUNK = 0.25  # CPU seconds between two looks at the clock
ADAM_RATES = (1e-3, 3e-3, 1e-2)
MARKS = tuple(10.0**-k for k in range(2, 15))


class Setting(NamedTuple):
    """A problem as it is run here; `held_out` are interior points that no run trains on."""

    problem: Problem
    objective: so.Objective
    batch: dict[str, Any]
    layers: tuple[int, ...]
    held_out: np.ndarray | None = None


def standard(name: str) -> Setting:
    problem = so.problems.get(name)
    return Setting(problem, problem.objective, problem.batch(), problem.layers)


def poisson5d_target() -> Setting:
    """5-64-1, fixed points denser towards the faces (arcsine distribution), boundary weight 1000.

    Uniform points left 3 of 5 runs at 2e-9 to 2e-7: a neuron that cuts off one of them spikes there, and stays. With
    these one run in five still ends in a minimum at some 1e-9 (the neurons turn along the axes, and one axis gets too
    few), which a random step does not leave: such a run begins anew after 50 seconds.
    """
    problem, rng = so.problems.get("poisson5d"), np.random.default_rng(0)

    def arcsine(n: int, d: int) -> np.ndarray:
        return (1 - np.cos(np.pi * rng.random((n, d)))) / 2

    interior = arcsine(3500, 5)
    faces = [np.insert(arcsine(200, 4), axis, side, axis=1) for axis in range(5) for side in (0.0, 1.0)]
    terms = dict(problem.objective.terms)
    objective = so.Objective(interior=terms["interior"], boundary=so.Term(terms["boundary"].inner, weight=1000.0))
    return Setting(problem, objective, {"interior": interior, "boundary": np.concatenate(faces)}, (64,))


def burgers_target() -> Setting:
    """Three hidden layers of 20; the problem's own points, denser at the shock, and as many others held out."""
    problem, rng = so.problems.get("burgers"), np.random.default_rng(1)
    s, t = 2 * rng.random(3136) - 1, rng.random(3136)
    held_out = np.stack([0.25 * s + 0.75 * s**3, t], axis=1)
    return Setting(problem, problem.objective, problem.batch(), (20, 20, 20), held_out)


def random_step(_, params):
    """Of length 1. It leaves a local minimum in which the method has come to rest."""
    normal = optax.tree.random_like(jax.random.key(0), params)
    return optax.tree.scale(1 / optax.tree.norm(normal), normal)


class Runner:
    """One optimizer on one setting: compiled once, run for several seeds."""

    def __init__(self, setting: Setting, make: Callable[[so.Objective], optax.GradientTransformation]):
        self.setting = setting
        model = setting.problem.model(jax.random.key(0), setting.layers)
        self.static = eqx.partition(model, eqx.is_inexact_array)[1]
        loss = setting.objective.bind(setting.batch, static=self.static)
        tx = optax.with_extra_args_support(make(setting.objective))
        self.tx = tx

        def one(_, carry):
            params, state, bad, _ = carry
            # quasi-Newton states carry the value and the gradient at the present point
            carries = {"value", "grad"} <= set(getattr(state, "_fields", ()))
            evaluate = optax.value_and_grad_from_state(loss) if carries else jax.value_and_grad(loss)
            value, grad = evaluate(params, state=state) if carries else evaluate(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            reports = [value, *jax.tree.leaves(updates)]
            for info in so.transforms.step_infos(state):
                reports += [info.loss, info.trial_loss, info.step_norm, info.grad_norm, info.damping]
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(report)) for report in reports]))
            return optax.apply_updates(params, updates), state, bad + ~finite, value

        self.chunk = jax.jit(lambda carry, n: jax.lax.fori_loop(0, n, one, carry))
        self.error = jax.jit(lambda params: setting.problem.error(eqx.combine(params, self.static)))
        self.loss = jax.jit(loss)
        start = time.process_time()
        carry = self.start(0)
        self.chunk.lower(carry, 1).compile()
        self.compile = time.process_time() - start
        jax.block_until_ready(self.chunk(carry, 1))
        self.error(carry[0])

    def start(self, seed: int):
        model = self.setting.problem.model(jax.random.key(seed), self.setting.layers)
        params = eqx.filter(model, eqx.is_inexact_array)
        state = jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), self.tx.init(params))
        return params, state, jnp.int32(0), jnp.zeros(())

    def __call__(self, seed: int, budget: float, stop: float = 0.0, restart: float = math.inf) -> dict[str, Any]:
        """Until the budget is spent or the error is at most `stop`; every `restart` seconds from another start."""
        carry, steps, spent, chunk, error = self.start(seed), 0, 0.0, 1, math.inf
        restarts = 0
        seconds_to, steps_to = {}, {}
        while spent < budget and error > stop:
            if spent >= (restarts + 1) * restart:
                restarts += 1
                params, state, _, value = self.start(seed + 100 * restarts)
                carry = (params, state, carry[2], value)
            begin = time.process_time()
            carry = jax.block_until_ready(self.chunk(carry, chunk))
            took = time.process_time() - begin
            spent, steps = spent + took, steps + chunk
            error = float(self.error(carry[0]))
            if not math.isfinite(error):
                break
            for mark in MARKS:
                if error <= mark:
                    seconds_to.setdefault(f"{mark:.0e}", round(spent, 2))
                    steps_to.setdefault(f"{mark:.0e}", steps)
            if took < CHUNK / 2:
                chunk = min(2 * chunk, 4096)
            elif took > CHUNK:
                chunk = max(1, chunk // 2)
        row = {
            "error": error if math.isfinite(error) else None,
            "loss": _finite(self.loss(carry[0])),
            "steps": steps,
            "cpu_seconds": round(spent, 2),
            "compile_seconds": round(self.compile, 2),
            "nonfinite": int(carry[2]),
            "restarts": restarts,
            "seconds_to": seconds_to,
            "steps_to": steps_to,
        }
        if self.setting.held_out is not None:
            row |= self._held_out(carry[0])
        return row

    def _held_out(self, params) -> dict[str, float]:
        """Root mean squares of the interior residual, on the training points and on others."""
        term = so.Objective(interior=self.setting.objective.terms["interior"])

        def rms(points):
            loss = term.bind({"interior": points}, static=self.static)
            return float(jnp.sqrt(2 * jax.jit(loss)(params)))

        return {"residual": rms(self.setting.batch["interior"]), "held_out_residual": rms(self.setting.held_out)}


def _finite(value) -> float | None:
    return float(value) if math.isfinite(value) else None


class Store:
    """The results on disk: one entry a run."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as lock:  # several processes may write
            fcntl.flock(lock, fcntl.LOCK_EX)
            rows = self.read() | {key: row}
            fresh = self.path.with_suffix(".new")
            fresh.write_text(json.dumps(dict(sorted(rows.items())), indent=0) + "\n")
            fresh.replace(self.path)
        print(f"{key}: {row['error']}, {row['steps']} steps, {row['cpu_seconds']} s", flush=True)


def sweep(store: Store, prefix: str, setting: Setting, make, *limits: float):
    """`limits`: of `Runner.__call__`, from the budget on."""
    todo = [seed for seed in range(SEEDS) if f"{prefix}/{seed}" not in store.read()]
    if not todo:
        return
    runner = Runner(setting, make)
    for seed in todo:
        store.add(f"{prefix}/{seed}", runner(seed, *limits))
    jax.clear_caches()


# What is tried where a method with its defaults does not beat Adam.
TUNING: dict[str, dict[str, Callable[[so.Objective], optax.GradientTransformation]]] = {
    "target_ratio": {
        "gram": lambda objective: so.equalised(so.target_ratio_trust_region(decomposition="gram"), objective),
        "gram, constant weights": lambda _: so.target_ratio_trust_region(decomposition="gram"),
    },
    "engd_w": {f"damping {d:.0e}": lambda _, d=d: so.engd_w(damping=d) for d in (1e-6, 1e-4, 1e-2)},
    "spring": {f"damping {d:.0e}": lambda _, d=d: so.spring(damping=d) for d in (1e-6, 1e-4, 1e-2)},
    "anagram": {f"cutoff {c:.0e}": lambda _, c=c: so.anagram(c) for c in (1e-4, 1e-3, 1e-2)},
    "kfac": {f"first damping {d:.0e}": lambda _, d=d: so.kfac(d) for d in (1e-5, 1e-3)},
    "kfac_star": {f"first damping {d:.0e}": lambda _, d=d: so.kfac_star(d) for d in (1e-5, 1e-3)},
    "variable_projection": {"primal solve": lambda _: so.variable_projection(solve="primal")},
    "newton_krylov": {"30 Krylov steps": lambda _: so.newton_krylov(krylov_steps=30)},
    "newton_trust_region": {"30 Krylov steps": lambda _: so.newton_trust_region(krylov_steps=30)},
}


def table(store: Store, methods: list[str], problems: list[str]) -> None:
    for problem in problems:
        setting = standard(problem)
        for method in methods:
            if applies(method, setting.problem):
                make = tuned_adam(store, setting) if method == "adam" else METHODS[method].make
                sweep(store, f"table/{problem}/{method}", setting, make, BUDGET)
        for method in [method for method in methods if method in TUNING]:
            if applies(method, setting.problem) and not beats_adam(store, problem, method):
                option = tuned(store, setting, method)
                sweep(store, f"table/{problem}/{method}, {option}", setting, TUNING[method][option], BUDGET)


def beats_adam(store: Store, problem: str, method: str) -> bool:
    def median(name: str) -> float:
        rows = [row for key, row in store.read().items() if key.startswith(f"table/{problem}/{name}/")]
        return _median([row["error"] for row in rows])

    return median(method) < median("adam")


def tuned(store: Store, setting: Setting, method: str) -> str:
    """The option of lowest error after the same budget (seed 0), as for Adam's rate."""
    keys = {option: f"tuning/{setting.problem.name}/{method}/{option}" for option in TUNING[method]}
    for option, key in keys.items():
        if key not in store.read():
            store.add(key, Runner(setting, TUNING[method][option])(0, BUDGET))
    rows = store.read()
    return min(keys, key=lambda option: rows[keys[option]]["error"] or math.inf)


def applies(method: str, problem: Problem) -> bool:
    return "least_squares" in problem.tags or not METHODS[method].least_squares


def tuned_adam(store: Store, setting: Setting):
    """The learning rate of lowest error after the same budget (seed 0), with and without decay by 0.98 / 1000 steps."""
    for rate in ADAM_RATES:
        for decay in (1.0, 0.98):
            key = f"adam/{setting.problem.name}/{rate}/{decay}"
            if key not in store.read():
                store.add(key, Runner(setting, lambda _, r=rate, d=decay: _adam(r, d))(0, BUDGET))
    rows = {key: row for key, row in store.read().items() if key.startswith(f"adam/{setting.problem.name}/")}
    best = min(rows, key=lambda key: rows[key]["error"] or math.inf)
    rate, decay = map(float, best.split("/")[2:])
    return lambda _: _adam(rate, decay)


def _adam(rate: float, decay: float) -> optax.GradientTransformation:
    return optax.adam(optax.exponential_decay(rate, 1000, decay))


class Target(NamedTuple):
    setting: Callable[[], Setting]
    method: str
    make: Callable[[so.Objective], optax.GradientTransformation]
    budget: float
    stop: float
    restart: float = math.inf


EQUALISED = METHODS["target_ratio"].make
# Equalised terms give Burgers' equation up: its weight fell to the floor, and the error stayed at 3e-4.
TARGETS = {
    "poisson2d": [Target(lambda: standard("poisson2d"), "target_ratio", EQUALISED, 5.0, 1e-13)],
    "heat1d": [Target(lambda: standard("heat1d"), "target_ratio", EQUALISED, 60.0, 1e-9)],
    "poisson5d": [Target(poisson5d_target, "target_ratio", EQUALISED, 200.0, 1e-9, 50.0)],
    "burgers": [
        Target(
            burgers_target,
            "target_ratio, constant weights",
            lambda _: so.target_ratio_trust_region(),
            180.0,
            2e-5,
        ),
        Target(
            burgers_target,
            "target_ratio, gram, constant weights",
            lambda _: so.target_ratio_trust_region(decomposition="gram"),
            180.0,
            2e-5,
        ),
    ],
}


def targets(store: Store, problems: list[str]) -> None:
    for problem in problems:
        for target in TARGETS.get(problem, []):
            key = f"targets/{problem}/{target.method}"
            sweep(store, key, target.setting(), target.make, target.budget, target.stop, target.restart)


def digits(store: Store, seeds: int = 64) -> None:
    """To 1e-12 (all seeds or none): a run that is not there in 300 steps makes a random step and begins anew."""
    if f"digits/poisson2d/target_ratio/{seeds - 1}" in store.read():
        return
    problem = so.problems.get("poisson2d")
    tx = METHODS["target_ratio"].make(problem.objective)
    phases = [so.Phase(tx, 300), so.Phase(optax.stateless(random_step), 1), so.Phase(tx, 300)]
    until = so.Stop(error=1e-12)
    results = so.fit(
        problem.model, problem.objective, phases, problem.batch(), seeds=seeds, metric=problem.error, until=until
    )
    for seed, result in enumerate(results):
        first = result.history["error"][:300]
        row = {
            "error": result.error,
            "steps": result.steps,
            "cpu_seconds": round(result.train_seconds, 2),
            "error_without": float(np.nanmin(first)),
        }
        store.add(f"digits/poisson2d/target_ratio/{seed}", row)


def equalisation(store: Store, problems: list[str]) -> None:
    """Steps to 1e-6 and to 1e-7 (looked at every fifth step, at most 1000)."""
    until = so.Stop(error=1e-7)
    for name in problems:
        problem = so.problems.get(name)
        for method in ("levenberg_marquardt", "gauss_newton", "target_ratio"):
            tx = so.target_ratio_trust_region() if method == "target_ratio" else METHODS[method].make(problem.objective)
            for on in (False, True):
                prefix = f"equalisation/{name}/{method}, {'equalised' if on else 'constant weights'}"
                if f"{prefix}/{SEEDS - 1}" in store.read():
                    continue
                results = so.fit(
                    problem.model,
                    problem.objective,
                    so.equalised(tx, problem.objective) if on else tx,
                    problem.batch(),
                    steps=1000,
                    seeds=SEEDS,
                    metric=problem.error,
                    metric_every=5,
                    until=until,
                )
                for seed, result in enumerate(results):
                    store.add(f"{prefix}/{seed}", equalisation_row(result))


def equalisation_row(result: so.FitResult) -> dict[str, Any]:
    errors = np.minimum.accumulate(np.nan_to_num(result.history["error"], nan=np.inf))
    reached = {f"{mark:.0e}": int(np.argmax(errors <= mark)) + 1 for mark in MARKS if errors[-1] <= mark}
    return {
        "error": result.error,
        "steps": result.steps,
        "cpu_seconds": round(result.train_seconds, 2),
        "steps_to": reached,
    }


def fresh_points(key: jax.Array) -> dict[str, jax.Array]:
    """As many points of poisson2d as in its batch, drawn anew."""
    inner, along = jax.random.split(key)
    t = jax.random.uniform(along, (4, 30))
    sides = [jnp.stack(side, axis=1) for side in ((t[0], 0 * t[0]), (t[1], 0 * t[1] + 1), (0 * t[2], t[2]))]
    sides.append(jnp.stack([0 * t[3] + 1, t[3]], axis=1))
    return {"interior": jax.random.uniform(inner, (900, 2)), "boundary": jnp.concatenate(sides)}


def conditions(store: Store, methods: list[str]) -> None:
    """Three seeds, 5 CPU seconds each; what is compared is the last error, on fresh points the mean of the last ten."""
    problem = so.problems.get("poisson2d")
    makes = {name: METHODS[name].make for name in methods}
    makes["adam"] = tuned_adam(store, standard("poisson2d"))
    makes["spring, rate 0.05"] = lambda _: so.spring(0.05, damping=1e-6)
    for condition in ("float32", "fresh points"):
        dtype = jnp.float32 if condition == "float32" else None
        data = fresh_points if condition == "fresh points" else problem.batch(dtype)
        for name, make in makes.items():
            prefix = f"conditions/{condition}/{name}"
            if f"{prefix}/2" in store.read():
                continue
            results = so.fit(
                lambda key, dtype=dtype: problem.model(key, dtype=dtype),
                problem.objective,
                make(problem.objective),
                data,
                steps=10**5,
                key=jax.random.key(0),
                seeds=3,
                metric=problem.error,
                callback=lambda progress: progress.seconds >= 5,
            )
            for seed, result in enumerate(results):
                errors = result.history["error"]
                errors = errors[np.isfinite(errors)][-10 if condition == "fresh points" else -1 :]
                row = {
                    "error": _finite(np.mean(errors)) if errors.size else None,
                    "steps": result.steps,
                    "cpu_seconds": round(result.train_seconds, 2),
                    "status": str(so.RESULTS[result.status]),
                }
                store.add(f"{prefix}/{seed}", row)
            jax.clear_caches()


def show(store: Store) -> None:
    rows = store.read()
    groups: dict[str, dict[str, list[dict]]] = {}
    for key, row in rows.items():
        section, problem, name = key.split("/")[0], key.split("/")[1], "/".join(key.split("/")[2:-1])
        if section in ("table", "targets"):
            groups.setdefault(f"{section}/{problem}", {}).setdefault(name, []).append(row)
    if runs := [row for key, row in rows.items() if key.startswith("digits/")]:
        show_digits(runs)
    show_equalisation({key: row for key, row in rows.items() if key.startswith("equalisation/")})
    show_conditions({key: row for key, row in rows.items() if key.startswith("conditions/")})
    show_overview({name: groups[f"table/{name}"] for name in PROBLEMS if f"table/{name}" in groups})
    for group, methods in groups.items():
        adam = _median([row["error"] for row in methods.get("adam", [])])
        print(f"\n### {group}\n")
        print("| method | median | worst | failures | steps | nonfinite | seconds to 1e-4, -6, -8, -12 | beats Adam |")
        print("|---|---|---|---|---|---|---|---|")
        for name, runs in sorted(methods.items(), key=lambda item: _median([row["error"] for row in item[1]])):
            errors = [math.inf if row["error"] is None else row["error"] for row in runs]
            failures = sum(error > FAILED for error in errors)
            reached = [
                _median([row["seconds_to"].get(mark) for row in runs]) for mark in ("1e-04", "1e-06", "1e-08", "1e-12")
            ]
            cells = [
                name,
                f"{np.median(errors):.1e}",
                f"{max(errors):.1e}",
                f"{failures} of {len(runs)}",
                f"{np.median([row['steps'] for row in runs]):.0f}",
                str(sum(row["nonfinite"] for row in runs)),
                " / ".join("-" if math.isinf(s) else f"{s:.1f}" for s in reached),
                "" if not methods.get("adam") or name == "adam" else "yes" if np.median(errors) < adam else "no",
            ]
            print("| " + " | ".join(cells) + " |")
        for name, runs in methods.items():
            if "held_out_residual" in runs[0]:
                pairs = [f"{row['residual']:.1e} / {row['held_out_residual']:.1e}" for row in runs]
                print(f"\n{name}: root mean square of the residual, training / held-out points: {', '.join(pairs)}")


def show_conditions(rows: dict[str, dict]) -> None:
    groups: dict[str, dict[str, list[float]]] = {}
    for key, row in rows.items():
        condition, name = key.split("/")[1:3]
        groups.setdefault(name, {}).setdefault(condition, []).append(math.inf if row["error"] is None else row["error"])
    names = ("float32", "fresh points")
    print("\n### poisson2d, 5 s: median (worst) error\n")
    print(f"| method | {' | '.join(names)} |\n|---|---|---|")
    for method, errors in sorted(groups.items(), key=lambda item: np.median(item[1].get(names[0], [math.inf]))):
        cells = [f"{np.median(e):.1e} ({max(e):.0e})" if (e := errors.get(name)) else "" for name in names]
        print(f"| {method} | {' | '.join(cells)} |")


def show_overview(table: dict[str, dict[str, list[dict]]]) -> None:
    """Median (worst) of each method on each problem, bold where the median is below Adam's."""
    names = list(dict.fromkeys(name for methods in table.values() for name in methods))
    print("\n### Median (worst) error\n")
    print("| method | " + " | ".join(table) + " |")
    print("|---" * (len(table) + 1) + "|")
    for name in names:
        cells = []
        for methods in table.values():
            errors = [math.inf if row["error"] is None else row["error"] for row in methods.get(name, [])]
            adam = _median([row["error"] for row in methods["adam"]])
            text = f"{np.median(errors):.1e} ({max(errors):.0e})" if errors else ""
            cells.append(f"**{text}**" if errors and np.median(errors) < adam else text)
        print(f"| {name} | " + " | ".join(cells) + " |")
    nonfinite = sum(row["nonfinite"] for methods in table.values() for rows in methods.values() for row in rows)
    print(f"\nNon-finite reports in {sum(len(r) for m in table.values() for r in m.values())} runs: {nonfinite}")


def show_digits(rows: list[dict]) -> None:
    without = [row["error_without"] for row in rows]
    seconds = [row["cpu_seconds"] for row in rows]
    print(f"\n### poisson2d to 1e-12, {len(rows)} seeds\n")
    print(f"one run of 300 steps: {sum(e <= 1e-12 for e in without)} reach it, worst {max(without):.1e}")
    print(
        f"with a random step and a second run: {sum(row['error'] <= 1e-12 for row in rows)}, {max(seconds)} s at most"
    )


def show_equalisation(rows: dict[str, dict]) -> None:
    groups: dict[str, list[dict]] = {}
    for key, row in rows.items():
        groups.setdefault(key.removeprefix("equalisation/").rpartition("/")[0], []).append(row)
    print("\n### Steps to 1e-6 and to 1e-7 with and without equalised terms\n")
    print("| problem / method | 1e-6: median (worst) | 1e-7: median (worst) |\n|---|---|---|")
    for name, runs in groups.items():
        cells = []
        for mark in ("1e-06", "1e-07"):
            steps = [row["steps_to"].get(mark, math.inf) for row in runs]
            middle, worst = ("-" if math.isinf(s) else f"{s:.0f}" for s in (np.median(steps), max(steps)))
            cells.append(f"{middle} ({worst})")
        print(f"| {name} | {' | '.join(cells)} |")


def _median(values: list) -> float:
    return float(np.median([math.inf if value is None else value for value in values])) if values else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "targets", "digits", "equalisation", "conditions", "show"])
    parser.add_argument("--methods", nargs="*", default=[name for name in METHODS if name != "optax_lbfgs"])
    parser.add_argument("--problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    store = Store(args.out)
    if args.what == "table":
        table(store, args.methods, args.problems)
    elif args.what == "targets":
        targets(store, args.problems)
    elif args.what == "digits":
        digits(store)
    elif args.what == "equalisation":
        equalisation(store, [name for name in args.problems if name in ("poisson2d", "heat1d")])
    elif args.what == "conditions":
        conditions(store, args.methods)
    else:
        show(store)


if __name__ == "__main__":
    main()
