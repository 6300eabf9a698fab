"""L-BFGS against SciPy's and optax's; SS-Broyden against jinns', and on the Burgers equation of its authors.

    python benchmarks/quasi_newton.py lbfgs      # the loss after equal numbers of gradients; float64 and float32
    python benchmarks/quasi_newton.py overhead   # what a step costs beyond its gradients
    python benchmarks/quasi_newton.py broyden    # a step and its compilation, ours and jinns'
    python benchmarks/quasi_newton.py burgers    # 5000 steps of Adam, then SS-Broyden, in 10 minutes a seed
    python benchmarks/quasi_newton.py show       # the tables of what has been run, in Markdown

Resumable: every run is written to results/quasi_newton.json when it ends, and is not made again. Times are process CPU
time on one core; what is compared runs in one process, in turns.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from jax.flatten_util import ravel_pytree

import sciml_opt as so
from sciml_opt.problems._burgers import cole_hopf

RESULTS = Path(__file__).parent / "results" / "quasi_newton.json"
SEEDS = 5
MORE_SEEDS = {"poisson2d": 20, "convection": 20}  # of lbfgs: runs of 3000 steps are chaotic, and five medians a lottery
MEMORY = 20  # pairs, for every L-BFGS
GRADIENTS = {"poisson2d": 3000, "convection": 3000, "burgers": 2000}


class Store:
    """The results on disk: one entry a run."""

    def __init__(self, path: Path):
        self.path = path

    def read(self) -> dict[str, dict[str, Any]]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def make(self, key: str, run: Callable[[], dict[str, Any]]) -> None:
        if key in self.read():
            return
        row = run()
        self.path.write_text(json.dumps(dict(sorted((self.read() | {key: row}).items())), indent=0) + "\n")
        print(f"{key}: {row}", flush=True)


def strong(tree):
    """Without weak types, which would retrace."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), tree)


# --- the loss at equal numbers of gradients


