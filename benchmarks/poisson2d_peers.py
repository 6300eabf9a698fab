"""Time to error on `poisson2d`: our curvature methods, `optax.lbfgs`, Adam, and the natural gradient of jinns.

The same for all: MLP 2-32-1 (tanh, 129 parameters), the same fresh Glorot weights for each of the seeds 0-4, the same
900 interior and 120 boundary points, the same weighting (mean square of the interior plus 4 times that of the
boundary, as in arXiv:2302.13163; `--boundary-weight` sets another), float64, one core, the relative L2 error on the
same 60 x 60 grid. No warm-up.

**Clock.** Process CPU seconds of training alone: steps run in jitted chunks that also return the parameters after every
step; the errors of these are evaluated after the clock was stopped, and the time of a step is interpolated inside its
chunk. The first call of each chunk (tracing, compilation) is done on other parameters and not counted.

**jinns** (optional: `pip install jinns`). `jinns.solve` compiles anew on every call and has no step; so it is called
under one `jax.jit`, with `ahead_of_time=False` as its documentation says, for a chunk of iterations from given
parameters and a given optimizer state, which it takes and returns, with `tracked_params`. That runs its own loop, its
own `vanilla_ngd` (with the line search that it recommends), its own `LossPDEStatio`, `Dirichlet` and `laplacian_rev`,
and compiles once, outside the clock. Points replace those of `CubicMeshPDEStatio`; its loss adds the means over the
four faces, so a face weighs 4 / 4. `gram_reg` is 1e-5 by default; the tuned row has the best of a sweep over `gram_reg`
by the median time to 1e-5, then by error, on the seeds 0 and 1. jinns gets twice the budget of the others.

**The others.** `optax.lbfgs` with a memory of 50 and its zoom line search; Adam with a cosine decay from 1e-2 over
12 000 steps, which nearly fill the budget.

The ratios of the times to 1e-5 and 1e-6 are taken seed by seed on 12 seeds, in runs that end at 1e-6 and follow one
another, in one order and then in the other; a run that does not get there within the budget counts as infinitely long.

    python benchmarks/poisson2d_peers.py --out poisson2d_peers.json
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # before jax is imported: one core, CPU time = work
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import sciml_opt as so
from sciml_opt import problems

jax.config.update("jax_enable_x64", True)

TARGETS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
RACE = ("1e-05", "1e-06")
ADAM_STEPS = 12_000
GRAM_REGS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10)


class Optax:
    """An optax transformation in chunks of steps."""

    def __init__(self, problem, tx, chunk, value_from_state=False):
        self.tx, self.length = tx, chunk
        self.batch = problem.batch()
        _, static = eqx.partition(problem.model(jax.random.key(0)), eqx.is_inexact_array)

        @jax.jit
        def advance(batch, params, state):
            loss = problem.objective.bind(batch, static=static)

            def step(carry, _):
                params, state = carry
                if value_from_state:
                    value, grad = optax.value_and_grad_from_state(loss)(params, state=state)
                else:
                    value, grad = jax.value_and_grad(loss)(params)
                updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
                params = optax.apply_updates(params, updates)
                return (params, state), params

            (params, state), history = jax.lax.scan(step, (params, state), None, length=chunk)
            return params, state, history

        self._advance = advance

    def init(self, params):
        return params, strong(self.tx.init(params))

    def advance(self, carry):
        params, state, history = self._advance(self.batch, *carry)
        return (params, state), history


class Jinns:
    """jinns' natural gradient in chunks of iterations of `jinns.solve`."""

    def __init__(self, problem, jinns, chunk):
        self.length = chunk
        batch = problem.batch()
        omega = batch["interior"]
        faces = jnp.moveaxis(batch["boundary"].reshape(4, -1, 2), 0, -1)  # x = 0, x = 1, y = 0, y = 1: jinns' order too
        u = jinns.nn.PINN(eq_type="PDEStatio", eqx_network=problem.model(jax.random.key(0)))

        class Poisson(jinns.loss.PDEStatio):
            def equation(self, x, u, params):
                residual = jinns.loss.laplacian_rev(x, u, params) + 2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * x))
                return residual[None]

        # As `vanilla_ngd` has it by default, but for the printing.
        search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
        self.optimizer = jinns.optimizers.vanilla_ngd(linesearch=search)
        self.wrap = lambda params: jinns.parameters.Params(nn_params=params, eq_params={})

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = jinns.data.CubicMeshPDEStatio(
                key=jax.random.PRNGKey(0),
                n=len(omega),
                nb=len(batch["boundary"]),
                dim=2,
                min_pts=(0.0, 0.0),
                max_pts=(1.0, 1.0),
                method="grid",
            )
            data = eqx.tree_at(lambda d: (d.omega, d.omega_border), data, (omega, faces))
            loss = jinns.loss.LossPDEStatio(
                u=u,
                dynamic_loss=Poisson(),
                boundary_condition=jinns.loss.Dirichlet(),
                loss_weights=jinns.loss.LossWeightsPDEStatio(dyn_loss=1.0, boundary_loss=1.0),
                params=self.wrap(u.init_params),
            )

        @jax.jit
        def advance(params, state, face_weight):
            out = jinns.solve(
                n_iter=chunk,
                init_params=params,
                data=data,
                loss=eqx.tree_at(lambda tree: tree.loss_weights.boundary_loss, loss, face_weight),
                optimizer=self.optimizer,
                opt_state=state,
                tracked_params=jax.tree.map(lambda _: True, params),
                verbose=False,
                ahead_of_time=False,
            )
            return out[0], out[5], out[6].nn_params, out[1]

        self._advance = advance
        self.gram_reg = 1e-5
        self.face_weight = float(problem.objective.terms["boundary"].weight) / 4

    def tuned(self, gram_reg):
        other = object.__new__(Jinns)
        other.__dict__ = self.__dict__ | {"gram_reg": gram_reg}
        return other

    def init(self, params):
        params = self.wrap(params)
        state = eqx.tree_at(lambda s: s.ridge_reg, self.optimizer.init(params), self.gram_reg)
        return params, strong(state)

    def advance(self, carry):
        params, state, history, _ = self._advance(*carry, jnp.asarray(self.face_weight))
        return (params, state), history


