"""Checks of arguments: an error names the argument, what came and what is allowed."""

import difflib
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree


def number(
    name: str,
    value: ArrayLike,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    finite: bool = True,
) -> Array:
    """A scalar as a floating array, so that a new value does not retrace."""
    array = jnp.asarray(value)
    if array.ndim != 0 or not jnp.issubdtype(array.dtype, jnp.number) or jnp.iscomplexobj(array):
        raise ValueError(f"{name} must be one real number, got {value!r}.")
    if not isinstance(array, jax.core.Tracer):
        known = np.asarray(array)  # within a trace jax would stage the comparisons
        if finite and not np.isfinite(known):
            raise ValueError(f"{name} must be finite, got {value}.")
        if above is not None and not known > above:
            raise ValueError(f"{name} must be greater than {above}, got {value}.")
        if at_least is not None and not known >= at_least:
            raise ValueError(f"{name} must be at least {at_least}, got {value}.")
        if below is not None and not known < below:
            raise ValueError(f"{name} must be less than {below}, got {value}.")
        if at_most is not None and not known <= at_most:
            raise ValueError(f"{name} must be at most {at_most}, got {value}.")
    dtype = array.dtype if jnp.issubdtype(array.dtype, jnp.floating) else jnp.result_type(float)
    return jnp.asarray(array, dtype)  # with a dtype: weak types would retrace


def schedule(name: str, value: ArrayLike | Callable, **limits: Any) -> jax.tree_util.Partial:
    """A number (within the limits of `number`), or a function of the step, as a pytree over its numbers."""
    if isinstance(value, jax.tree_util.Partial):  # one in another would hide its numbers, and retrace
        return value
    if callable(value):
        return jax.tree_util.Partial(value)
    return jax.tree_util.Partial(_constant, number(name, value, **limits))


def _constant(value: Array, step: Array) -> Array:
    del step
    return value


def count(name: str, value: Any) -> int:
    """A positive integer, of Python or numpy."""
    try:
        result = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.") from None
    if result < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}.")
    return result


def parameters(params: PyTree) -> PyTree:
    """`params`, if every leaf is an array of float32 or float64 numbers."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype, place = getattr(leaf, "dtype", None), "params" + jax.tree_util.keystr(path)
        if dtype is None:
            continue
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"{place} has dtype {dtype}, but parameters must be real: make two leaves of its parts.")
        if not (jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits >= 32):
            raise TypeError(
                f"{place} has dtype {dtype}, but parameters must be float32 or float64: convert it, or leave it out "
                "of the parameters (eqx.partition(model, eqx.is_inexact_array))."
            )
    return params


def one_of(name: str, value: Any, allowed: Iterable[str]) -> Any:
    """`value`, if it is one of the allowed names."""
    allowed = tuple(allowed)
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} must be one of {list(allowed)}, got {value!r}.{hint}")
    return value