class Losses:
    """The three programs of one problem and precision, compiled once for all seeds."""

    def __init__(self, name: str, dtype: str, budget: int):
        self.problem, self.dtype, self.budget = so.problems.get(name), jnp.dtype(dtype), budget
        _, static = self.start(0)
        batch = self.problem.batch
        self.loss = self.problem.objective.bind(batch(self.dtype), static=static)
        self.exact = self.problem.objective.bind(batch(), static=static)
        self.value_and_grad = jax.jit(jax.value_and_grad(self.loss))
        self.methods = {
            "sciml_opt": jax.jit(lambda params: self.ours(so.lbfgs(MEMORY), params)),
            "optax": jax.jit(self.optax),
        }
        self.exact_value = jax.jit(lambda params: self.exact(jax.tree.map(lambda leaf: leaf.astype("float64"), params)))

    def start(self, seed: int):
        model = self.problem.model(jax.random.key(seed), dtype=self.dtype)
        return eqx.partition(model, eqx.is_inexact_array)

    def ours(self, tx, params):
        """Until the gradients are spent; counts the failed searches, and those along the gradient itself."""
        value_and_grad = optax.value_and_grad_from_state(self.loss)

        def unknown(params, grad):
            """How wrong the gradient is, relative to itself: 1 means that nothing is known of it."""
            true = jax.grad(self.exact)(jax.tree.map(lambda leaf: leaf.astype("float64"), params))
            true = ravel_pytree(true)[0]
            return jnp.linalg.norm(ravel_pytree(grad)[0].astype("float64") - true) / jnp.linalg.norm(true)

        def body(carry):
            params, state, best, made, failed, stationary, known = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=self.loss)
            info = so.info(state)
            last = (info.rung == 1) & (info.step_norm == 0)
            wrong = jax.lax.cond(last, lambda: unknown(params, grad), lambda: jnp.float64(jnp.inf))
            return (
                optax.apply_updates(params, updates),
                state,
                jnp.minimum(best, info.trial_loss),
                made + info.gradients,
                failed + info.rung,
                stationary + last,
                jnp.minimum(known, wrong),
            )

        zero = jnp.int32(0)
        start = (params, tx.init(params), jnp.asarray(jnp.inf, self.dtype), zero + 1, zero, zero, jnp.float64(jnp.inf))
        end = jax.lax.while_loop(lambda carry: carry[3] < self.budget, body, start)
        return {"params": end[0], "failed": end[4], "stationary": end[5], "least_relative_error": end[6]}

    def optax(self, params):
        tx, value_and_grad = optax.lbfgs(memory_size=MEMORY), optax.value_and_grad_from_state(self.loss)

        def body(carry):
            params, state, made, failed = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=self.loss)
            search = state[-1].info
            bad = (search.decrease_error > 0) | (search.curvature_error > 0)
            made = made + search.num_linesearch_steps.astype(jnp.int32)
            return optax.apply_updates(params, updates), state, made, failed + bad

        start = (params, strong(tx.init(params)), jnp.int32(1), jnp.int32(0))
        params, _, _, failed = jax.lax.while_loop(lambda carry: carry[2] < self.budget, body, start)
        return {"params": params, "failed": failed}

    def scipy(self, params):
        """Begun anew from its last point where it stops early."""
        x, unravel = ravel_pytree(params)
        made, stops = 0, []

        def fun(x):
            nonlocal made
            made += 1
            value, grad = self.value_and_grad(unravel(jnp.asarray(x, self.dtype)))
            return float(value), np.asarray(ravel_pytree(grad)[0], np.float64)

        x = np.asarray(x, np.float64)
        while made < self.budget and len(stops) < 100:
            options = {
                "maxcor": MEMORY,
                "maxfun": self.budget - made,
                "maxiter": 10**6,
                "ftol": 0,
                "gtol": 0,
                "maxls": 50,
            }
            found = scipy.optimize.minimize(fun, x, jac=True, method="L-BFGS-B", options=options)
            x = found.x
            if made < self.budget:
                stops.append(str(found.message))
        return {"params": unravel(jnp.asarray(x, self.dtype)), "failed": len(stops)}

    def __call__(self, method: str, seed: int) -> dict[str, Any]:
        params = self.start(seed)[0]
        started = time.process_time()
        found = self.scipy(params) if method == "scipy" else self.methods[method](params)
        params = jax.block_until_ready(found.pop("params"))
        seconds = time.process_time() - started
        error = self.problem.error(eqx.combine(params, self.start(seed)[1]))
        row = {"loss": float(self.exact_value(params)), "error": float(error), "cpu_seconds": round(seconds, 2)}
        return row | {key: float(value) for key, value in found.items()}


def lbfgs(store: Store, only: list[str]) -> None:
    for name, budget in GRADIENTS.items():
        for dtype in ("float64", "float32"):
            if only and name not in only and dtype not in only:
                continue
            losses = Losses(name, dtype, budget)
            for method in ("sciml_opt", "scipy", "optax"):
                for seed in range(MORE_SEEDS.get(name, SEEDS)):
                    key = f"lbfgs/{name}/{dtype}/{method}/{seed}"
                    store.make(key, lambda losses=losses, method=method, seed=seed: losses(method, seed))
            jax.clear_caches()


# --- the cost of a step


def per_step(program, args, steps: int, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        started = time.process_time()
        jax.block_until_ready(program(*args))
        times.append((time.process_time() - started) / steps * 1e3)
    return times


def stepper(tx, loss, steps: int, trials, call=None):
    """`steps` steps in one program, and the trials of each."""
    value_and_grad = optax.value_and_grad_from_state(loss)

    def call_ours(params, state):
        value, grad = value_and_grad(params, state=state)
        return tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)

    update = call or call_ours

    def run(params):
        def body(carry, _):
            params, state = carry
            updates, state = update(params, state)
            return (optax.apply_updates(params, updates), state), trials(state)

        return jax.lax.scan(body, (params, strong(tx.init(params))), None, length=steps)[1]

    return jax.jit(run)


def our_trials(state):
    return so.info(state).gradients.astype(float)