def strong(state):
    """The state as arrays without weak types, so that the second chunk does not compile again."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(jnp.asarray(leaf), jnp.asarray(leaf).dtype), state)


class Race:
    """Runs by name, on one problem."""

    def __init__(self, problem):
        self.problem = problem
        self.static = eqx.partition(problem.model(jax.random.key(0)), eqx.is_inexact_array)[1]
        self.errors = jax.jit(jax.vmap(lambda params: problem.error(eqx.combine(params, self.static))))
        self.first_call_s = {}

    def start(self, seed):
        return eqx.partition(self.problem.model(jax.random.key(seed)), eqx.is_inexact_array)[0]

    def compile(self, name, method):
        begin = time.process_time()
        jax.block_until_ready(method.advance(method.init(self.start(12345))))
        self.first_call_s[name] = time.process_time() - begin

    def run(self, method, seed, seconds, target=0.0):
        """Seconds and steps to each of `TARGETS`, best and last error; ends at `target` or with the budget."""
        carry = method.init(self.start(seed))
        clock, steps, best, found = 0.0, 0, np.inf, {}
        while clock < seconds and best > target:
            begin = time.process_time()
            carry, history = jax.block_until_ready(method.advance(carry))
            spent = time.process_time() - begin
            errors = np.nan_to_num(np.asarray(self.errors(history)), nan=np.inf)
            for goal in TARGETS:
                below = np.flatnonzero(errors <= goal)
                if f"{goal:.0e}" not in found and below.size:
                    count = int(below[0]) + 1  # steps of this chunk
                    found[f"{goal:.0e}"] = {"seconds": clock + spent * count / len(errors), "steps": steps + count}
            clock, steps, best = clock + spent, steps + len(errors), min(best, float(errors.min()))
            if not np.isfinite(errors).all():
                break
        return {"reached": found, "best": best, "last": float(errors[-1]), "seconds": clock, "steps": steps}


def methods(problem, chunk):
    adam = optax.adam(optax.cosine_decay_schedule(1e-2, ADAM_STEPS))
    return {
        "levenberg_marquardt": Optax(problem, so.levenberg_marquardt(), chunk),
        "gauss_newton": Optax(problem, so.gauss_newton(), chunk),
        "energy_natural_gradient": Optax(problem, so.energy_natural_gradient(), chunk),
        "optax.lbfgs": Optax(problem, optax.lbfgs(memory_size=50), chunk, value_from_state=True),
        "optax.adam": Optax(problem, adam, 50 * chunk),
    }


def import_jinns():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jinns
    except ImportError:
        print("jinns is not installed: its rows are left out (pip install jinns).", flush=True)
        return None
    return jinns


def tune_jinns(race, jinns_default, seconds):
    """The sweep, and the best of it."""
    rows = []
    for gram_reg in GRAM_REGS:
        runs = [race.run(jinns_default.tuned(gram_reg), seed, seconds) for seed in (0, 1)]
        times = [run["reached"].get("1e-05", {"seconds": np.inf})["seconds"] for run in runs]
        rows.append({"gram_reg": gram_reg, "seconds_to_1e-5": times, "best": [run["best"] for run in runs]})
    best = min(rows, key=lambda row: (np.median(row["seconds_to_1e-5"]), np.median(row["best"])))
    return rows, best


def reweighted(problem, weight):
    boundary = so.Term(problem.objective.terms["boundary"].inner, weight=weight)
    objective = so.Objective(interior=problem.objective.terms["interior"], boundary=boundary)
    return dataclasses.replace(problem, objective=objective)


def measure(seeds, race_seeds, seconds, repeats, chunk, boundary_weight):
    problem = reweighted(problems.get("poisson2d"), boundary_weight)
    race = Race(problem)
    runners = methods(problem, chunk)
    for name, method in runners.items():
        race.compile(name, method)
    jinns, sweep, peers = import_jinns(), [], []
    if jinns is not None:
        default = Jinns(problem, jinns, chunk)
        race.compile("jinns NGD", default)
        sweep, best = tune_jinns(race, default, seconds)
        runners["jinns NGD"] = default
        if best["gram_reg"] != default.gram_reg:
            runners[f"jinns NGD, gram_reg {best['gram_reg']:.0e}"] = default.tuned(best["gram_reg"])
        peers = [name for name in runners if name.startswith("jinns")]
    runs = {name: [] for name in runners}
    for seed in seeds:
        for name in list(runners)[:: -1 if seed % 2 else 1]:
            runs[name].append(race.run(runners[name], seed, seconds * (2 if name in peers else 1)))
            _say(f"seed {seed}  {name:<46} best {runs[name][-1]['best']:.1e}")
    ratios = {name: {goal: [] for goal in RACE} for name in peers}
    for seed in range(race_seeds):
        times = {name: {goal: [] for goal in RACE} for name in (*peers, "levenberg_marquardt")}
        for repeat in range(repeats):
            for name in list(times)[:: -1 if repeat % 2 else 1]:
                reached = race.run(runners[name], seed, seconds, target=1e-6)["reached"]
                for goal in RACE:
                    times[name][goal].append(reached.get(goal, {"seconds": np.inf})["seconds"])
        for name in peers:
            for goal in RACE:
                ours = np.array(times["levenberg_marquardt"][goal])
                with np.errstate(invalid="ignore"):  # nan: neither got there
                    ratios[name][goal].append(float(np.median(np.array(times[name][goal]) / ours)))
    return runs, ratios, race.first_call_s, sweep


def report(runs, ratios, first_call_s, seconds):
    def cell(rows, goal):
        times = [row["reached"][goal]["seconds"] for row in rows if goal in row["reached"]]
        return f"{np.median(times):.2f} ({len(times)}/{len(rows)})" if times else "-"

    goals = [f"{goal:.0e}" for goal in TARGETS]
    print(f"\n{'CPU seconds, median of the seeds that got there':<47}" + "".join(f"{g:>12}" for g in goals), end="")
    print(f"{'best error (worst)':>20}{'steps':>8}{'ms/step':>9}{'first call s':>14}")
    for name, rows in runs.items():
        best, steps = [row["best"] for row in rows], np.median([row["steps"] for row in rows])
        ms = np.median([1e3 * row["seconds"] / row["steps"] for row in rows])
        called = first_call_s.get(name, first_call_s.get(name.split(",")[0], np.nan))
        print(f"{name:<47}" + "".join(f"{cell(rows, g):>12}" for g in goals), end="")
        print(f"{np.median(best):12.1e} ({max(best):.0e}){steps:8.0f}{ms:9.2f}{called:14.1f}")
    late = [row["reached"].get("1e-07", {"seconds": np.inf})["seconds"] for row in runs["levenberg_marquardt"]]
    print(f"\nlevenberg_marquardt to 1e-7, CPU s by seed: {' '.join(f'{t:.2f}' for t in late)} (budget {seconds:g} s)")
    for name, row in ratios.items():
        for goal, values in row.items():
            print(f"time to {goal}, {name} / levenberg_marquardt: median {np.median(values):.2f}", end="")
            print(f", by seed {' '.join(f'{v:.2f}' for v in sorted(values))}")


_say = functools.partial(print, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the figures to this JSON file")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="CPU seconds of training a run")
    parser.add_argument("--race-seeds", type=int, default=12, help="for the ratios of times between jinns and ours")
    parser.add_argument("--repeats", type=int, default=2, help="of that race; the order is swapped each time")
    parser.add_argument("--chunk", type=int, default=10, help="steps in one jitted call (Adam: 50 times as many)")
    parser.add_argument("--boundary-weight", type=float, default=4.0)
    args = parser.parse_args()
    seeds = range(args.seeds)
    runs, ratios, first_call_s, sweep = measure(
        seeds, args.race_seeds, args.seconds, args.repeats, args.chunk, args.boundary_weight
    )
    report(runs, ratios, first_call_s, args.seconds)
    if sweep:
        print("\nsweep of jinns (seeds 0, 1): gram_reg, seconds to 1e-5, best error")
        for row in sweep:
            times, best = [f"{t:.2f}" for t in row["seconds_to_1e-5"]], [f"{e:.1e}" for e in row["best"]]
            print(f"  {row['gram_reg']:.0e}  {' '.join(times):>12}  {' '.join(best)}")
    if args.out:
        versions = {name: _version(name) for name in ("jax", "optax", "jinns")}
        content = {"versions": versions, "runs": runs, "ratios": ratios, "first_call_cpu_s": first_call_s}
        args.out.write_text(json.dumps(content | {"jinns_sweep": sweep}, indent=2) + "\n")


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
