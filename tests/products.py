"""Small operator-learning problems on product batches, and the same as points of an ordinary term."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from small import partition

import sciml_opt as so

SENSORS = 5


def model(width: int = 12, p: int = 3, seed: int = 0, dtype=None):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "branch": eqx.nn.MLP(SENSORS, p, width, 1, jnp.tanh, key=keys[0], dtype=dtype),
        "trunk": eqx.nn.MLP(2, p, width, 1, jnp.tanh, key=keys[1], dtype=dtype),
        "common": eqx.nn.MLP(p, p, width, 1, jnp.tanh, key=keys[2], dtype=dtype),
        "bias": jnp.asarray(0.3, dtype or jnp.float64),
    }


def branch(m, f):
    return jnp.append(m["branch"](f), jnp.ones((), f.dtype))


def trunk(m, y):
    return jnp.append(m["trunk"](y), m["bias"])


def trunk_laplacian(m, y):
    return so.laplacian(lambda y: trunk(m, y))(y)


def two_outputs(b, t, pair):
    return jnp.stack([jnp.tanh(b @ t) - pair["target"], pair["factor"] * jnp.sum(b * jnp.sin(t))])


def normalised_branch(m, f):
    first = m["branch"].layers[0]
    weight = first.weight / jnp.linalg.norm(first.weight, axis=1, keepdims=True)
    return jnp.append(m["branch"].layers[1](jnp.tanh(weight @ f + first.bias)), jnp.ones((), f.dtype))


def log_cosh(z, pair):
    return jnp.sum(jnp.log(jnp.cosh(z))) + 0.5 * z[0] ** 2


PRODUCTS = {
    "DeepONet": so.Product(branch, trunk),
    "physics-informed": so.Product(branch, trunk_laplacian),
    "two nonlinear outputs": so.Product(branch, trunk, two_outputs),
    "common parameters": so.Product(lambda m, f: m["common"](m["branch"](f)), lambda m, y: m["common"](m["trunk"](y))),
    "normalised weight": so.Product(normalised_branch, lambda m, y: trunk(m, y)),
}
TERMS = {name: so.Term(product, weight=2.0) for name, product in PRODUCTS.items()}
TERMS["two outputs, outer function"] = so.Term(PRODUCTS["two nonlinear outputs"], outer=log_cosh)


def batch(name: str, left: int = 4, right: int = 5, dtype=np.float64):
    rng = np.random.default_rng(7)
    pair = target = rng.normal(size=(left, right)).astype(dtype)
    if name.startswith("two"):
        pair = {"target": target, "factor": rng.normal(size=(left, right)).astype(dtype)}
    functions, queries = rng.normal(size=(left, SENSORS)), rng.uniform(size=(right, 2))
    return so.ProductBatch(functions.astype(dtype), queries.astype(dtype), pair)


def all_pairs(batch: so.ProductBatch):
    """The points of an ordinary term, in the order of the rows."""
    i, j = np.indices((len(batch.left), len(batch.right))).reshape(2, -1)
    return batch.left[i], batch.right[j], jax.tree.map(lambda leaf: leaf.reshape(-1), batch.pair)


class Problem(NamedTuple):
    params: dict
    loss: so.BoundObjective
    points: so.BoundObjective  # the same, point by point


def problem(name: str, left: int = 4, right: int = 5, weights=None, dtype=None, **sizes) -> Problem:
    params, static = partition(model(dtype=dtype, **sizes))
    term, pairs = TERMS[name], batch(name, left, right, dtype or np.float64)
    product, points = pairs, all_pairs(pairs)
    if weights is not None:
        product, points = so.Weighted(pairs, weights), so.Weighted(points, weights.reshape(-1))
    pointwise = so.Term(lambda m, x: term.inner(m, x), outer=term.outer, weight=term.weight)
    loss = so.Objective(operator=term).bind({"operator": product}, static=static)
    return Problem(params, loss, so.Objective(operator=pointwise).bind({"operator": points}, static=static))
