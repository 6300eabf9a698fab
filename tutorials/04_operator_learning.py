# %% [markdown]
# # 4. Operator learning
#
# A PINN is trained for one equation with one set of data. A *neural operator* is trained once for all inputs: it maps a
# function (a source, an initial value) to the solution. We train three of them.
#
# 1. A **DeepONet** that integrates: $f \mapsto u$, $u' = f$, $u(0) = 0$, from examples.
# 2. The same DeepONet **without examples**, from the equation $u' = f$ alone.
# 3. A **Fourier neural operator** that takes an initial value of Burgers' equation to the end,
#    $u_0 \mapsto u(\cdot, 1)$.

# %%
import os
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import sciml_opt as so
from sciml_opt.models import FNO, MLP, DeepONet
from sciml_opt.problems import operators

jax.config.update("jax_enable_x64", True)

REDUCED = "SCIML_OPT_REDUCED" in os.environ  # the small size that the tests run
FIGURES = os.environ.get("SCIML_OPT_FIGURES") or (tempfile.mkdtemp() if REDUCED else Path(__file__).parent / "figures")
FUNCTIONS, POINTS, WIDTH, PASSES = (40, 20, 16, 300) if REDUCED else (150, 100, 40, 6000)

# %% [markdown]
# ## Data
#
# `sciml_opt.problems.operators` makes data by real solvers, and estimates their error by refinement. The inputs here
# are Gaussian random fields of length scale 0.2. They are drawn as Fourier series, so that their integral is exact.

# %%
data = operators.antiderivative(jax.random.key(0), FUNCTIONS, 100, sensors=POINTS, queries=POINTS)
print(f"{data.name}: inputs {data.inputs.shape}, outputs {data.outputs.shape}, solver error {data.solver_error:.0e}")

# %% [markdown]
# ## A DeepONet
#
# $$G(f)(y) = \sum_k b_k(f)\, t_k(y)$$
#
# with the *branch* $b$, a network of the sensor values of $f$, and the *trunk* $t$, a network of the point $y$. Here
# the trunk carries the factor $y$, so that $u(0) = 0$ for every $f$, and there is no bias.


# %%
class Trunk(eqx.Module):
    network: MLP

    def __call__(self, y):
        return y[0] * jnp.tanh(self.network(y))


def deeponet(key):
    keys = jax.random.split(key)
    branch, trunk = MLP(POINTS, WIDTH, (WIDTH,), key=keys[0]), MLP(1, WIDTH, (WIDTH,), key=keys[1])
    return DeepONet(branch, Trunk(trunk), bias=False)


# %% [markdown]
# Every function is given at every query point. A term on such a *product batch* evaluates the branch once a function
# and the trunk once a point, not once a pair; so does its Jacobian, which `so.explain` describes side by side.

# %%
model = deeponet(jax.random.key(1))
objective = so.Objective(data=so.Term(DeepONet.product()))
batch = {"data": data.pairs()}
params, static = eqx.partition(model, eqx.is_inexact_array)
print(so.explain(objective, params, batch, static=static))

# %% [markdown]
# Adam, L-BFGS, and Gauss-Newton by conjugate gradients, with about the same number of evaluations: a step of
# `so.hessian_free` has at most 250 products with the Jacobian.

# %%
test = data.pairs("test")


def error(model):
    return data.error(model.pairs(test.left, test.right))


