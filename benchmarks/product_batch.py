"""A DeepONet on a product batch against the same pairs as points of an ordinary term.

    z_ij = branch(f_i) . trunk(y_j) - target_ij,   branch MLP 100-w-w-p, trunk MLP 1-w-w-p (tanh), float64, one core

Process CPU time of the compiled operation, one call of each a repeat, the order swapped every repeat; the ratio (pairs
as points / product batch) is taken within each repeat, so that a slow spell of a shared machine hits both. `J J^T w`,
kernel and gram are measured on the finished linearization.

    python benchmarks/product_batch.py --out product_batch.json
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # before jax is imported: one core, CPU time = work
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import sciml_opt as so

jax.config.update("jax_enable_x64", True)

SENSORS = 100
PRODUCTS = ("value and gradient", "linearize", "J J^T w")


def branch(model, f):
    return model["branch"](f)


def trunk(model, y):
    return model["trunk"](y)


def trunk_slope(model, y):
    return jax.jvp(model["trunk"], (y,), (jnp.ones_like(y),))[1]


def losses(functions, queries, outputs, width, right):
    """`params` and the loss in both forms."""
    keys = jax.random.split(jax.random.key(0), 5)
    model = {
        "branch": eqx.nn.MLP(SENSORS, outputs, width, 2, jnp.tanh, key=keys[0]),
        "trunk": eqx.nn.MLP(1, outputs, width, 2, jnp.tanh, key=keys[1]),
    }
    params, static = eqx.partition(model, eqx.is_inexact_array)
    f = jax.random.normal(keys[2], (functions, SENSORS))
    y = jax.random.uniform(keys[3], (queries, 1))
    target = jax.random.normal(keys[4], (functions, queries))
    product = so.Product(branch, right)
    i, j = np.indices((functions, queries)).reshape(2, -1)
    terms = {"product": so.Term(product), "points": so.Term(lambda model, x: product(model, x))}
    batches = {"product": so.ProductBatch(f, y, target), "points": (f[i], y[j], target.reshape(-1))}
    bind = {form: so.Objective(t=terms[form]).bind({"t": batches[form]}, static=static) for form in terms}
    return params, bind


def compile_operation(operation, loss, params):
    """A call of the compiled operation, which blocks and returns its result."""
    if operation == "value and gradient":
        args, f = (params,), jax.value_and_grad(loss)
    elif operation == "linearize":
        args, f = (params,), loss.linearize
    else:
        jacobian = jax.jit(lambda params: loss.linearize(params).jacobian)(params)
        w = jax.random.normal(jax.random.key(9), jacobian.out_structure().shape)
        args = (jacobian, w)
        f = {
            "J J^T w": lambda jacobian, w: jacobian.mv(jacobian.rmv(w)),
            "kernel": lambda jacobian, w: jacobian.kernel(),
            "gram": lambda jacobian, w: jacobian.gram(),
        }[operation]
    compiled = jax.jit(f).lower(*args).compile()
    return lambda: jax.block_until_ready(compiled(*args))


def cpu_ms(f):
    start = time.process_time()
    f()
    return 1e3 * (time.process_time() - start)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def measure(name, operation, params, bind, repeats):
    calls = {form: compile_operation(operation, loss, params) for form, loss in bind.items()}
    difference = None
    if operation != "linearize":
        a, b = (flat(calls[form]()) for form in ("product", "points"))
        difference = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
    times = {form: [] for form in calls}
    for repeat in range(repeats):
        for form in sorted(calls, reverse=repeat % 2 == 1):
            times[form].append(cpu_ms(calls[form]))
    quartiles = np.percentile(np.array(times["points"]) / np.array(times["product"]), [25, 50, 75])
    return {
        "problem": name,
        "operation": operation,
        "repeats": repeats,
        "cpu_ms_median": {form: float(np.median(t)) for form, t in times.items()},
        "ratio_median": float(quartiles[1]),
        "ratio_quartiles": [float(quartiles[0]), float(quartiles[2])],
        "relative_difference": difference,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the figures to this JSON file")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    problems = [  # functions, queries, outputs, width, right map, operations
        (100, 50, 20, 64, trunk, (*PRODUCTS, "kernel")),
        (100, 50, 50, 64, trunk, (*PRODUCTS, "kernel")),
        (100, 50, 20, 64, trunk_slope, (*PRODUCTS, "kernel")),
        (100, 50, 20, 20, trunk, ("gram",)),
        (500, 50, 20, 64, trunk, PRODUCTS),
        (500, 50, 20, 20, trunk, ("gram",)),
    ]
    head = f"{'problem':>36} {'operation':>20} {'product ms':>11} {'points ms':>10} {'ratio [quartiles]':>22}"
    print(f"{head} {'rel diff':>9}")
    rows = []
    for functions, queries, outputs, width, right, operations in problems:
        name = f"{functions} x {queries}, p = {outputs}, w = {width}" + ", slope" * (right is trunk_slope)
        params, bind = losses(functions, queries, outputs, width, right)
        for operation in operations:
            repeats = args.repeats if operation not in ("kernel", "gram") else max(2, args.repeats // 3)
            r = measure(name, operation, params, bind, repeats)
            rows.append(r)
            ms, (low, high) = r["cpu_ms_median"], r["ratio_quartiles"]
            ratio = f"{r['ratio_median']:.2f} [{low:.2f}, {high:.2f}]"
            difference = "" if r["relative_difference"] is None else f"{r['relative_difference']:.1e}"
            print(
                f"{name:>36} {operation:>20} {ms['product']:11.1f} {ms['points']:10.1f} {ratio:>22} {difference:>9}",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps({"jax": jax.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
