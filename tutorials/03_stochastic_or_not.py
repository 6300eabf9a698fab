# %% [markdown]
# # 3. Stochastic or not?
#
# Deep learning is trained on minibatches. Should a scientific model be? We look at two problems that fall on
# opposite sides of the answer.
#
# 1. *Which of two photographs does a patch come from?* Ten thousand patches, logistic regression: the loss is a sum of
#    many terms, each about the same few parameters, and the data contradict one another.
# 2. *Poisson's equation with a neural network* (a PINN): a sum of many terms as well, but the equation **couples** all
#    parameters, and every term can be made zero at once.
#
# Work is counted in *passes*: evaluations of a gradient or a loss at one point, over the number of points.

# %%
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_sample_images

import sciml_opt as so
from sciml_opt import problems

jax.config.update("jax_enable_x64", True)

REDUCED = "SCIML_OPT_REDUCED" in os.environ  # the small size that the tests run
FIGURES = os.environ.get("SCIML_OPT_FIGURES") or (tempfile.mkdtemp() if REDUCED else Path(__file__).parent / "figures")
N, BLOCKS, PASSES = (4_000, 200, 45) if REDUCED else (10_000, 500, 40)
PINN_BLOCKS, PINN_PASSES = 10, 120 if REDUCED else 1500

# %% [markdown]
# ## Patches of photographs
#
# scikit-learn ships two photographs. From each we take patches of 8 by 8 pixels at random places; a patch is
# described by the mean and the standard deviation of its three colours, and a constant: $x_i \in \mathbb R^7$ with
# a label $y_i = \pm 1$. With $\mu = 1/n$ we minimise
#
# $$f(w) = \frac1n \sum_{i=1}^n \log(1 + e^{-y_i\, x_i \cdot w}) + \frac\mu2 |w|^2 .$$


# %%
def photographs(side=8):
    rng, features = np.random.default_rng(0), []
    for image in load_sample_images().images:
        height, width, _ = image.shape
        corners = rng.choice((height - side) * (width - side), N // 2, replace=False)
        rows, columns = (corner[:, None, None] for corner in np.divmod(corners, width - side))
        patches = image[rows + np.arange(side)[:, None], columns + np.arange(side)] / 255
        features.append(np.concatenate([patches.mean((1, 2)), patches.std((1, 2))], axis=1))
    x = np.concatenate(features)
    return np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((N, 1))], axis=1), np.repeat([-1.0, 1.0], N // 2)


def margin(w, point):
    x, y = point
    return jnp.append(y * jnp.dot(x, w), w)


def density(z, point):
    return jax.nn.softplus(-z[0]) + jnp.sum(z[1:] ** 2) / (2 * N)


x, y = photographs()
batch = {"data": (x, y)}
objective = so.Objective(data=so.Term(margin, outer=density))
loss = objective.bind(batch)
start = jnp.zeros(x.shape[1])

w = start
newton = jax.jit(lambda w: w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w)))
for _ in range(12):
    w = newton(w)
best, accuracy = float(loss(w)), np.mean(y * (x @ w) > 0)
print(f"least loss {best:.4f}, {100 * accuracy:.0f} % of the patches on the right side")

# %% [markdown]
# `so.Blocks` cuts the data once into blocks and draws one a step. `so.svrg` and `so.saga` correct the gradient of
# the block by what they remember: the gradient of all data at a snapshot, or the last gradient of every block. Near a
# minimum the correction removes the noise entirely, and a **constant** learning rate converges linearly.

# %%
blocks = so.Blocks(batch, BLOCKS)
methods = {  # optimizer, data, passes a step
    "SGD, large rate": (optax.sgd(1.0), blocks, 1 / BLOCKS),
    "SGD, small rate": (optax.sgd(0.1), blocks, 1 / BLOCKS),
    "SVRG": (so.svrg(2.0, loss, 2 * BLOCKS), blocks, 2.5 / BLOCKS),
    "SAGA": (so.saga(1.0, BLOCKS), blocks, 1 / BLOCKS),
    "L-BFGS, all data": (optax.lbfgs(), batch, 1),  # the gradient of its last trial can serve the next step
}
left = {}
for name, (optimizer, data, cost) in methods.items():
    result = so.fit(
        start,
        objective,
        optimizer,
        data,
        steps=int(PASSES / cost),
        key=jax.random.key(0),
        metric=lambda w: loss(w) - best,
        metric_every=1 if data is batch else BLOCKS // 2,
    )
    measured = np.flatnonzero(~np.isnan(result.history["error"]))
    left[name] = cost * (measured + 1), result.history["error"][measured]
    print(f"{name:18} f - f* after {PASSES} passes: {left[name][1][-1]:.0e}")

# %% [markdown]
# SGD with a large rate is fast and then stalls; with a small one it stalls later and lower. SVRG and SAGA go on to
# rounding on a straight line. So does L-BFGS on all data; it needs about twice the passes of SAGA. The reason why SGD
# stalls can be measured: at the minimum the gradients of the blocks do not vanish, only their mean does.