methods = {
    "Adam": (optax.adam(optax.cosine_decay_schedule(3e-3, 2 * PASSES)), 2 * PASSES),
    "L-BFGS": (so.lbfgs(), PASSES),
    "hessian-free": (so.hessian_free(), PASSES // 100),
}
results = {}
for name, (optimizer, steps) in methods.items():
    every = max(1, steps // 30)
    results[name] = so.fit(model, objective, optimizer, batch, steps=steps, metric=error, metric_every=every)
    print(f"{name:12} error on unseen functions {results[name].error:.1e}, {results[name].train_seconds:.0f} s")

# %% [markdown]
# ## From the equation alone
#
# A linear differential operator acts on the trunk: $\partial_y G(f) = \sum_k b_k(f)\, \partial_y t_k$. So the residual
# $\partial_y G(f_i)(y_j) - f_i(y_j)$ is a product term as well. `DeepONet.product` takes the operator; the pairs are
# now the values of the inputs. No integral is shown to the network.

# %%
physics = so.Objective(physics=so.Term(DeepONet.product(lambda u: so.partial(u, 0))))
sources = jnp.asarray(data.inputs[:FUNCTIONS])
equation = {"physics": so.ProductBatch(sources, jnp.asarray(data.sensors), sources)}
informed = so.fit(model, physics, so.lbfgs(), equation, steps=PASSES, metric=error, metric_every=PASSES)
print(f"physics-informed: error on unseen functions {informed.error:.1e}")

# %% [markdown]
# ## A Fourier neural operator
#
# `so.models.FNO` maps a whole field to a whole field. One sample is one point of the term, and its residual the field.
# From 64 points on such a term is linearized without a matrix, by products with the Jacobian alone; L-BFGS, the best
# method here as well, asks for gradients only.

# %%
burgers = operators.burgers_operator(jax.random.key(0), *((16, 8) if REDUCED else (100, 50)))
fno = FNO((8,), *((4, 1) if REDUCED else (16, 3)), key=jax.random.key(1))
fields = so.Objective(data=so.Term(lambda model, sample: model(sample[0]) - sample[1]))
unseen, _ = burgers.fields("test")


def field_error(model):
    return burgers.error(jax.vmap(model)(unseen))


steps = PASSES // 6
operator = so.fit(
    fno, fields, so.lbfgs(), {"data": burgers.fields()}, steps=steps, metric=field_error, metric_every=steps
)
print(f"FNO: error {float(field_error(fno)):.1e} -> {operator.error:.1e}, solver error {burgers.solver_error:.0e}")

# %% [markdown]
# ## The picture

# %%
figure, axes = plt.subplots(1, 3, figsize=(15, 4.4))
for (name, result), color in zip(results.items(), ("#E69F00", "#0072B2", "#B2182B"), strict=True):
    measured = ~np.isnan(result.history["error"])
    axes[0].loglog(result.history["seconds"][measured], result.history["error"][measured], color=color, label=name)
axes[0].set(xlabel="CPU seconds", ylabel="mean relative $L^2$ error", title="DeepONet, unseen functions")
axes[0].legend(frameon=False)
y, exact = data.queries[:, 0], np.asarray(test.pair)
for row, color in enumerate(("#0072B2", "#E69F00", "#009E73")):
    axes[1].plot(y, exact[row], color=color)
    axes[1].plot(y, informed.model.pairs(test.left[row : row + 1], test.right)[0], "k:")
axes[1].set(xlabel="y", title="from the equation alone (dotted)")
x, fine = burgers.queries[:, 0], burgers.outputs[burgers.training :]
for row, color in enumerate(("#0072B2", "#E69F00", "#009E73")):
    axes[2].plot(x, fine[row], color=color)
    axes[2].plot(x, operator.model(unseen[row]), "k:")
axes[2].set(xlabel="x", title="Burgers at t = 1 by the FNO (dotted)")
figure.tight_layout()
Path(FIGURES).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(FIGURES) / "04_operator_learning.png", dpi=130)

# %% [markdown]
# ## What we claim
#
# Both operators generalise to functions that they have not seen, the physics-informed one without a single solution.
# `benchmarks/operators.py` compares the methods at equal CPU time, over several seeds.

# %%
start = float(error(model))
assert results["L-BFGS"].error < (0.5 if REDUCED else 0.1) * start
assert results["L-BFGS"].error < results["Adam"].error
assert informed.error < (0.5 if REDUCED else 0.1) * start
assert operator.error < (0.9 if REDUCED else 0.3) * float(field_error(fno))
