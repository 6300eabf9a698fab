"""A Levenberg-Marquardt run with sharded points against the same run on one device; prints the differences.

python sharded_run.py                          8 virtual devices in one process
python sharded_run.py ADDRESS PROCESS          one of two processes, 2 devices each
"""

import json
import os
import sys

address, process = (sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else (None, 0)
devices = f"--xla_force_host_platform_device_count={8 if address is None else 2}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices}"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import jax

jax.config.update("jax_enable_x64", True)
if address is not None:
    jax.distributed.initialize(address, num_processes=2, process_id=process)

import jax.numpy as jnp
import numpy as np
from small import POISSON, edges, grid, partition, relative

import sciml_opt as so

STEPS = 3
BATCH = {"interior": grid(5)[:23], "boundary": edges(4)[:13]}  # uneven shares: 23 and 13 points
KEPT = np.concatenate([np.arange(13), 16 + np.arange(23)])  # rows of the unpadded points, boundary first
params, static = partition(so.models.MLP(2, layers=(24, 24), key=jax.random.key(0)))  # factored and explicit rows
mesh = jax.make_mesh((jax.device_count(),), ("points",))
alone = POISSON.bind(BATCH, static=static)
sharded = POISSON.bind(BATCH, static=static, mesh=mesh)
differences = {"devices": jax.device_count(), "processes": jax.process_count()}


@jax.jit
def parts(loss, params):
    lin = loss.linearize(params)
    J = lin.jacobian
    out = {"value": lin.value, "gradient": lin.grad, "kernel": J.kernel(), "product": J.rmv(J.mv(params))}
    if address is None:  # compiling takes its time
        scale = jax.tree.map(lambda leaf: 1 + jnp.mean(leaf) ** 2, params)
        out |= {"scaled kernel": J.kernel(scale), "gram": J.gram(), "weighted gram": J.gram(lin.residual**2)}
        out |= {"column norms": J.column_norms(), "derivative": jax.grad(loss)(params)}
    return out


tx = so.levenberg_marquardt(solve="dual", scaling="marquardt")


def run(mesh):
    return so.train(params, POISSON, tx, BATCH, steps=STEPS, static=static, mesh=mesh).params


found, trained = parts(sharded, params), jax.jit(lambda: run(mesh))()
if process == 0:  # the other process has done its share
    expected = parts(alone, params)
    for name in expected:
        got = found[name]
        if "kernel" in name:
            differences["sharded"] = len(sharded._terms["interior"].points.sharding.device_set)
            got = np.asarray(got)[np.ix_(KEPT, KEPT)]
        differences[name] = relative(got, expected[name])
    differences[f"{STEPS} steps"] = relative(trained, jax.jit(lambda: run(None))())
    print(json.dumps(differences))