# %%
measure = jax.jit(so.gradient_noise)
noise = measure(loss, w)
print(f"at the minimum: |gradient|^2 {noise.squared_norm:.0e}, its variance as a sample {noise.variance:.0e}")
fresh = measure(objective.bind(blocks.block(0)), start)
print(f"first block at the start: variance / |gradient|^2 = {fresh.ratio:.2f}, norm test {bool(fresh.ratio <= 0.81)}")

# %% [markdown]
# The *norm test* of Byrd, Chin, Nocedal and Wu (`so.norm_test`) asks whether this ratio is below $0.9^2$: as long as
# it is, small blocks are all that is needed.
#
# ## A PINN
#
# Now the network of the first tutorial, in minibatches of a tenth of its points: Adam on minibatches, Adam behind
# `so.scale_by_svrg`, Adam on all points, and Levenberg-Marquardt on all points.

# %%
poisson = problems.get("poisson2d")
pinn_batch, model = poisson.batch(), poisson.model(jax.random.key(0))
pinn_blocks, pinn_loss = so.Blocks(pinn_batch, PINN_BLOCKS), poisson.objective.bind(pinn_batch)
svrg_adam = optax.chain(so.scale_by_svrg(pinn_loss, 2 * PINN_BLOCKS), optax.scale_by_adam(), optax.scale(-0.01))
methods = {
    "Adam, minibatches": (optax.adam(0.01), pinn_blocks, 1 / PINN_BLOCKS),
    "SVRG + Adam": (svrg_adam, pinn_blocks, 2.5 / PINN_BLOCKS),
    "Adam, all points": (optax.adam(0.01), pinn_batch, 1),
    # gradient, linearization, second derivative and trial
    "Levenberg-Marquardt": (so.levenberg_marquardt(), pinn_batch, 4),
}
right, runs = {}, {}
for name, (optimizer, data, cost) in methods.items():
    runs[name] = result = so.fit(
        model,
        poisson.objective,
        optimizer,
        data,
        steps=int(PINN_PASSES / cost),
        key=jax.random.key(0),
        metric=pinn_loss,
        metric_every=max(1, int(5 / cost)),
    )
    measured = np.flatnonzero(~np.isnan(result.history["error"]))
    right[name] = cost * (measured + 1), result.history["error"][measured]
    error = float(poisson.error(result.model))
    print(f"{name:20} loss after {PINN_PASSES} passes {right[name][1][-1]:.0e}, relative error {error:.0e}")

# %% [markdown]
# The three variants of Adam lie close together: removing the noise, by SVRG or by taking all points, does not help,
# since the noise is not what is slow. Minibatches are even the cheapest of the three. What is slow is the coupling:
# the Hessian of the photographs has the condition number 165, while the Gauss-Newton matrix of the PINN is singular to
# rounding. A curvature method pays for that once per step, on all points, and is ahead by many orders of magnitude.
#
# And the noise? Where a PINN is solved, *every* residual vanishes, and so does the gradient of every block:

# %%
solved = measure(pinn_loss, runs["Levenberg-Marquardt"].model)
first = measure(pinn_loss, model)
print(f"variance of the PINN's gradient: at the start {first.variance:.0e}, at the end {solved.variance:.0e}")

# %% [markdown]
# ## The picture

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4.6))
colors = ("#E69F00", "#B8860B", "#0072B2", "#56B4E9", "#B2182B")
for (name, (passes, gaps)), color in zip(left.items(), colors, strict=True):
    axes[0].semilogy(passes, np.maximum(gaps, 1e-16), color=color, label=name)
for (name, (passes, losses)), color in zip(right.items(), ("#E69F00", "#0072B2", "0.5", "#B2182B"), strict=True):
    axes[1].semilogy(passes, losses, color=color, label=name)
axes[0].set(xlabel="passes over the data", ylabel="$f - f^*$", ylim=(1e-16, 1), title=f"{N} patches of photographs")
axes[1].set(xlabel="passes over the points", ylabel="loss on all points", title="a PINN for Poisson's equation")
for ax in axes:
    ax.legend(frameon=False, fontsize=9)
    ax.grid(alpha=0.3)
figure.tight_layout()
Path(FIGURES).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(FIGURES) / "03_stochastic_or_not.png", dpi=130)

# %% [markdown]
# ## What we claim
#
# On data that contradict one another, variance reduction converges linearly where SGD at either rate stalls. On the
# PINN the three first-order variants stay within a factor of 100 of one another, and Levenberg-Marquardt is far below
# all of them. `benchmarks/stochastic.py` has five seeds, tuned rates, and more methods.

# %%
gap = {name: np.maximum(gaps[-1], 1e-16) for name, (_, gaps) in left.items()}
end = {name: losses[-1] for name, (_, losses) in right.items()}
adams = [end[name] for name in ("Adam, minibatches", "SVRG + Adam", "Adam, all points")]
assert max(gap["SVRG"], gap["SAGA"]) < (1e-6 if REDUCED else 1e-9)
assert min(gap["SGD, large rate"], gap["SGD, small rate"]) > 1e3 * max(gap["SVRG"], gap["SAGA"])
assert max(adams) < 100 * min(adams)
assert end["Levenberg-Marquardt"] < (1e-1 if REDUCED else 1e-6) * min(adams)
assert solved.variance < (1e-2 if REDUCED else 1e-8) * first.variance and noise.variance > 1e6 * noise.squared_norm
