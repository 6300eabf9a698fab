"""Parameter gradient of a Laplacian residual: `sciml_opt.calculus.laplacian` against the trace of `jax.hessian`.

    L = 0.5 mean_i (laplacian u(x_i))^2,   u = MLP d-64-64-1 (tanh), N = 1000, float64, one core

Process CPU time of `jax.jit(jax.grad(L))`, one call of each a repeat, the order swapped every repeat; the ratio is
taken within each repeat, so that a slow spell of a shared machine hits both.

    python benchmarks/laplacian_gradient.py --out laplacian_gradient.json
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # before jax is imported: one core, CPU time = work
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from sciml_opt.calculus import laplacian

jax.config.update("jax_enable_x64", True)

OPERATORS = {
    "laplacian": laplacian,
    "hessian": lambda u: lambda x: jnp.trace(jax.hessian(u)(x)),
}


def compile_gradient(operator, model, points):
    """The compiled gradient, its tracing plus compile time in wall seconds, and its value."""
    params, static = eqx.partition(model, eqx.is_array)

    def loss(params, points):
        return 0.5 * jnp.mean(jax.vmap(operator(eqx.combine(params, static)))(points) ** 2)

    start = time.perf_counter()
    gradient = jax.jit(jax.grad(loss)).lower(params, points).compile()
    seconds = time.perf_counter() - start
    return (lambda: jax.block_until_ready(gradient(params, points))), seconds


def cpu_ms(f):
    start = time.process_time()
    f()
    return 1e3 * (time.process_time() - start)


def measure(d, width, points, repeats):
    model = eqx.nn.MLP(d, "scalar", width, 2, jnp.tanh, key=jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (points, d))
    gradients, compile_s = {}, {}
    for name, operator in OPERATORS.items():
        gradients[name], compile_s[name] = compile_gradient(operator, model, x)
    leaves = [np.concatenate([np.ravel(g) for g in jax.tree.leaves(f())]) for f in gradients.values()]
    error = float(np.max(np.abs(leaves[0] - leaves[1])) / np.max(np.abs(leaves[1])))
    times = {name: [] for name in gradients}
    for repeat in range(repeats):
        for name in sorted(gradients, reverse=repeat % 2 == 1):
            times[name].append(cpu_ms(gradients[name]))
    ratios = np.array(times["laplacian"]) / np.array(times["hessian"])
    quartiles = np.percentile(ratios, [25, 50, 75])
    return {
        "net": f"{d}-{width}-{width}-1",
        "points": points,
        "repeats": repeats,
        "cpu_ms_median": {name: float(np.median(t)) for name, t in times.items()},
        "compile_s": compile_s,
        "ratio_median": float(quartiles[1]),
        "ratio_quartiles": [float(quartiles[0]), float(quartiles[2])],
        "ratio_range": [float(ratios.min()), float(ratios.max())],
        "relative_difference_of_gradients": error,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--points", type=int, default=1000)
    args = parser.parse_args()
    rows = [measure(d, 64, args.points, args.repeats) for d in (2, 5)]
    head = f"{'net':>12} {'laplacian ms':>13} {'hessian ms':>11} {'ratio [quartiles]':>22} {'compile s':>12}"
    print(f"{head} {'rel diff':>9}")
    for r in rows:
        ms, s, q = r["cpu_ms_median"], r["compile_s"], r["ratio_quartiles"]
        ratio = f"{r['ratio_median']:.3f} [{q[0]:.3f}, {q[1]:.3f}]"
        compiled = f"{s['laplacian']:.1f} / {s['hessian']:.1f}"
        error = r["relative_difference_of_gradients"]
        print(f"{r['net']:>12} {ms['laplacian']:13.2f} {ms['hessian']:11.2f} {ratio:>22} {compiled:>12} {error:9.1e}")
    if args.out:
        args.out.write_text(json.dumps({"jax": jax.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
