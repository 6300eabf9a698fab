"""Stochastic methods: where variance reduction wins, and where the noise was never the problem.

python benchmarks/stochastic.py photographs | pinn | show        (some minutes each; results/stochastic.json)

photographs: regularised logistic regression on n = 10,000 patches (8 x 8 pixels) of the two photographs that
scikit-learn ships: which one does a patch come from? Features: mean and standard deviation of each colour,
standardised, and a constant; L2 weight 1/n. Loss above the least (Newton's method) against passes: evaluations of the
loss or the gradient of one point, over n. 500 blocks of 20 points, 100 passes, five seeds; each method at the best of
eight values of its one number, by the median (a rate of the grid `RATES`; of the regularised gradient
its least weight).

pinn: the problem poisson2d (900 interior points, 120 on the boundary, 2-32-1) in 10 blocks of 90 + 12, loss on all
points against passes, where a step of Levenberg-Marquardt counts as four (gradient, linearization, second derivative,
trial); each at the best of its rates, five seeds; median over the last ten records.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_sample_images

import sciml_opt as so
from sciml_opt import problems

jax.config.update("jax_enable_x64", True)

RATES = (0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
WEIGHTS = (1e-8, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
COUNTS = (500, 200, 100, 50, 20, 10, 5, 2, 1)  # blocks, as the minibatches grow
PASSES, BLOCKS, SEEDS = 100, 500, 5
PINN_PASSES, PINN_BLOCKS = 3000, 10
PINN_RATES = (1e-3, 3e-3, 1e-2)
FILE = Path(__file__).parent / "results" / "stochastic.json"


def photographs(n=10_000, side=8):
    """`(n, 7)` features and `(n,)` labels -1 or 1, from patches at random places."""
    rng, features = np.random.default_rng(0), []
    for image in load_sample_images().images:
        height, width, _ = image.shape
        corners = rng.choice((height - side) * (width - side), n // 2, replace=False)
        rows, columns = (corner[:, None, None] for corner in np.divmod(corners, width - side))
        patches = image[rows + np.arange(side)[:, None], columns + np.arange(side)] / 255
        features.append(np.concatenate([patches.mean((1, 2)), patches.std((1, 2))], axis=1))
    x = np.concatenate(features)
    return np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((n, 1))], axis=1), np.repeat([-1.0, 1.0], n // 2)


def logistic_objective(n):
    def margin(w, point):
        x, y = point
        return jnp.append(y * jnp.dot(x, w), w)

    def density(z, point):
        return jax.nn.softplus(-z[0]) + jnp.sum(z[1:] ** 2) / (2 * n)

    return so.Objective(data=so.Term(margin, outer=density))


def least(x, y):
    """The least value, and the condition number there, by Newton's method."""
    n, w = len(y), np.zeros(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(y * (x @ w)))
        hessian = (x.T * (p * (1 - p))) @ x / n + np.eye(len(w)) / n
        w = w - np.linalg.solve(hessian, -x.T @ (y * p) / n + w / n)
    accuracy = np.mean(y * (x @ w) > 0)
    return np.mean(np.logaddexp(0, -y * (x @ w))) + w @ w / (2 * n), np.linalg.cond(hessian), accuracy


def one_step(tx, params, state, loss):
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
    return optax.apply_updates(params, updates), state


def scan_blocks(objective, blocks, tx, carry, key, steps):
    def body(carry, key):
        return one_step(tx, *carry, objective.bind(blocks(key))), None

    return jax.lax.scan(body, carry, jax.random.split(key, steps))[0]


def first(passes, gaps, target):
    """Passes after which the gap stays below the target; None if it does not get there."""
    below = np.maximum.accumulate(gaps[::-1])[::-1] < target
    return float(passes[np.argmax(below)]) if below.any() else None


def slope(passes, gaps):
    """Decades a pass between gaps of 1e-3 and 1e-10, by least squares; None if fewer than three points lie there."""
    inside = (gaps < 1e-3) & (gaps > 1e-10)
    return float(np.polyfit(passes[inside], np.log10(gaps[inside]), 1)[0]) if np.sum(inside) > 2 else None


