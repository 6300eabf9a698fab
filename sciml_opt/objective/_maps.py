"""The functions that the user gives to a term: as pytrees of arrays and static data, and what they return, checked."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from .._tree import tree_dtype


class Static(eqx.Module):
    """A hashable pytree of non-arrays, so that it can stand in a jit key."""

    leaves: tuple = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)

    def __init__(self, tree: PyTree):
        leaves, self.treedef = jax.tree.flatten(tree)
        self.leaves = tuple(leaves)

    def __hash__(self):
        return hash((self.leaves, self.treedef))

    def __eq__(self, other):
        return isinstance(other, Static) and (self.leaves, self.treedef) == (other.leaves, other.treedef)

    @property
    def tree(self) -> PyTree:
        return jax.tree.unflatten(self.treedef, self.leaves)


class PointMap(eqx.Module):
    """A user function split into arrays (dynamic) and the rest (static)."""

    arrays: PyTree
    static: Static = eqx.field(static=True)
    term: str = eqx.field(static=True)

    def __init__(self, arrays: PyTree, static: PyTree, term: str):
        self.arrays = arrays
        self.static = Static(static)
        self.term = term

    def __call__(self, *args):
        return eqx.combine(self.arrays, self.static.tree)(*args)


class ProductMap(eqx.Module):
    """The maps of a product term, and how many points each side has."""

    left: PointMap
    right: PointMap
    combine: PointMap
    shape: tuple[int, int] = eqx.field(static=True)


class Outer(eqx.Module):
    """The user's outer function, checked."""

    ell: PointMap

    def __call__(self, z: Float[Array, " m"], point: PyTree) -> Scalar:
        value = jnp.asarray(self.ell(z, point))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"The outer function of term {self.ell.term!r} must return one real number for z of shape {z.shape} "
                f"(a scalar z arrives as (1,)); it returned {value.dtype}{list(value.shape)}. Sum over components."
            )
        return value.astype(z.dtype)


class Combine(eqx.Module):
    """How a product term combines one left with one right output, checked."""

    combine: PointMap

    def __call__(self, b: Float[Array, " p"], t: Float[Array, " q"], pair: PyTree) -> Float[Array, " m"]:
        z = self.combine(b, t, pair)
        if not isinstance(z, jax.Array) or z.ndim > 1 or z.size == 0 or not jnp.issubdtype(z.dtype, jnp.floating):
            what = f"{z.dtype}{list(z.shape)}" if isinstance(z, jax.Array) else type(z).__name__
            raise ValueError(
                f"The combine function of term {self.combine.term!r} must return a real scalar or a vector (m,) for "
                f"ONE pair, b of shape {b.shape} and t of shape {t.shape}; it returned {what}."
            )
        return z.reshape(-1).astype(b.dtype)


class PointFunction(eqx.Module):
    """`(params, point) -> (m,)`: the user's inner map on the assembled model, checked, and traced once a program."""

    inner: PointMap
    static_arrays: PyTree
    static: Static = eqx.field(static=True)
    where: Static = eqx.field(static=True)
    count: int = eqx.field(static=True)

    def __call__(self, params: PyTree, point: PyTree) -> Float[Array, " m"]:
        statics = (self.inner.static, self.inner.term, self.static, self.where, self.count)
        return _evaluate_point(statics, self.inner.arrays, self.static_arrays, params, point)


class Shifted(eqx.Module):
    """`(params, (point, shift)) -> (m,)`: the inner map at a point plus a constant."""

    inner: PointFunction

    def __call__(self, params: PyTree, point: PyTree) -> Float[Array, " m"]:
        point, shift = point
        z = self.inner(params, point)
        if z.shape != shift.shape:
            raise ValueError(
                f"The shift of term {self.inner.inner.term!r} has {shift.size} components a point, but its inner map "
                f"has {z.size}."
            )
        return z + shift


def _evaluate(statics, inner_arrays, static_arrays, params, point):
    inner_static, term, static, where, count = statics
    frozen = where.tree
    if frozen is not None:
        trained, rest = eqx.partition(params, frozen)
        params = eqx.combine(trained, jax.tree.map(jax.lax.stop_gradient, rest))
    model = params
    if static.treedef != _NOTHING or jax.tree.leaves(static_arrays):
        model = eqx.combine(params, static_arrays, static.tree)
    inner = eqx.combine(inner_arrays, inner_static.tree)
    try:
        z = inner(model, point)
    except Exception as error:
        error.add_note(
            f"This happened in the inner map of term {term!r}, which is called with ONE point of shapes "
            f"{jax.tree.map(jnp.shape, point)} (no batch axis); it is batched for you."
        )
        raise
    return _check_output(z, term, count, inner, model, point).astype(tree_dtype(params))


# One jitted function for all: value, gradient, linearization and trial share one trace of the user's code.
_evaluate_point = jax.jit(_evaluate, static_argnums=0, inline=True)
_NOTHING = jax.tree.structure(None)


def _check_output(z, term: str, count: int, inner, model, point) -> Float[Array, " m"]:
    what = f"The inner map of term {term!r} must return a real scalar or a vector (m,) for one point"
    if not isinstance(z, jax.Array) and not jnp.isscalar(z):
        raise TypeError(f"{what}; it returned {type(z).__name__}. Stack several components with jnp.stack.")
    z = jnp.asarray(z)
    if jnp.issubdtype(z.dtype, jnp.complexfloating):
        raise TypeError(f"{what}; it returned {z.dtype}. Stack real and imaginary parts.")
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise TypeError(f"{what}; it returned {z.dtype}.")
    if z.ndim > 1 or z.size == 0:
        raise ValueError(f"{what}; it returned shape {z.shape} (called with ONE point, without a batch axis).")
    if z.size > 1 and _depends_on_number_of_points(z.size, count, inner, model, point):
        raise ValueError(
            f"{what}, of a size that does not depend on the number of points; it returned shape {z.shape} for "
            f"{count} points. Write the residual for a single point and give the points a leading axis in the batch."
        )
    return z.reshape(-1)


def _depends_on_number_of_points(size: int, count: int, inner, model, point) -> bool:
    """Whether the output is a stacked residual: it ignores its own point, or it grows with a batch inside the point."""
    if size == count and count > 1:
        closed = jax.make_jaxpr(lambda x: inner(model, x))(point)
        used = {id(v) for eqn in closed.jaxpr.eqns for v in eqn.invars} | {id(v) for v in closed.jaxpr.outvars}
        if not any(id(v) in used for v in closed.jaxpr.invars):
            return True
    leaves = [leaf for leaf in jax.tree.leaves(point) if jnp.ndim(leaf) >= 2 and leaf.shape[0] == size]
    if count > 1 or not leaves:  # a batch inside the point shows as a single "point"; many of them are fields
        return False

    def longer(leaf):
        grows = jnp.ndim(leaf) >= 2 and leaf.shape[0] == size
        return jax.ShapeDtypeStruct((size + 1, *leaf.shape[1:]) if grows else leaf.shape, leaf.dtype)

    try:
        out = jax.eval_shape(lambda x: inner(model, x), jax.tree.map(longer, point))
    except Exception:  # a map of fixed size refuses a longer point, and that is the answer
        return False
    return math.prod(out.shape) == size + 1
