"""The cost of one Levenberg-Marquardt step, in gradients and against `optimistix.LevenbergMarquardt`.

Problem `poisson2d`: MLP 2-32-1 (129 parameters), 900 interior and 120 boundary points, float64. Process CPU time of:

- `levenberg_marquardt`: one step with geodesic acceleration, inside a jitted scan of 50 steps of the optax protocol
  (`value_and_grad`, `tx.update`, `apply_updates`) from a fresh start; `train` is the same inside `so.train`, which
  also keeps history, terms and best iterate;
- `gradient`: one jitted call of `jax.value_and_grad(loss)`; `gradient in a loop`: one of 50 inside a jitted scan, each
  at parameters that depend on the one before, so that nothing can be hoisted;
- `optimistix`: one `solver.step` of `optimistix.LevenbergMarquardt` on the same whitened residual `loss.residual`,
  from a state whose trial is accepted, so that the residual is linearized anew and the damped system is solved with
  that Jacobian; for `jac` forward and backward and several linear solvers, of which the fastest is the denominator;
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
SOLVERS = {
    "QR": lx.QR(),
    "Auto(well_posed=None)": lx.AutoLinearSolver(well_posed=None),
    "SVD": lx.SVD(),
    "Normal(Cholesky)": lx.Normal(lx.Cholesky()),
    "Normal(CG 1e-6)": lx.Normal(lx.CG(rtol=1e-6, atol=1e-6)),
}
SLOW_MS = 500  # a candidate slower than this is left out after its first call: it cannot be the best


def compiled(f, *args):
    """The compiled `f`, called on `args`, and its tracing plus compile time in CPU seconds."""
    start = time.process_time()
    executable = jax.jit(f).lower(*args).compile()
    seconds = time.process_time() - start
    return (lambda: jax.block_until_ready(executable(*args))), seconds


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

    def ms_linearize(loss, p):
        lin = loss.linearize(p)
        return lin.value, lin.grad

    def ms_gram(loss, p):
        lin = loss.linearize(p)
        return lin.value, lin.grad, lax.optimization_barrier(lin.jacobian.gram())

    def ms_solve(loss, p):
        lin = loss.linearize(p)
        factor = factorize(lin.jacobian, jnp.asarray(1e-3))
        v = factor.from_residual(lin.residual)
        return lin, factor, v

    def one_solve(loss, p):
        lin, _, v = ms_solve(loss, p)
        return lin.value, lin.grad, v

    def second(loss, p):
        lin, factor, v = ms_solve(loss, p)
        a = factor.from_residual(second_derivative(loss.residual, p, v))
        return lin.value, lin.grad, v, a

    def trial(loss, p):
        value, grad, v, a = second(loss, p)
        return value, grad, v, loss(jax.tree.map(lambda x, y, z: x - 1e-3 * y + 1e-6 * z, p, v, a))

    return {
        "linearize": ms_linearize,
        "gram": ms_gram,
        "factor and solve": one_solve,
        "second derivative and solve": second,
        "trial loss": trial,
    }


def optimistix_step(loss, params, solver, jac):
    """One step with an accepted trial, as a compiled call: the state is two steps into a solve from `params`."""

    def fn(y, args):
        return args.residual(y), None

    options = {"jac": jac}
    # rtol = atol = 0 never ends a solve. Two steps: the first evaluates the start, the second judges its trial.
    method = optx.LevenbergMarquardt(rtol=0.0, atol=0.0, linear_solver=solver)
    out = jax.eval_shape(lambda y: fn(y, loss)[0], params)
    closed = eqx.filter_closure_convert(fn, params, loss)
    state = method.init(closed, params, loss, options, out, None, frozenset())
    dynamic, static = eqx.partition(state, eqx.is_array)

    def step(loss, y, dynamic):
        y, state, _ = method.step(closed, y, loss, options, eqx.combine(dynamic, static), frozenset())
        return y, eqx.filter(state, eqx.is_array), state.num_accepted_steps

    start = time.process_time()
    executable = jax.jit(step).lower(loss, params, dynamic).compile()
    seconds = time.process_time() - start
    y, before = params, 0
    for _ in range(20):  # until the NEXT step accepts its trial
        new_y, new_dynamic, count = executable(loss, y, dynamic)
        if before > 0 and int(count) > before:
            break
        y, dynamic, before = new_y, new_dynamic, int(count)
    else:
        return None, seconds
    return (lambda: jax.block_until_ready(executable(loss, y, dynamic))), seconds


def quartiles(values):
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {"median": float(middle), "quartiles": [float(low), float(high)]}


def measure(repeats):
    problem = problems.get("poisson2d")
    params, static = eqx.partition(problem.model(jax.random.key(0)), eqx.is_inexact_array)
    loss = problem.objective.bind(problem.batch(), static=static)
    calls, counts, compile_s = {}, {}, {}

    def add(name, f, *args, count=1):
        calls[name], compile_s[name] = compiled(f, *args)
        counts[name] = count

    add("gradient", lambda loss, p: jax.value_and_grad(loss)(p), loss, params, count=STEPS)
    add("gradient in a loop", loop_of(lambda loss, p: jax.value_and_grad(loss)(p)), loss, params)
    add("loss in a loop", loop_of(lambda loss, p: loss(p)), loss, params)
    add("levenberg_marquardt", lm_loop, loss, params)
    batch = problem.batch()

    def train(batch, params):
        r = so.train(params, problem.objective, so.levenberg_marquardt(), batch, steps=STEPS, static=static)
        return r.params, r.loss, r.history

    add("train", train, batch, params)
    for name, part in parts().items():
        add(name, loop_of(part), loss, params)
    accepted = int(calls["levenberg_marquardt"]()[2])

    left_out = {}
    for solver_name, solver in SOLVERS.items():
        for jac in ("fwd", "bwd"):
            name = f"optimistix {solver_name} {jac}"
            call, compile_s[name] = optimistix_step(loss, params, solver, jac)
            if call is None:
                left_out[name] = "no accepted step in 20"
                continue
            call()
            once = cpu_ms(call, 1)
            if once > SLOW_MS:
                left_out[name] = f"{once:.0f} ms in one call"
            else:
                calls[name], counts[name] = call, 2
    in_loop = {n for n in calls if counts[n] == 1}

    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for repeat in range(repeats):
        for name in list(calls)[:: -1 if repeat % 2 else 1]:
            times[name].append(cpu_ms(calls[name], counts[name]) / (STEPS if name in in_loop else 1))
    times = {name: np.array(values) for name, values in times.items()}

    peers = [name for name in times if name.startswith("optimistix")]
    best = min(peers, key=lambda name: np.median(times[name]))
    lm = times["levenberg_marquardt"]
    ladder = list(parts())
    steps_of_ladder = {ladder[0]: quartiles(times[ladder[0]])}
    for before, after in zip(ladder[:-1], ladder[1:], strict=True):
        steps_of_ladder[after] = quartiles(times[after] - times[before])
    steps_of_ladder["the rest (info, gain ratio, damping)"] = quartiles(lm - times[ladder[-1]])
    return {
        "net": "2-32-1",
        "parameters": 129,
        "points": [900, 120],
        "repeats": repeats,
        "steps_in_a_loop": STEPS,
        "accepted_steps": accepted,
        "cpu_ms": {name: quartiles(values) for name, values in times.items()},
        "compile_cpu_s": compile_s,
        "parts_cpu_ms": steps_of_ladder,
        "gradients_a_step": quartiles(lm / times["gradient"]),
        "gradients_a_step_in_a_loop": quartiles(lm / times["gradient in a loop"]),
        "gradients_a_step_of_train": quartiles(times["train"] / times["gradient"]),
        "best_optimistix": best,
        "optimistix_steps_a_step": quartiles(times[best] / lm),
        "left_out": left_out,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    result = measure(args.repeats)
    print(f"{'CPU ms':<44} {'median':>8} {'quartiles':>18} {'compile s':>10}")
    for name, row in result["cpu_ms"].items():
        print(f"{name:<44} {_row(row)} {result['compile_cpu_s'][name]:10.1f}")
    for name, why in result["left_out"].items():
        print(f"{name:<44} left out: {why}")
    print("\nparts of one step (differences of the loops above)")
    for name, row in result["parts_cpu_ms"].items():
        print(f"{name:<44} {_row(row)}")
    print(f"\n{result['accepted_steps']} of the {STEPS} steps were accepted")
    for text, key in (
        ("one step / one gradient (one call)", "gradients_a_step"),
        ("one step / one gradient (in a loop)", "gradients_a_step_in_a_loop"),
        ("one step of so.train / one gradient", "gradients_a_step_of_train"),
        (f"{result['best_optimistix']} / one step", "optimistix_steps_a_step"),
    ):
        print(f"{text:<44} {_row(result[key])}")
    if args.out:
        args.out.write_text(json.dumps({"jax": jax.__version__, **result}, indent=2) + "\n")


def _row(row):
    low, high = row["quartiles"]
    return f"{row['median']:8.3f} {f'[{low:.3f}, {high:.3f}]':>18}"


if __name__ == "__main__":
    main()