def zoom_trials(state):
    return state[-1].info.num_linesearch_steps.astype(float)


def overhead(store: Store, steps: int = 100, repeats: int = 11) -> None:
    problem = so.problems.get("poisson2d")
    params, static = eqx.partition(problem.model(jax.random.key(0), layers=(64, 64)), eqx.is_inexact_array)
    loss = problem.objective.bind(problem.batch(), static=static)

    @jax.jit
    def gradients(params):
        def body(params, _):
            value, grad = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - 1e-6 * g, params, grad), value

        return jax.lax.scan(body, params, None, length=steps)

    def run(memory):
        programs = {
            "gradient": gradients,
            "sciml_opt": stepper(so.lbfgs(memory), loss, steps, our_trials),
            "optax": stepper(optax.lbfgs(memory_size=memory), loss, steps, zoom_trials),
        }
        trials = {name: float(np.mean(programs[name](params))) for name in ("sciml_opt", "optax")}
        jax.block_until_ready(gradients(params))
        rows = []
        for repeat in range(repeats):
            names = list(programs) if repeat % 2 else list(programs)[::-1]
            rows.append({name: per_step(programs[name], (params,), steps, 1)[0] for name in names})
        unit = np.array([row["gradient"] for row in rows])
        row: dict[str, Any] = {"gradient_ms": quartiles(unit)}
        for name, made in trials.items():
            times = np.array([row[name] for row in rows])
            row[name] = {"step_ms": quartiles(times), "trials": made, "beyond": quartiles(times / unit - made)}
        row["step_ratio"] = quartiles(np.array([row["sciml_opt"] / row["optax"] for row in rows]))
        return row

    for memory in (3, 10, 20, 50, 100, 150):
        store.make(f"overhead/{memory}", lambda memory=memory: run(memory))


def quartiles(values: np.ndarray) -> list[float]:
    """Median, first and third quartile."""
    return [round(float(q), 4) for q in np.quantile(values, (0.5, 0.25, 0.75))]


