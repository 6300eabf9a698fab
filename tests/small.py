"""Small problems that many tests share, so that XLA compiles few programs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import sciml_opt as so


def network(seed: int = 0, width: int = 8, out="scalar", dtype=None):
    return eqx.nn.MLP(2, out, width, 1, jnp.tanh, key=jax.random.key(seed), dtype=dtype)


def grid(n: int):
    side = (np.arange(n) + 0.5) / n
    return np.stack([a.ravel() for a in np.meshgrid(side, side)], 1)


def edges(n: int):
    side, zero = (np.arange(n) + 0.5) / n, np.zeros(n)
    return np.concatenate([np.stack(s, 1) for s in ((side, zero), (side, zero + 1), (zero, side), (zero + 1, side))])


def exact(x):
    return jnp.prod(jnp.sin(jnp.pi * x), -1)


def interior(u, x):
    return so.laplacian(u)(x) + 2 * jnp.pi**2 * exact(x)


def value(u, x):
    return u(x)


POISSON = so.Objective(interior=so.Term(interior), boundary=so.Term(value, weight=4.0))
BATCH = {"interior": grid(6), "boundary": edges(4)}


def value_and_slope(u, x):
    return jnp.concatenate([u(x)[None], jax.grad(u)(x)])


def density(z, x):
    return 0.5 * jnp.sum(z[1:] ** 2) + 0.25 * z[0] ** 4 - 2 * jnp.pi**2 * exact(x) * z[0]


RITZ = so.Objective(energy=so.Term(value_and_slope, outer=density), boundary=so.Term(value, weight=100.0))
RITZ_BATCH = {"energy": grid(6), "boundary": edges(4)}


def partition(model):
    return eqx.partition(model, eqx.is_inexact_array)


def problem(objective=POISSON, batch=BATCH, seed: int = 0, dtype=None):
    """`params, loss` of a small problem."""
    params, static = partition(network(seed, dtype=dtype))
    return params, objective.bind(batch, static=static)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def relative(a, b):
    a, b = flat(a), flat(b)
    return np.max(np.abs(a - b)) / np.max(np.abs(b))


def dense_jacobian(f, params):
    """(N, P) by reverse mode of the stacked function: slow, and independent of the library."""
    rows = jax.jit(jax.jacrev(f))(params)
    return np.concatenate([np.reshape(leaf, (leaf.shape[0], -1)) for leaf in jax.tree.leaves(rows)], axis=1)


def runner(tx, loss, steps: int, report=so.info):
    """Parameters -> path, info: the start and the point after each step, flat, `(steps + 1, P)`; `report(state)`."""

    @jax.jit
    def scan(params):
        def body(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            params = optax.apply_updates(params, updates)
            return (params, state), (ravel_pytree(params)[0], report(state))

        return jax.lax.scan(body, (params, tx.init(params)), None, length=steps)[1]

    def run(params):
        path, info = scan(params)
        return np.vstack([flat(params), path]), info

    return run


def check_steps(path, steps, rtol: float = 1e-8):
    """The steps of a textbook, each from the point of `path` where the library made its own.

    So nothing is compared but one step at a time: along two separate paths rounding grows until they part.
    """
    errors = [np.linalg.norm(got - step) for got, step in zip(np.diff(path, axis=0), steps, strict=True)]
    np.testing.assert_array_less(errors, rtol * np.linalg.norm(steps, axis=1) + np.finfo(float).tiny)
