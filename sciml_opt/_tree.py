"""Vector-space operations on pytrees of parameters, shared by every package."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Scalar


def tree_dtype(tree: PyTree) -> jnp.dtype:
    """The floating dtype that holds every leaf: float32 parameters stay float32, also when x64 is on."""
    leaves = jax.tree.leaves(tree)
    if not leaves:
        raise ValueError("params has no array leaves: nothing to optimise.")
    for leaf in leaves:
        if not hasattr(leaf, "dtype"):
            raise TypeError(
                f"params must hold arrays only, got a {type(leaf).__name__}; for a model use "
                "params, static = eqx.partition(model, eqx.is_inexact_array)."
            )
    with jax.numpy_dtype_promotion("standard"):  # mixed leaves are meant, whatever the user's setting
        return functools.reduce(jnp.promote_types, (leaf.dtype for leaf in leaves))


def tree_size(tree: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def ravel(tree: PyTree) -> Array:
    dtype = tree_dtype(tree)
    return jnp.concatenate([leaf.astype(dtype).reshape(-1) for leaf in jax.tree.leaves(tree)])


def unravel(flat: Array, structure: PyTree) -> PyTree:
    """Inverse of `ravel`, for a pytree of arrays or `ShapeDtypeStruct`s."""
    leaves, treedef = jax.tree.flatten(structure)
    out, start = [], 0
    for leaf in leaves:
        size = math.prod(leaf.shape)
        out.append(flat[start : start + size].reshape(leaf.shape).astype(leaf.dtype))
        start += size
    return jax.tree.unflatten(treedef, out)


def tree_dot(a: PyTree, b: PyTree) -> Scalar:
    dtype = tree_dtype(a)
    return sum(
        (jnp.vdot(x, y).astype(dtype) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)),
        start=jnp.zeros((), dtype),
    )


def tree_norm(a: PyTree) -> Scalar:
    return jnp.sqrt(tree_dot(a, a))


def tree_add(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def tree_scale(factor: Scalar, a: PyTree) -> PyTree:
    return jax.tree.map(lambda x: factor.astype(x.dtype) * x, a)


def tree_where(condition: Bool[Array, ""], a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def tree_all_finite(tree: PyTree) -> Bool[Array, ""]:
    checks = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(checks))


def tree_structure(tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), tree)


def second_derivative(f: Callable[[PyTree], PyTree], x: PyTree, v: PyTree) -> PyTree:
    """`d^2/dt^2 f(x + t v)` at `t = 0`, by one jvp of a jvp."""
    return jax.jvp(lambda y: jax.jvp(f, (y,), (v,))[1], (x,), (v,))[1]
