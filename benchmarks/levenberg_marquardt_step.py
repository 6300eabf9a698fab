"""The cost of one Levenberg-Marquardt step, in gradients and against `optimistix.LevenbergMarquardt`.

Problem `poisson2d`: MLP 2-32-1 (129 parameters), 900 interior and 120 boundary points, float64. Process CPU time of:

- `levenberg_marquardt`: one step with geodesic acceleration, inside a jitted scan of 50 steps of the optax protocol
  (`value_and_grad`, `tx.update`, `apply_updates`) from a fresh start; `train` is the same inside `so.train`, which
  also keeps history, terms and best iterate;
- `gradient`: one jitted call of `jax.value_and_grad(loss)`; `gradient in a loop`: one of 50 inside a jitted scan, each
  at parameters that depend on the one before, so that nothing can be hoisted;
- `optimistix`: one jitted `solver.step` of `optimistix.LevenbergMarquardt` on the same whitened residual
  `loss.residual`, from states of its own run (with QR) whose trial is accepted, so that the residual is linearized anew
  and the damped system is solved with that Jacobian. `jac="fwd"` with several linear solvers, direct and iterative: the
  work of an iterative one depends on the damping, hence on the state, and so does its error, the relative difference
  of its step from the one by QR. `jac="bwd"` (one reverse sweep a residual) is timed apart;
- whole runs of 100 attempted steps of both, with the error that they reach: the iterative solvers at two tolerances;
- the parts of our step, as differences between jitted loops of 50 that each do one thing more.

Everything is measured once a repeat, in one order and then in the other; ratios are taken within each repeat, so that
a slow spell of a shared machine hits both sides.

    python benchmarks/levenberg_marquardt_step.py --out levenberg_marquardt_step.json
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # before jax is imported: one core, CPU time = work
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import itertools
import json
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import optimistix as optx
from jax import lax

import sciml_opt as so
from sciml_opt import problems
from sciml_opt._tree import second_derivative
from sciml_opt.linear import factorize

jax.config.update("jax_enable_x64", True)

STEPS = 50
STATES = (3, 20, 60)  # attempted steps of optimistix (QR) before the step that is measured
SOLVERS = {
    "QR (default)": lx.QR(),
    "Auto(well_posed=None)": lx.AutoLinearSolver(well_posed=None),
    "Normal(Cholesky)": lx.Normal(lx.Cholesky()),
    "Normal(CG 1e-6)": lx.Normal(lx.CG(rtol=1e-6, atol=1e-6)),
    "LSMR 1e-6": lx.LSMR(rtol=1e-6, atol=1e-6),
}


def jitted(f, *args):
    """`jax.jit(f)` on `args` as a call, and the CPU seconds of its first call."""
    f = jax.jit(f)
    start = time.process_time()
    jax.block_until_ready(f(*args))
    return (lambda: jax.block_until_ready(f(*args))), time.process_time() - start


def cpu_ms(call, count):
    """CPU milliseconds of one of `count` calls."""
    start = time.process_time()
    for _ in range(count):
        call()
    return 1e3 * (time.process_time() - start) / count


def lm_loop(loss, params):
    """50 steps of the optax protocol; also yields how many were accepted and the last state."""
    tx = so.levenberg_marquardt()

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, updates), state), so.info(state).accepted

    state = jax.tree.map(lambda leaf: lax.convert_element_type(leaf, leaf.dtype), tx.init(params))
    (params, state), accepted = lax.scan(step, (params, state), None, length=STEPS)
    return params, state, jnp.sum(accepted)


def nudged(params, numbers):
    """`params` moved by rounding level along `numbers`: the next evaluation must wait for them, and moves nothing."""
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(numbers))
    return jax.tree.map(lambda p: p * (1 + 1e-18 * total), params)


def loop_of(part):
    """A scan of 50 evaluations of `part(loss, params)`, each at parameters that depend on the result before."""

    def loop(loss, params):
        return lax.fori_loop(0, STEPS, lambda _, p: nudged(p, lax.optimization_barrier(part(loss, p))), params)

    return loop


def parts():
    """Pieces of one step, each doing what the one before does and one thing more; results are small, or reduced."""

    def linearize(loss, p):
        lin = loss.linearize(p)
        return lin.value, lin.grad

    def gram_matrix(loss, p):
        lin = loss.linearize(p)
        gram = lax.optimization_barrier(lin.jacobian.gram())
        return lin.value, lin.grad, gram[0, 0] + gram[-1, -1]

    def solved(loss, p):
        lin = loss.linearize(p)
        factor = factorize(lin.jacobian, jnp.asarray(1e-3))
        v = factor.from_residual(lin.residual)
        return lin, factor, v

    def one_solve(loss, p):
        lin, _, v = solved(loss, p)
        return lin.value, lin.grad, v

    def second(loss, p):
        lin, factor, v = solved(loss, p)
        a = factor.from_residual(second_derivative(loss.residual, p, v))
        return lin.value, lin.grad, v, a

    def trial(loss, p):
        value, grad, v, a = second(loss, p)
        return value, grad, v, loss(jax.tree.map(lambda x, y, z: x - 1e-3 * y + 1e-6 * z, p, v, a))

    return {
        "linearize": linearize,
        "gram": gram_matrix,
        "factor and solve": one_solve,
        "second derivative and solve": second,
        "trial loss": trial,
    }


class OptimistixStep:
    """`solver.step` of `optimistix.LevenbergMarquardt` as one jitted function of arrays."""

    def __init__(self, loss, params, solver, jac):
        self.options = {"jac": jac}
        # Zero tolerances: a solve that never ends by itself.
        self.method = optx.LevenbergMarquardt(rtol=0.0, atol=0.0, linear_solver=solver)
        self.loss = loss
        self.start = jax.jit(lambda loss, y: eqx.filter(self._fresh(loss, y)[1], eqx.is_array))(loss, params)
        begin = time.process_time()
        self.step = jax.jit(self._step)
        jax.block_until_ready(self.step(loss, params, self.start))
        self.first_call_s = time.process_time() - begin

    def _fresh(self, loss, y):  # traced anew wherever it is used: the state holds a jaxpr, compared by identity
        fn = eqx.filter_closure_convert(lambda y, args: (args.residual(y), None), y, loss)
        out = jax.eval_shape(lambda y: loss.residual(y), y)
        return fn, self.method.init(fn, y, loss, self.options, out, None, frozenset())

    def _step(self, loss, y, arrays):
        fn, fresh = self._fresh(loss, y)
        state = eqx.combine(arrays, eqx.filter(fresh, eqx.is_array, inverse=True))
        y, state, _ = self.method.step(fn, y, loss, self.options, state, frozenset())
        return y, eqx.filter(state, eqx.is_array), state.num_accepted_steps, state.y_eval

    def on(self, y, arrays):
        return lambda: jax.block_until_ready(self.step(self.loss, y, arrays))

    def states(self, y, after):
        """The first states from the attempted steps `after` on, from which one more step accepts its trial."""
        found, arrays, before = [], self.start, 0
        for count in range(max(after) + 50):
            new_y, new_arrays, accepted, _ = self.step(self.loss, y, arrays)
            if len(found) < len(after) and count >= after[len(found)] and int(accepted) > before:
                found.append((y, arrays))
            if len(found) == len(after):
                return found
            y, arrays, before = new_y, new_arrays, int(accepted)
        raise RuntimeError(f"optimistix accepted no step after {after} attempted ones.")


def direction(step):
    """The next trial step, as a flat vector."""
    y, _, _, trial = step()
    return np.concatenate([np.ravel(b - a) for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(trial), strict=True)])


def quartiles(values):
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "quartiles": [float(low), float(high)]}


def measure(repeats):
    problem = problems.get("poisson2d")
    params, static = eqx.partition(problem.model(jax.random.key(0)), eqx.is_inexact_array)
    batch = problem.batch()
    loss = problem.objective.bind(batch, static=static)
    calls, scale, first_call_s = {}, {}, {}

    def add(name, f, *args, evaluations=STEPS):
        calls[name], first_call_s[name] = jitted(f, *args)
        scale[name] = evaluations

    def gradient(loss, params):
        return jax.value_and_grad(loss)(params)

    def train(batch, params):
        r = so.train(params, problem.objective, so.levenberg_marquardt(), batch, steps=STEPS, static=static)
        return r.params, r.loss, r.history

    add("gradient", gradient, loss, params, evaluations=1)
    add("gradient in a loop", loop_of(gradient), loss, params)
    add("loss in a loop", loop_of(lambda loss, p: loss(p)), loss, params)
    add("levenberg_marquardt", lm_loop, loss, params)
    add("train", train, batch, params)
    for name, part in parts().items():
        add(name, loop_of(part), loss, params)
    accepted = int(calls["levenberg_marquardt"]()[2])

    backward = OptimistixStep(loss, params, lx.QR(), "bwd")
    ((y, arrays),) = backward.states(params, (1,))
    backward_ms = cpu_ms(backward.on(y, arrays), 3)
    default = OptimistixStep(loss, params, lx.QR(), "fwd")
    states = default.states(params, STATES)
    peers = {}  # name -> (attempted steps before, solver, relative difference of its step from that by QR)
    for solver_name, solver in SOLVERS.items():
        peer = OptimistixStep(loss, params, solver, "fwd")
        for after, (y, arrays) in zip(STATES, states, strict=True):
            name = f"optimistix {solver_name}, step {after}"
            calls[name], scale[name], first_call_s[name] = peer.on(y, arrays), 1, peer.first_call_s
            exact = direction(default.on(y, arrays))
            error = np.linalg.norm(direction(calls[name]) - exact) / np.linalg.norm(exact)
            peers[name] = (after, solver_name, float(error))

    count = {name: 2 if name in peers else STEPS // scale[name] for name in calls}
    times = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in list(calls)[:: -1 if repeat % 2 else 1]:
            times[name].append(cpu_ms(calls[name], count[name]) / scale[name])
    times = {name: np.array(values) for name, values in times.items()}

    lm = times["levenberg_marquardt"]
    ladder = list(parts())
    differences = {ladder[0]: quartiles(times[ladder[0]])}
    for before, after in itertools.pairwise(ladder):
        differences[after] = quartiles(times[after] - times[before])
    differences["the rest"] = quartiles(lm - times[ladder[-1]])
    ratios = {
        "step / gradient, one call": quartiles(lm / times["gradient"]),
        "step / gradient, in a loop": quartiles(lm / times["gradient in a loop"]),
        "step of so.train / gradient, one call": quartiles(times["train"] / times["gradient"]),
    }
    for after in STATES:
        here = [name for name, peer in peers.items() if peer[0] == after]
        best = min(here, key=lambda name: np.median(times[name]))
        direct = min((name for name in here if peers[name][2] < 1e-8), key=lambda name: np.median(times[name]))
        ratios[f"{direct} / step"] = quartiles(times[direct] / lm)
        if best != direct:
            ratios[f"{best} / step"] = quartiles(times[best] / lm)
    return {
        "net": "2-32-1",
        "parameters": 129,
        "points": [900, 120],
        "repeats": repeats,
        "steps_in_a_loop": STEPS,
        "accepted_steps": accepted,
        "cpu_ms": {name: quartiles(values) for name, values in times.items()},
        "first_call_cpu_s": first_call_s,
        "relative_difference_of_the_step_from_QR": {name: peer[2] for name, peer in peers.items()},
        "optimistix_backward_cpu_ms": backward_ms,
        "parts_cpu_ms": differences,
        "ratios": ratios,
    }


def whole_runs(steps=100):
    """CPU ms a step over a run of `steps` attempted steps, and the relative L2 error that it reaches."""
    problem = problems.get("poisson2d")
    params, static = eqx.partition(problem.model(jax.random.key(0)), eqx.is_inexact_array)
    loss = problem.objective.bind(problem.batch(), static=static)
    tx, rows = so.levenberg_marquardt(), {}

    @jax.jit
    def ours(params):
        return so.train(params, problem.objective, tx, problem.batch(), steps=steps, static=static).params

    def residual(params, loss):
        return loss.residual(params)

    def theirs(linear_solver):
        solver = optx.LevenbergMarquardt(rtol=0.0, atol=0.0, linear_solver=linear_solver)
        return lambda params: (
            optx.least_squares(residual, solver, params, args=loss, max_steps=steps, throw=False).value
        )

    runs = {"levenberg_marquardt": ours}
    for tolerance in (1e-6, 1e-3):
        runs[f"optimistix LSMR {tolerance:.0e}"] = theirs(lx.LSMR(tolerance, tolerance))
        runs[f"optimistix Normal(CG {tolerance:.0e})"] = theirs(lx.Normal(lx.CG(tolerance, tolerance)))
    for name, run in runs.items():
        error = float(problem.error(eqx.combine(run(params), static)))  # the first call compiles
        ms = [cpu_ms(lambda run=run: jax.block_until_ready(run(params)), 1) / steps for _ in range(5)]
        rows[name] = {"cpu_ms_a_step": quartiles(np.array(ms)), "error": error}
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    result = measure(args.repeats)
    print(f"{'CPU ms':<44} {'median':>8} {'quartiles':>18} {'first call s':>13} {'error of step':>14}")
    for name, row in result["cpu_ms"].items():
        error = result["relative_difference_of_the_step_from_QR"].get(name)
        error = "" if error is None else f"{error:14.0e}"
        print(f"{name:<44} {_row(row)} {result['first_call_cpu_s'][name]:13.1f} {error}")
    print(f"{'optimistix QR, jac=bwd (three calls)':<44} {result['optimistix_backward_cpu_ms']:8.0f}")
    print("\nparts of one step (differences of the loops above)")
    for name, row in result["parts_cpu_ms"].items():
        print(f"{name:<44} {_row(row)}")
    print(f"\n{result['accepted_steps']} of the {STEPS} steps were accepted")
    for name, row in result["ratios"].items():
        print(f"{name:<44} {_row(row)}")
    result["whole_runs"] = whole_runs()
    print("\nruns of 100 attempted steps: CPU ms a step, and the error reached")
    for name, row in result["whole_runs"].items():
        print(f"{name:<44} {_row(row['cpu_ms_a_step'])} {row['error']:14.1e}")
    if args.out:
        args.out.write_text(json.dumps({"jax": jax.__version__, **result}, indent=2) + "\n")


def _row(row):
    low, high = row["quartiles"]
    return f"{row['median']:8.3f} {f'[{low:.3f}, {high:.3f}]':>18}"


if __name__ == "__main__":
    main()