def broyden(store: Store, steps: int = 20, repeats: int = 9) -> None:
    """Burgers' equation as in the trial that timed jinns: 2-32-32-32-1, P = 2241, 2500 + 201 points."""
    from jinns.optimizers import scale_by_SSBroyden_family

    problem, rng = so.problems.get("burgers"), np.random.default_rng(0)
    params, static = eqx.partition(problem.model(jax.random.key(0), layers=(32, 32, 32)), eqx.is_inexact_array)
    batch = {
        "interior": np.stack([2 * rng.random(2500) - 1, rng.random(2500)], 1),
        "initial": np.stack([np.linspace(-1, 1, 101), np.zeros(101)], 1),
        "boundary": np.stack([np.repeat([-1.0, 1.0], 50), np.tile(np.linspace(0, 1, 50), 2)], 1),
    }
    loss = problem.objective.bind(batch, static=static)
    theirs = scale_by_SSBroyden_family()

    def call(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        return theirs.update(grad, state, params, value, grad, value_fn=loss, grad_fn=jax.grad(loss))

    programs = {
        "sciml_opt": stepper(so.ss_broyden(), loss, steps, our_trials),
        "jinns": stepper(theirs, loss, steps, lambda s: s.linesearch_state.info.num_linesearch_steps, call),
    }

    def run():
        compiled, row = {}, {}
        for name, program in programs.items():
            started = time.process_time()
            compiled[name] = program.lower(params).compile()
            row[name] = {"compile_s": round(time.process_time() - started, 2)}
            row[name]["trials"] = float(np.mean(compiled[name](params)))
        rows = []
        for repeat in range(repeats):
            names = list(programs) if repeat % 2 else list(programs)[::-1]
            rows.append({name: per_step(compiled[name], (params,), steps, 1)[0] for name in names})
        for name in programs:
            row[name]["step_ms"] = quartiles(np.array([times[name] for times in rows]))
        row["step_ratio"] = quartiles(np.array([times["sciml_opt"] / times["jinns"] for times in rows]))
        row["compile_ratio"] = round(row["sciml_opt"]["compile_s"] / row["jinns"]["compile_s"], 3)
        return row

    for repeat in range(3):
        store.make(f"broyden/{repeat}", run)
        jax.clear_caches()


# --- the Burgers equation of arXiv:2405.04230


class HardBurgers(eqx.Module):
    """`u = -sin(pi x) + t N(cos pi x, sin pi x, t)`: periodic, with the initial values built in."""

    network: so.models.MLP

    def __call__(self, x):
        features = jnp.stack([jnp.cos(jnp.pi * x[0]), jnp.sin(jnp.pi * x[0]), x[1]])
        return x[1] * self.network(features) - jnp.sin(jnp.pi * x[0])


def burgers(store: Store, points: int = 10_000, warm_up: int = 5000, block: int = 500, budget: float = 600.0) -> None:
    """Adam, then SS-Broyden on residual-based points (RAD, k = c = 1) drawn anew every 500 steps; H is kept."""
    residual = so.problems.get("burgers").objective.terms["interior"].inner
    # the loss of the paper is the mean square, twice that of a term
    objective = so.Objective(interior=so.Term(residual, weight=2.0))
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 256), np.linspace(0, 0.99, 100), indexing="ij"), -1).reshape(-1, 2)
    reference = cole_hopf(grid)
    marks = (0, 500, 1000, 2000, 3000, 4000, 6000, 8000, 10_000)

    def draw(rng, size):
        return np.stack([2 * rng.random(size) - 1, rng.random(size)], 1)

    def run(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        model = HardBurgers(so.models.MLP(3, layers=(20, 20, 20), key=jax.random.key(seed)))
        params, static = eqx.partition(model, eqx.is_inexact_array)
        decay = optax.exponential_decay(5e-3, 1000, 0.98)
        adam, broyden = optax.adam(decay, b1=0.99, eps=1e-20), so.ss_broyden()

        @jax.jit
        def residuals(params, points):
            return jax.lax.map(lambda x: residual(eqx.combine(params, static), x), points, batch_size=5000)

        @jax.jit
        def error(params):
            u = jax.vmap(eqx.combine(params, static))(jnp.asarray(grid))
            return jnp.linalg.norm(u - reference) / np.linalg.norm(reference)

        def adaptive(params):
            candidates = draw(rng, 10 * points)
            density = np.abs(residuals(params, jnp.asarray(candidates)))
            density = density / density.mean() + 1
            return candidates[rng.choice(len(candidates), points, replace=False, p=density / density.sum())]

        @jax.jit
        def adam_block(params, state, x):
            loss = objective.bind({"interior": x}, static=static)

            def body(carry, _):
                params, state = carry
                updates, state = adam.update(jax.grad(loss)(params), state, params)
                return (optax.apply_updates(params, updates), state), None

            return jax.lax.scan(body, (params, state), None, length=block)[0]

        @jax.jit
        def broyden_block(params, state, x):
            loss = objective.bind({"interior": x}, static=static)
            value_and_grad = optax.value_and_grad_from_state(loss)
            state = state._replace(value=jnp.full_like(state.value, jnp.inf))  # of other points

            def body(carry, _):
                params, state = carry
                value, grad = value_and_grad(params, state=state)
                updates, state = broyden.update(grad, state, params, value=value, grad=grad, value_fn=loss)
                info = so.info(state)
                return (optax.apply_updates(params, updates), state), (info.gradients, info.rung, info.trial_loss)

            return jax.lax.scan(body, (params, state), None, length=block)

        state, x = strong(adam.init(params)), jnp.asarray(draw(rng, points))
        jax.block_until_ready(adam_block.lower(params, state, x).compile())
        started = time.process_time()
        for _ in range(warm_up // block):
            params, state = adam_block(params, state, jnp.asarray(adaptive(params)))
        seconds = time.process_time() - started
        curve, state = [[0, float(error(params)), None, round(seconds, 1), 0]], broyden.init(params)
        jax.block_until_ready(broyden_block.lower(params, state, x).compile())
        steps, gradients, failed = 0, 0, 0
        while seconds < budget and steps < marks[-1]:
            started = time.process_time()
            x = jnp.asarray(adaptive(params))
            (params, state), (made, rung, loss) = jax.block_until_ready(broyden_block(params, state, x))
            seconds += time.process_time() - started
            steps, gradients, failed = steps + block, gradients + int(made.sum()), failed + int(rung.sum())
            curve.append([steps, float(error(params)), float(loss[-1]), round(seconds, 1), gradients])
            print(seed, curve[-1], failed, flush=True)
        return {"curve": curve, "failed": failed}

    for seed in range(SEEDS):
        store.make(f"burgers/{seed}", lambda seed=seed: run(seed))


# --- tables


def show(store: Store) -> None:
    rows = store.read()

    def runs(prefix, seeds):
        return [row for seed in range(seeds) if (row := rows.get(f"{prefix}/{seed}")) is not None]

    print("| problem | dtype | gradients | seeds | sciml_opt | scipy | optax | failed searches | no step at all |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, budget in GRADIENTS.items():
        for dtype in ("float64", "float32"):
            for seeds in sorted({SEEDS, MORE_SEEDS.get(name, SEEDS)}):
                found = {m: runs(f"lbfgs/{name}/{dtype}/{m}", seeds) for m in ("sciml_opt", "scipy", "optax")}
                if not all(found.values()):
                    continue
                losses = [[row["loss"] for row in rows] for rows in found.values()]
                cells = [f"{np.median(values):.1e} ({max(values):.0e})" for values in losses]
                failed = ", ".join(str(int(sum(row["failed"] for row in rows))) for rows in found.values())
                last = sum(int(row["stationary"]) for row in found["sciml_opt"])
                print("| " + " | ".join([name, dtype, str(budget), str(seeds), *cells, failed, str(last)]) + " |")
    print("\n| memory | gradient ms | ours: step ms | trials | beyond | optax: step ms | trials | beyond | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for key, row in sorted(rows.items(), key=lambda item: int(item[0].split("/")[1]) if "overhead" in item[0] else 0):
        if key.startswith("overhead/"):
            cells = [key.split("/")[1], f"{row['gradient_ms'][0]:.2f}"]
            for name in ("sciml_opt", "optax"):
                cells += [f"{row[name]['step_ms'][0]:.2f}", f"{row[name]['trials']:.2f}", spread(row[name]["beyond"])]
            print("| " + " | ".join([*cells, spread(row["step_ratio"])]) + " |")
    print("\n| SS-Broyden | step ms | trials | compile s |\n|---|---|---|---|")
    for key, row in rows.items():
        if key.startswith("broyden/"):
            for name in ("sciml_opt", "jinns"):
                own = row[name]
                print(f"| {name} | {spread(own['step_ms'])} | {own['trials']:.2f} | {own['compile_s']} |")
            print(f"| ratio | {spread(row['step_ratio'])} | | {row['compile_ratio']} |")
    curves = [row["curve"] for key, row in rows.items() if key.startswith("burgers/")]
    if curves:
        print("\n| SS-Broyden steps | median error | worst | seeds | CPU s |\n|---|---|---|---|---|")
        for k in range(max(map(len, curves))):
            at = [curve[k] for curve in curves if len(curve) > k]
            errors = [point[1] for point in at]
            seconds = np.median([point[3] for point in at])
            print(f"| {at[0][0]} | {np.median(errors):.1e} | {max(errors):.1e} | {len(at)} | {seconds:.0f} |")


def spread(values: list[float]) -> str:
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("lbfgs", "overhead", "broyden", "burgers", "show"))
    parser.add_argument("only", nargs="*", help="of lbfgs: problems or dtypes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    store = Store(args.out)
    if args.what == "lbfgs":
        lbfgs(store, args.only)
    else:
        {"overhead": overhead, "broyden": broyden, "burgers": burgers, "show": show}[args.what](store)


if __name__ == "__main__":
    main()
