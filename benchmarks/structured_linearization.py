"""What the structured linearization costs: against a gradient, against explicit rows, and up to a million parameters.

Residual of the 2-D Poisson equation by the forward Laplacian, MLP 2-w-...-w-1 (tanh), N = 1000 points, float64, one
core. Process CPU time, medians; what is compared runs in one process, in one order and then in the other, and ratios
are taken within each repeat.

- `gradient`: value, gradient and factors (`loss.linearize`) over `jax.value_and_grad(loss)`, both inside a compiled
  loop (where training runs them) and as single calls (which allocate their results anew);
- `kernel`: `J J^T` from the factors, linearization included, against `vmap(grad)` rows and their product; memory of
  both programs (temporaries and results) by XLA's own analysis;
- `product`: `J J^T w` on given factors against a vjp and a jvp of the residual;
- `step`: a Levenberg-Marquardt step against the same step on explicit rows by `vmap(grad)`, problem `poisson2d`;
- `choice`: the form that the cost model picks against both forms, for kernel, `J^T J` and products;
- `million`: a Levenberg-Marquardt step of 2-580-580-580-580-1 in a process of its own: memory by XLA's analysis, and
  the peak resident size;
- `compile`: a Levenberg-Marquardt training program against one of Adam on the same loss.

    python benchmarks/structured_linearization.py --out structured_linearization.json
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # before jax is imported: one core, CPU time = work
os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import sciml_opt as so
from sciml_opt.linearization import Linearization, StructuredJacobian, _rows
from sciml_opt.methods import LevenbergMarquardtMethod

jax.config.update("jax_enable_x64", True)

POINTS = 1000


def residual(u, x):
    return so.laplacian(u)(x) + 2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * x))


def problem(*layers):
    """`params, loss, points, f` with the per-point residual `f(params, x)`."""
    params, static = eqx.partition(so.models.MLP(2, layers=layers, key=jax.random.key(0)), eqx.is_inexact_array)
    points = jax.random.uniform(jax.random.key(1), (POINTS, 2))
    loss = so.Objective(interior=so.Term(residual)).bind({"interior": points}, static=static)
    return params, loss, points, lambda p, x: residual(eqx.combine(p, static), x)


def explicit_rows(f, params, points):
    gradients = jax.vmap(jax.grad(f), (None, 0))(params, points)
    return jnp.concatenate([leaf.reshape(len(points), -1) for leaf in jax.tree.leaves(gradients)], axis=1)


def compiled(f, *args):
    """The program and a call that waits for it."""
    program = jax.jit(f).lower(*args).compile()
    jax.block_until_ready(program(*args))
    return program, lambda: jax.block_until_ready(program(*args))


def looped(part, params, length):
    """`length` evaluations of `part(params)` in one program, each at parameters that wait for the one before."""

    def body(_, p):
        value, grad, *_ = lax.optimization_barrier(part(p))
        total = value + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(grad))
        return jax.tree.map(lambda leaf: leaf * (1 + 1e-18 * total), p)

    return compiled(lambda p: lax.fori_loop(0, length, body, p), params)[1]


def race(first, second, repeats, calls=1):
    """Quartiles of the ratio of CPU times `first / second`, and the median milliseconds of both."""
    times = np.zeros((repeats, 2))
    for repeat in range(repeats):
        for side in (0, 1) if repeat % 2 else (1, 0):
            start = time.process_time()
            for _ in range(calls):
                (first, second)[side]()
            times[repeat, side] = 1e3 * (time.process_time() - start) / calls
    quartiles = np.percentile(times[:, 0] / times[:, 1], [25, 50, 75])
    return {"ratio": [float(q) for q in quartiles], "ms": [float(t) for t in np.median(times, axis=0)]}


def net(*layers):
    return "-".join(map(str, (2, *layers, 1)))


def gradient(repeats):
    rows = []
    for width in (32, 64, 128, 256, 512):
        params, loss, _, _ = problem(width, width)

        def linearize(p, loss=loss):
            lin = loss.linearize(p)
            return lin.value, lin.grad, lin

        length = max(2, 1280 // width)
        both = [looped(part, params, length) for part in (linearize, jax.value_and_grad(loss))]
        row = {"net": net(width, width), **race(*both, repeats)}
        row["ms"] = [ms / length for ms in row["ms"]]
        single = [compiled(part, params)[1] for part in (loss.linearize, jax.value_and_grad(loss))]
        row["single"] = race(*single, repeats, max(1, 256 // width))
        rows.append(row)
        single_ratio = row["single"]["ratio"][1]
        print(f"gradient {row['net']:>14}: linearize / value_and_grad {show(row)}; single calls {single_ratio:.2f}")
    return rows


def kernel(repeats):
    rows = []
    for layers in ((64, 64, 64), (256, 256, 256)):
        params, loss, points, f = problem(*layers)

        def dense(p, f=f, points=points):
            J = explicit_rows(f, p, points) / POINTS**0.5
            return J @ J.T

        def factored(p, loss=loss):
            return loss.linearize(p).jacobian.kernel()

        (ours, call), (theirs, other) = compiled(factored, params), compiled(dense, params)
        difference = jnp.max(jnp.abs(ours(params) - theirs(params))) / jnp.max(jnp.abs(theirs(params)))
        row = {"net": net(*layers), **race(other, call, repeats), "relative_difference": float(difference)}
        row["megabytes"] = [megabytes(theirs), megabytes(ours)]
        rows.append(row)
        memory = " against ".join(f"{m:.0f} MB" for m in row["megabytes"])
        print(f"kernel {row['net']:>16}: rows / factors {show(row)}; {memory}")
    return rows


def megabytes(program):
    memory = program.memory_analysis()
    return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6


def product(repeats):
    rows = []
    for layers in ((64, 64), (64, 64, 64), (128, 128), (256, 256)):
        params, loss, _, _ = problem(*layers)
        J = jax.jit(lambda p, loss=loss: loss.linearize(p).jacobian)(params)
        w = jnp.cos(jnp.arange(POINTS))

        def by_derivatives(p, w, loss=loss):
            _, pull = jax.vjp(loss.residual, p)
            return jax.jvp(loss.residual, (p,), pull(w))[1]

        ours = compiled(lambda J, w: J.mv(J.rmv(w)), J, w)[1]
        row = {"net": net(*layers), **race(ours, compiled(by_derivatives, params, w)[1], repeats)}
        rows.append(row)
        print(f"product {row['net']:>15}: J J^T w on the factors / vjp and jvp {show(row)}")
    return rows


class ExplicitJacobian(StructuredJacobian):
    """Explicit rows, and one matrix product for `J J^T` or `J^T J`."""

    def gram(self, weights=None, **_):
        assert weights is None
        rows = self.as_matrix().T
        return rows @ rows.T

    def kernel(self, inverse_scale=None, **_):
        assert inverse_scale is None
        rows = self.as_matrix()
        return rows @ rows.T


class ExplicitLoss(eqx.Module):
    """A bound objective whose Jacobian is made of explicit rows, one `vmap(grad)` a term."""

    loss: so.BoundObjective

    def __call__(self, params):
        return self.loss(params)

    def residual(self, params):
        return self.loss.residual(params)

    def linearize(self, params):
        columns, values, whitened = [], [], []
        for block in self.loss._blocks(params).values():
            scale = jnp.sqrt(block.weights)

            def one(point, block=block):
                z, pull = jax.vjp(lambda p: block.inner(p, point), params)
                return z[0], pull(jnp.ones(1))[0]

            z, gradients = jax.vmap(one, out_axes=(0, -1))(block.points)
            leaves = [leaf.reshape(-1, len(z)) for leaf in jax.tree.leaves(gradients)]
            columns.append(jnp.concatenate(leaves) * scale)
            whitened.append(scale * z)
            values.append(0.5 * jnp.sum((scale * z) ** 2))
        jacobian = ExplicitJacobian(jnp.concatenate(columns, axis=1), params)
        rho = jnp.concatenate(whitened)
        return Linearization(sum(values), jacobian.rmv(rho), rho, jacobian, jnp.zeros((), jnp.int32))


def step(repeats):
    rows, length, method = [], 20, LevenbergMarquardtMethod()

    def run(params, loss):
        def one(_, carry):
            update, state = method.step(loss, *carry)
            return jax.tree.map(jnp.add, carry[0], update), state

        return lax.fori_loop(0, length, one, (params, method.init(params)))[1].info.loss

    for layers in ((32,), (32, 32)):
        poisson = so.problems.get("poisson2d")
        params, static = eqx.partition(poisson.model(jax.random.key(0), layers), eqx.is_inexact_array)
        loss = poisson.objective.bind(poisson.batch(), static=static)
        (ours, call), (theirs, other) = (compiled(run, params, form) for form in (loss, ExplicitLoss(loss)))
        row = {"net": net(*layers), **race(other, call, repeats)}
        row["ms"] = [ms / length for ms in row["ms"]]
        row["losses"] = [float(theirs(params, ExplicitLoss(loss))), float(ours(params, loss))]
        rows.append(row)
        print(f"step {row['net']:>18}: explicit rows / ours {show(row)}; losses {row['losses']}")
    return rows


def choice(repeats):
    """The cost model against measurement: each operation in the chosen form, as explicit rows, and as factors."""
    rows = []
    for layers in ((16, 16), (24, 24), (32, 32), (48, 48), (64, 64), (96, 96), (128, 128)):
        params, loss, _, _ = problem(*layers)
        J = jax.jit(lambda p, loss=loss: loss.linearize(p).jacobian)(params)
        rows_of_J = StructuredJacobian(J.as_matrix().T, params)
        w = jnp.cos(jnp.arange(POINTS))
        calls = {"kernel": {"chosen": compiled(lambda J: J.kernel(), J)[1]}}
        reduction, _rows.REDUCTION = _rows.REDUCTION, -1e9
        calls["kernel"]["factors"] = compiled(lambda J: J.kernel(), J)[1]
        _rows.REDUCTION = 1e9
        calls["kernel"]["rows"] = compiled(lambda J: J.kernel(), J)[1]
        _rows.REDUCTION = reduction
        calls["product"] = {
            "chosen": compiled(lambda J, w: J.mv(J.rmv(w)), J.for_products(), w)[1],
            "factors": compiled(lambda J, w: J.mv(J.rmv(w)), J, w)[1],
            "rows": compiled(lambda J, w: J.mv(J.rmv(w)), rows_of_J, w)[1],
        }
        for operation, forms in calls.items():
            times = {name: [] for name in forms}
            for repeat in range(repeats):
                for name in sorted(forms, reverse=repeat % 2 == 1):
                    start = time.process_time()
                    for _ in range(3):
                        forms[name]()
                    times[name].append(1e3 * (time.process_time() - start) / 3)
            best = np.min([times[name] for name in forms if name != "chosen"], axis=0)
            ratio = float(np.median(np.array(times["chosen"]) / best))
            milliseconds = {name: float(np.median(t)) for name, t in times.items()}
            rows.append({"net": net(*layers), "operation": operation, "ms": milliseconds, "chosen_over_best": ratio})
            shown = ", ".join(f"{name} {t:.2f}" for name, t in milliseconds.items())
            print(f"choice {net(*layers):>14} {operation:>8}: chosen / best {ratio:.2f}  (ms: {shown})")
    return rows


def million_step():
    """Runs in a process of its own, so that the peak resident size is its own."""
    params, loss, _, _ = problem(580, 580, 580, 580)
    method = LevenbergMarquardtMethod()
    state = method.init(params)
    program = jax.jit(lambda p, s: method.step(loss, p, s)).lower(params, state).compile()
    seconds = []
    for _ in range(3):
        start = time.process_time()
        update, state = jax.block_until_ready(program(params, state))
        params = jax.tree.map(jnp.add, params, update)
        seconds.append(time.process_time() - start)
    memory = program.memory_analysis()
    sizes = (memory.temp_size_in_bytes, memory.output_size_in_bytes, memory.argument_size_in_bytes)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "cpu_seconds_first_step": seconds[0],
        "cpu_seconds_a_step": float(np.median(seconds[1:])),
        "xla_gigabytes": sum(sizes) / 1e9,
        "peak_resident_gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "dense_jacobian_gigabytes": POINTS * sum(leaf.size for leaf in jax.tree.leaves(params)) * 8 / 1e9,
    }


def million(repeats):
    del repeats
    out = subprocess.run([sys.executable, __file__, "--million-step"], check=True, capture_output=True, text=True)
    row = json.loads(out.stdout.splitlines()[-1])
    print("million:", ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return row


def compile_time(repeats):
    """CPU seconds of tracing, lowering and compiling 100 steps."""
    rows = []
    for layers in ((32,), (32, 32), (64, 64, 64)):
        params, loss, _, _ = problem(*layers)
        seconds = {}
        for name, tx in {"adam": optax.adam(1e-3), "levenberg_marquardt": so.levenberg_marquardt()}.items():

            def train(params, tx=tx, loss=loss):
                def one(_, carry):
                    p, s = carry
                    value, grad = jax.value_and_grad(loss)(p)
                    extra = dict(value=value, grad=grad, value_fn=loss)
                    updates, s = optax.with_extra_args_support(tx).update(grad, s, p, **extra)
                    return optax.apply_updates(p, updates), s

                return lax.fori_loop(0, 100, one, (params, tx.init(params)))[0]

            times = []
            for _ in range(min(repeats, 5)):
                jax.clear_caches()
                start = time.process_time()
                jax.jit(train).lower(params).compile()
                times.append(time.process_time() - start)
            seconds[name] = float(np.median(times))
        bound = 1.5 * seconds["adam"] + 3
        rows.append({"net": net(*layers), "seconds": seconds, "bound": bound})
        shown = ", ".join(f"{name} {t:.1f} s" for name, t in seconds.items())
        print(f"compile {net(*layers):>15}: {shown}; 1.5 x Adam + 3 s = {bound:.1f} s")
    return rows


def show(row):
    low, median, high = row["ratio"]
    return f"{median:.2f} [{low:.2f}, {high:.2f}] (ms: {row['ms'][0]:.2f} / {row['ms'][1]:.2f})"


PARTS = {
    "gradient": gradient,
    "kernel": kernel,
    "product": product,
    "step": step,
    "choice": choice,
    "million": million,
    "compile": compile_time,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--million-step", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.million_step:
        print(json.dumps(million_step()))
        return
    figures = {name: PARTS[name](args.repeats) for name in args.only}
    if args.out:
        args.out.write_text(json.dumps({"jax": jax.__version__, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
