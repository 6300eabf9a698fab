"""The multilayer perceptron of the PINN papers: Glorot-normal weights, zero biases."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from ._layers import OutSize, as_module, chained, floating, glorot_normal, network_sizes, one_point, zeros


class MLP(eqx.Module):
    """A multilayer perceptron, written for ONE point.

        h_0 = x,    h_l = act(W_l h_{l-1} + b_l)  for l = 1 .. L,    u(x) = W_{L+1} h_L + b_{L+1}

    Fresh weights are Glorot-normal, `W_l ~ N(0, 2 / (fan_in + fan_out))`, and biases are zero: what PINN papers mean by
    a Glorot (Xavier) start. `equinox.nn.MLP` draws weights AND biases uniformly from `+-1/sqrt(fan_in)` instead, so
    that figures taken with it do not compare. `so.explain` shows weights as factored and biases as dense.

    **Arguments:**

    - `in_size`: number of coordinates d.
    - `out_size`: number of outputs, or `"scalar"` (the default) for an output of shape `()`.
    - `layers`: widths of the hidden layers, at least one.
    - `activation`: elementwise, a function (`jnp.tanh`, `jnp.sin`, `jax.nn.gelu`; no leaf, so that a model is a pytree
      of arrays alone and a plain `jax.jit` argument) or a module with trained numbers, such as `AdaptiveTanh`; or a
      sequence of them, one a hidden layer.
    - `key`: for the weights.
    - `dtype`: of weights and biases; `None` follows jax (float64 exactly if x64 is on).

    **Returns:** a module with the fields `weights` and `biases`, tuples of `(out, in)` and `(out,)` arrays; called on
    `x` of shape `(d,)` it yields `()` or `(out_size,)`.

    **Errors:** `ValueError` for empty or non-positive sizes, and (when called) for an `x` that is not one point.
    `TypeError` for sizes that are no integers and for a dtype that is not floating. `ValueError` for a sequence of
    activations that is not one a layer.

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
    activation: Any
    scalar: bool = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: OutSize = "scalar",
        layers: Sequence[int] = (32,),
        activation: Callable[[Array], Array] | Sequence[Callable[[Array], Array]] = jnp.tanh,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike | None = None,
    ):
        dtype = floating("MLP", dtype)
        shapes = chained(network_sizes("MLP", in_size, layers, out_size))
        self.weights = glorot_normal(key, shapes, dtype)
        self.biases = zeros(shapes, dtype)
        self.activation = _activations(activation, len(shapes) - 1, dtype)
        self.scalar = out_size == "scalar"

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        one_point("MLP", x, self.weights[0].shape[1])
        for layer, (W, b) in enumerate(zip(self.weights[:-1], self.biases[:-1], strict=True)):
            act = self.activation[layer] if isinstance(self.activation, tuple) else self.activation
            x = act(W @ x + b)
        u = self.weights[-1] @ x + self.biases[-1]
        return u[0] if self.scalar else u


def _activations(activation: Any, layers: int, dtype: jnp.dtype) -> Any:
    """One activation, or a tuple of one a layer, with their numbers in the dtype of the weights."""
    if not isinstance(activation, Sequence):
        return _cast(as_module("MLP(activation=...)", activation), dtype)
    if len(activation) != layers:
        raise ValueError(f"MLP(activation=...) must be one, or one a hidden layer: {layers}, got {len(activation)}.")
    return tuple(_cast(as_module("MLP(activation=...)", act), dtype) for act in activation)


def _cast(module: Any, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda a: a.astype(dtype) if eqx.is_inexact_array(a) else a, module)