class Photographs:
    """The problem, and curves `(passes, gaps)` of one method at one value of its number, a seed each."""

    def __init__(self):
        x, y = photographs()
        self.least, self.condition, self.accuracy = least(x, y)
        self.batch = {"data": (x, y)}
        self.objective = logistic_objective(len(y))
        self.loss = self.objective.bind(self.batch)
        self.blocks = {count: so.Blocks(self.batch, count) for count in COUNTS}
        self.start = jnp.zeros(x.shape[1])
        self.keys = jax.random.split(jax.random.key(0), SEEDS)

    def fixed(self, make, cost, average=False):
        """Blocks of fixed size; `cost`, passes an epoch."""

        def curve(number, key):
            tx = optax.with_extra_args_support(make(number))

            def epoch(carry, key):
                carry = scan_blocks(self.objective, self.blocks[BLOCKS], tx, carry, key, BLOCKS)
                point = so.average(carry[1]) if average else carry[0]
                return carry, self.loss(point) - self.least

            epochs = int(PASSES / cost)
            return jax.lax.scan(epoch, (self.start, tx.init(self.start)), jax.random.split(key, epochs))[1]

        curves = jax.jit(jax.vmap(curve, (None, 0)))
        passes = cost * np.arange(1, int(PASSES / cost) + 1)
        return lambda number: [(passes, np.asarray(gaps)) for gaps in curves(number, self.keys)]

    def growing(self, make, cost, counts=COUNTS):
        """The blocks grow when the norm test fails on the next one; a test costs one gradient of a block."""

        @jax.jit
        def tests(number, carry, key):
            return {
                count: so.norm_test(self.objective.bind(blocks(key)), carry[0])
                for count, blocks in self.blocks.items()
                if count > 1
            }

        def advance(count, number, carry, key):  # about a tenth of the data
            tx = optax.with_extra_args_support(make(number))
            carry = scan_blocks(self.objective, self.blocks[count], tx, carry, key, max(1, count // 10))
            return carry, self.loss(carry[0]) - self.least

        advance = jax.jit(advance, static_argnums=0)

        def curve(number, key):
            carry = self.start, make(number).init(self.start)
            rest, passes, spent, gaps = list(counts), [], 0.0, []
            while spent < PASSES:
                key, step_key, test_key = jax.random.split(key, 3)
                carry, gap = advance(rest[0], number, carry, step_key)
                spent += cost * max(1, rest[0] // 10) / rest[0]
                if len(rest) > 1:
                    spent += 1 / rest[0]
                    if not tests(number, carry, test_key)[rest[0]]:
                        rest.pop(0)
                passes.append(spent)
                gaps.append(float(gap))
            return np.array(passes), np.array(gaps)

        return lambda number: [curve(number, key) for key in self.keys]

    def lbfgs(self, counts=(1,)):
        """With a line search on each block, which grows when the norm test fails on it.

        A trial costs a gradient of the block; so do the first gradient on a new block, and a test.
        """
        tx = so.lbfgs(10)

        @partial(jax.jit, static_argnums=0)
        def step(count, params, state, key):
            loss = self.objective.bind(self.blocks[count](key))
            whole = count == 1
            evaluate = optax.value_and_grad_from_state(loss) if whole else jax.value_and_grad(loss)
            value, grad = evaluate(params, state=state) if whole else evaluate(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            params = optax.apply_updates(params, updates)
            passed = jnp.array(True) if whole else so.norm_test(loss, params)
            return params, state, self.loss(params) - self.least, so.info(state).gradients, passed

        def curve(key):
            params, state, rest, spent, passes, gaps = self.start, tx.init(self.start), list(counts), 0.0, [], []
            spent = 1.0 if rest == [1] else 0.0
            while spent < PASSES:
                key, step_key = jax.random.split(key)
                params, state, gap, trials, passed = step(rest[0], params, state, step_key)
                spent += (float(trials) + 2 * (rest[0] > 1)) / rest[0]
                if not passed:
                    rest.pop(0)
                    if rest == [1]:  # what the state carries is of the last block
                        state, spent = state._replace(value=jnp.full_like(state.value, jnp.inf)), spent + 1
                passes.append(spent)
                gaps.append(float(gap))
            return np.array(passes), np.array(gaps)

        return [curve(key) for key in self.keys]

    def run(self):
        every = 2 * BLOCKS

        def decreasing(rate):
            return optax.sgd(lambda step: rate / (1 + step / (5 * BLOCKS)))

        methods = {
            "sgd": (RATES, self.fixed(optax.sgd, 1)),
            "sgd, decreasing rate": (RATES, self.fixed(decreasing, 1)),
            "sgd, averaged": (RATES, self.fixed(lambda r: so.averaged(optax.sgd(r), 10 * BLOCKS), 1, average=True)),
            "svrg": (RATES, self.fixed(lambda rate: so.svrg(rate, self.loss, every), 2.5)),
            "saga": (RATES, self.fixed(lambda rate: so.saga(rate, BLOCKS), 1)),
            "sarah": (RATES, self.fixed(lambda rate: so.sarah(rate, self.loss, every), 2.5)),
            "regularised gradient": (WEIGHTS, self.fixed(lambda least: so.regularised_gradient(min_weight=least), 2)),
            "sgd, growing": (RATES, self.growing(optax.sgd, 1)),
            "regularised gradient, growing": (
                WEIGHTS,
                self.growing(lambda least: so.regularised_gradient(min_weight=least), 2),
            ),
            "gradient descent, whole batch": (RATES, self.growing(optax.sgd, 1, counts=(1,))),
            "lbfgs, growing": ((0.0,), lambda _: self.lbfgs(COUNTS)),
            "lbfgs, whole batch": ((0.0,), lambda _: self.lbfgs()),
        }
        out = {}
        for name, (numbers, curves) in methods.items():
            found = {number: curves(number) for number in numbers}
            finals = {number: [float(gaps[-1]) for _, gaps in runs] for number, runs in found.items()}
            best = min(numbers, key=lambda number: self.order(found[number]))
            runs = found[best]
            out[name] = {
                "number": best,
                "final_by_number": {str(number): values for number, values in finals.items()},
                "final": finals[best],
                "passes_to_1e-6": [first(*run, 1e-6) for run in runs],
                "passes_to_1e-10": [first(*run, 1e-10) for run in runs],
                "decades_a_pass": [slope(*run) for run in runs],
                "curve": thinned(*runs[0]),
            }
            print(name, best, np.median(finals[best]), out[name]["passes_to_1e-10"], flush=True)
        return {"methods": out, "least": self.least, "condition": self.condition, "accuracy": self.accuracy}

    @staticmethod
    def order(runs):
        """Passes to 1e-10 where reached, otherwise the gap at the end; medians, a diverged run last."""
        passes = [first(*run, 1e-10) or np.inf for run in runs]
        final = np.median([gaps[-1] for _, gaps in runs])
        return np.median(passes), final if np.isfinite(final) else np.inf


def thinned(passes, gaps, points=100):
    keep = np.unique(np.linspace(0, len(passes) - 1, points).astype(int))
    return [[float(f"{passes[i]:.4g}"), float(f"{gaps[i]:.3g}")] for i in keep]


def last(runs, column):
    return [float(np.median(run[column][-10:])) for run in runs]


def pinn():
    problem = problems.get("poisson2d")
    batch, objective = problem.batch(), problem.objective
    blocks, whole = so.Blocks(batch, PINN_BLOCKS), so.Blocks(batch, 1)
    models = [problem.model(jax.random.key(seed)) for seed in range(SEEDS)]
    loss = objective.bind(batch)

    def adam(rate, steps):
        return optax.adam(rate)

    def decaying(rate, steps):
        return optax.adam(optax.cosine_decay_schedule(rate, steps))

    def svrg_adam(rate, steps):
        return optax.chain(so.scale_by_svrg(loss, 2 * PINN_BLOCKS), optax.scale_by_adam(), optax.scale(-rate))

    def levenberg_marquardt(damping, steps):
        return so.levenberg_marquardt(damping)

    methods = {  # numbers, optimizer, blocks, passes a step, steps of a record
        "adam, minibatches": (PINN_RATES, adam, blocks, 1 / PINN_BLOCKS, 20 * PINN_BLOCKS),
        "adam, minibatches, cosine decay": (PINN_RATES, decaying, blocks, 1 / PINN_BLOCKS, 20 * PINN_BLOCKS),
        "svrg + adam, minibatches": (PINN_RATES, svrg_adam, blocks, 2.5 / PINN_BLOCKS, 8 * PINN_BLOCKS),
        "adam, whole batch": (PINN_RATES, adam, whole, 1, 20),
        "adam, whole batch, cosine decay": (PINN_RATES, decaying, whole, 1, 20),
        "levenberg_marquardt, whole batch": ((1e-3,), levenberg_marquardt, whole, 4, 5),
    }
    out = {}
    for name, (numbers, make, data, cost, length) in methods.items():
        records = int(PINN_PASSES / (cost * length))

        def curve(number, model, key, make=make, data=data, length=length, records=records):
            tx = optax.with_extra_args_support(make(number, records * length))

            def record(carry, key):
                carry = scan_blocks(objective, data, tx, carry, key, length)
                ratio = so.gradient_noise(objective.bind(blocks.block(0)), carry[0], groups=12).ratio
                return carry, (loss(carry[0]), problem.error(carry[0]), ratio)

            return jax.lax.scan(record, (model, tx.init(model)), jax.random.split(key, records))[1]

        curve = jax.jit(curve)
        found = {
            number: [curve(number, model, jax.random.key(seed)) for seed, model in enumerate(models)]
            for number in numbers
        }
        best = min(numbers, key=lambda number: np.median([run[0][-10:] for run in found[number]]))
        passes = cost * length * np.arange(1, records + 1)
        out[name] = {
            "rate": best,
            "loss": last(found[best], 0),
            "error": last(found[best], 1),
            "noise_ratio": last(found[best], 2),
            "loss_by_rate": {str(number): last(runs, 0) for number, runs in found.items()},
            "curve": thinned(passes, np.asarray(found[best][0][0])),
        }
        print(name, best, np.median(out[name]["loss"]), np.median(out[name]["error"]), flush=True)
    return out


def show(results):
    if "photographs" in results:
        found = results["photographs"]
        print(f"condition {found['condition']:.0f}, accuracy {found['accuracy']:.3f}\n")
        print("| method | rate or least weight | gap at the end, median (worst) | passes to 1e-10 | decades a pass |")
        print("|---|---|---|---|---|")
        for name, row in found["methods"].items():
            passes, slopes = row["passes_to_1e-10"], row["decades_a_pass"]
            reached = [p for p in passes if p is not None]
            to = f"{np.median(reached):.0f} ({len(reached)} of {len(passes)})" if reached else "-"
            rate = f"{np.median(slopes):.2f}" if None not in slopes else "-"
            final = f"{max(np.median(row['final']), 1e-16):.0e} ({max(np.max(row['final']), 1e-16):.0e})"
            print(f"| {name} | {row['number']:g} | {final} | {to} | {rate} |")
    if "pinn" in results:
        print("\n| method | rate | loss, median (worst) | relative L2 error | variance / squared gradient |")
        print("|---|---|---|---|---|")
        for name, row in results["pinn"].items():
            loss, error = row["loss"], row["error"]
            print(
                f"| {name} | {row['rate']:g} | {np.median(loss):.1e} ({np.max(loss):.1e}) "
                f"| {np.median(error):.1e} ({np.max(error):.1e}) | {np.median(row['noise_ratio']):.2g} |"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["photographs", "pinn", "show"])
    parser.add_argument("--out", type=Path, default=FILE)
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.part != "show":
        results[arguments.part] = Photographs().run() if arguments.part == "photographs" else pinn()
        arguments.out.write_text(json.dumps(results, indent=1))
    show(results)


if __name__ == "__main__":
    main()
