"""What all networks share: sizes and dtypes of arguments, Glorot weights, functions as parts of a model."""

import itertools
import math
import numbers
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

OutSize = int | Literal["scalar"]


class Function(eqx.Module):
    """A plain function as a part of a model, which stays a pytree of arrays alone and so a plain `jax.jit` argument."""

    function: Callable[..., Any] = eqx.field(static=True)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def as_module(name: str, function: Any) -> Any:
    """A module as it is, whose arrays are trained; a plain function without arrays."""
    if not callable(function):
        raise TypeError(f"{name} must be a model or a function, got {type(function).__name__}.")
    return function if isinstance(function, eqx.Module | jax.tree_util.Partial) else Function(function)


def integer(name: str, value: Any) -> int:
    """A positive integer."""
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must hold integers, got {value!r}.") from None
    if result <= 0:
        raise ValueError(f"{name} must be positive, got {value!r}.")
    return result


def real(name: str, value: Any, above: float = 0.0) -> float:
    """A finite number, as one of Python: it belongs to the structure of a model, and is not trained."""
    result = float(value) if isinstance(value, numbers.Real) else math.nan
    if not math.isfinite(result) or not result > above:
        raise ValueError(f"{name} must be a finite number greater than {above:g}, got {value!r}.")
    return result


def interval(name: str, ends: Sequence[float]) -> tuple[float, float]:
    """`(a, b)`, two finite numbers with a < b."""
    if len(ends) != 2 or not all(isinstance(end, numbers.Real) and math.isfinite(end) for end in ends):
        raise ValueError(f"{name} must be pairs (a, b) of finite numbers, got {ends!r}.")
    if not ends[0] < ends[1]:
        raise ValueError(f"{name} must be pairs (a, b) with a < b, got {ends!r}.")
    return float(ends[0]), float(ends[1])


def axis_index(name: str, axis: Any, size: int) -> int:
    """The axis of `size` components, counted from the front."""
    if isinstance(axis, bool) or not isinstance(axis, int) or not -size <= axis < size:
        raise ValueError(f"{name} must name one of the {size} coordinates, got {axis!r}.")
    return axis % size


def floating(owner: str, dtype: DTypeLike | None) -> jnp.dtype:
    """The dtype of weights and biases; `None` follows jax."""
    dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{owner}(dtype=...) must be a floating dtype, got {dtype}.")
    return dtype


def network_sizes(owner: str, in_size: Any, layers: Any, out_size: Any) -> tuple[int, ...]:
    """The numbers of inputs, of neurons in each hidden layer, and of outputs."""
    if isinstance(layers, int) or not len(layers):
        raise ValueError(f"{owner}(layers=...) must name at least one hidden width, such as (32, 32); got {layers!r}.")
    inputs = integer(f"{owner}(in_size=...)", in_size)
    hidden = []
    for n in layers:
        try:
            hidden.append(integer(f"{owner}(layers=...)", n))
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace(f"got {n!r}", f"got {layers!r}")) from None
    return inputs, *hidden, output_size(owner, out_size)


def output_size(owner: str, out_size: Any) -> int:
    return 1 if out_size == "scalar" else integer(f"{owner}(out_size=...)", out_size)


def equal_widths(owner: str, layers: Sequence[int]) -> int:
    """The width that all hidden layers have."""
    if len(set(layers)) > 1:
        raise ValueError(f"{owner}(layers=...) must have equal widths, such as (32, 32); got {tuple(layers)}.")
    return layers[0]


def one_point(owner: str, x: Array, d: int) -> None:
    """Refuses what is not the vector of one point."""
    if jnp.shape(x) != (d,):
        raise ValueError(
            f"{owner} is called on ONE point, of shape ({d},); got shape {jnp.shape(x)}. "
            "Use jax.vmap(model) for a batch."
        )


def chained(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """The shapes `(out, in)` of the weights between layers of these sizes."""
    return tuple((n, m) for m, n in itertools.pairwise(sizes))


@partial(jax.jit, static_argnames=("shapes", "dtype"))
def glorot_normal(key: PRNGKeyArray, shapes: tuple[tuple[int, int], ...], dtype: jnp.dtype) -> tuple[Array, ...]:
    """Weights `W ~ N(0, 2 / (fan_in + fan_out))` of the given shapes `(out, in)`."""
    # One draw for all layers, in one program: XLA takes half a second for each draw of another shape.
    ends = list(itertools.accumulate(m * n for m, n in shapes))
    parts = jnp.split(jax.random.normal(key, (ends[-1],), dtype), ends[:-1])
    return tuple((2 / (m + n)) ** 0.5 * z.reshape(m, n) for z, (m, n) in zip(parts, shapes, strict=True))


def zeros(shapes: Sequence[tuple[int, int]], dtype: jnp.dtype) -> tuple[Array, ...]:
    """The biases that belong to weights of these shapes."""
    return tuple(jnp.zeros(n, dtype) for n, _ in shapes)
