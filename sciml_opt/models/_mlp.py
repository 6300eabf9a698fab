"""The multilayer perceptron of the PINN papers: Glorot-normal weights, zero biases."""

import itertools
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray


class MLP(eqx.Module):
    """A multilayer perceptron, written for ONE point.

        h_0 = x,    h_l = act(W_l h_{l-1} + b_l)  for l = 1 .. L,    u(x) = W_{L+1} h_L + b_{L+1}

    Fresh weights are Glorot-normal, `W_l ~ N(0, 2 / (fan_in + fan_out))`, and biases are zero: what PINN papers mean by
    a Glorot (Xavier) start. `equinox.nn.MLP` draws weights AND biases uniformly from `+-1/sqrt(fan_in)` instead, so
    that figures taken with it do not compare.

    **Arguments:**

    - `in_size`: number of coordinates d.
    - `out_size`: number of outputs, or `"scalar"` (the default) for an output of shape `()`.
    - `layers`: widths of the hidden layers, at least one.
    - `activation`: elementwise; a static field, so that a model is a pytree of arrays alone and a plain `jax.jit`
      argument.
    - `key`: for the weights.
    - `dtype`: of weights and biases; `None` follows jax (float64 exactly if x64 is on).

    **Returns:** a module with the fields `weights` and `biases`, tuples of `(out, in)` and `(out,)` arrays; called on
    `x` of shape `(d,)` it yields `()` or `(out_size,)`.

    **Errors:** `ValueError` for empty or non-positive sizes, and (when called) for an `x` that is not one point.
    `TypeError` for sizes that are no integers and for a dtype that is not floating.

    **Cost:** one product `W h` a layer.

    **Source:** Glorot and Bengio (2010), proceedings.mlr.press/v9/glorot10a.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import MLP
    >>> u = MLP(2, layers=(32, 32), key=jax.random.key(0))
    >>> u(jnp.array([0.2, 0.7])).shape
    ()
    >>> [W.shape for W in u.weights]
    [(32, 2), (32, 32), (1, 32)]

    ```
    """

    weights: tuple[Float[Array, "out in"], ...]
    biases: tuple[Float[Array, " out"], ...]
    activation: Callable[[Array], Array] = eqx.field(static=True)
    scalar: bool = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int | Literal["scalar"] = "scalar",
        layers: Sequence[int] = (32,),
        activation: Callable[[Array], Array] = jnp.tanh,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike | None = None,
    ):
        dtype = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"MLP(dtype=...) must be a floating dtype, got {dtype}.")
        if isinstance(layers, int) or not len(layers):
            raise ValueError(f"MLP(layers=...) must name at least one hidden width, such as (32, 32); got {layers!r}.")
        self.scalar = out_size == "scalar"
        named = {"in_size": in_size, "layers": layers, "out_size": 1 if self.scalar else out_size}
        for name, value in named.items():
            _check_positive(name, value)
        sizes = tuple(operator.index(n) for n in (in_size, *layers, named["out_size"]))
        self.weights = _glorot_normal(key, sizes, dtype)
        self.biases = tuple(jnp.zeros(n, dtype) for n in sizes[1:])
        self.activation = activation

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        d = self.weights[0].shape[1]
        if jnp.shape(x) != (d,):
            raise ValueError(
                f"MLP is called on ONE point, of shape ({d},); got shape {jnp.shape(x)}. "
                "Use jax.vmap(model) for a batch."
            )
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = self.activation(W @ x + b)
        u = self.weights[-1] @ x + self.biases[-1]
        return u[0] if self.scalar else u


@partial(jax.jit, static_argnames=("sizes", "dtype"))
def _glorot_normal(key: PRNGKeyArray, sizes: tuple[int, ...], dtype: jnp.dtype) -> tuple[Array, ...]:
    # One draw for all layers, in one program: XLA takes half a second for each draw of another shape.
    shapes = list(zip(sizes[1:], sizes[:-1], strict=True))
    ends = list(itertools.accumulate(m * n for m, n in shapes))
    parts = jnp.split(jax.random.normal(key, (ends[-1],), dtype), ends[:-1])
    return tuple((2 / (m + n)) ** 0.5 * z.reshape(m, n) for z, (m, n) in zip(parts, shapes, strict=True))


def _check_positive(name: str, value: int | Sequence[int]) -> None:
    for n in value if name == "layers" else (value,):  # type: ignore[union-attr]
        try:
            positive = operator.index(n) > 0
        except TypeError:
            raise TypeError(f"MLP({name}=...) must hold integers, got {value!r}.") from None
        if not positive:
            raise ValueError(f"MLP({name}=...) must be positive, got {value!r}.")
