"""A training run for `test_kill.py`: `python killed_run.py CHECKPOINT RESULT WHOLE`, resumes if it can.

If it comes to its end, the same run follows without a checkpoint, in the programs that are compiled by then.
"""

import sys

import jax

jax.config.update("jax_enable_x64", True)

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import sciml_opt as so

checkpoint, out, whole = sys.argv[1:]
model = eqx.nn.MLP(2, "scalar", 8, 1, jnp.tanh, key=jax.random.key(0))
objective = so.Objective(
    fit=so.Term(lambda u, x: so.laplacian(u)(x) - jnp.sin(3 * x[0])), edge=so.Term(lambda u, x: u(x))
)


def sampler(key):
    points = jax.random.uniform(key, (30, 2))
    return {"fit": points, "edge": points.at[:, 0].set(0.0)}


def report(now):
    print(now.step, flush=True)


phases = [so.Phase(so.levenberg_marquardt(geodesic=False), 300), so.Phase(so.gauss_newton(), 300)]
resumed = {"checkpoint": checkpoint, "checkpoint_every": 0.0, "resume": True, "callback": report}
for path, options in ((out, resumed), (whole, {})):
    result = so.fit(model, objective, phases, sampler, key=jax.random.key(3), **options)
    leaves = jax.tree.leaves(eqx.filter(result.model, eqx.is_inexact_array))
    np.savez(path, *leaves, loss=result.history["loss"], steps=result.steps)
