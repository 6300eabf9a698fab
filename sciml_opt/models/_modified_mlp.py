"""The modified multilayer perceptron: every layer is mixed with two encoders of the input."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from ._layers import (
    OutSize,
    as_module,
    chained,
    equal_widths,
    floating,
    glorot_normal,
    network_sizes,
    one_point,
    zeros,
)


class ModifiedMLP(eqx.Module):
    """A multilayer perceptron with two gates, written for ONE point.

        U = act(W_U x + b_U),   V = act(W_V x + b_V),   h_0 = x

        Z_l = act(W_l h_{l-1} + b_l),    h_l = (1 - Z_l) U + Z_l V  for l = 1 .. L,    u(x) = W_{L+1} h_L + b_{L+1}

    with elementwise products: the input reaches every layer. Glorot-normal weights, zero biases. `so.explain` shows
    weights as factored and biases as dense.

    **Arguments:** as for `MLP`; the hidden layers have equal widths.

    **Returns:** a module with the fields `weights`, `biases` of the layers and `gate_weights`, `gate_biases` of U, V;
    called on `x` of shape `(d,)` it yields `()` or `(out_size,)`.

    **Errors:** as for `MLP`; `ValueError` for unequal widths.

    **Cost:** that of an `MLP`, and two first layers more.

    **Source:** arXiv:2001.04536, in the form of arXiv:2308.08468 (the first layer is gated as well).

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import ModifiedMLP
    >>> u = ModifiedMLP(2, layers=(16, 16), key=jax.random.key(0))
    >>> u(jnp.array([0.2, 0.7])).shape
    ()

    ```
    """

    weights: tuple[Float[Array, "out in"], ...]
    biases: tuple[Float[Array, " out"], ...]
    gate_weights: tuple[Float[Array, "width d"], Float[Array, "width d"]]
    gate_biases: tuple[Float[Array, " width"], Float[Array, " width"]]
    activation: Any
    scalar: bool = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: OutSize = "scalar",
        layers: Sequence[int] = (32, 32),
        activation: Callable[[Array], Array] = jnp.tanh,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike | None = None,
    ):
        dtype = floating("ModifiedMLP", dtype)
        sizes = network_sizes("ModifiedMLP", in_size, layers, out_size)
        gate = equal_widths("ModifiedMLP", sizes[1:-1]), sizes[0]
        shapes = (*chained(sizes), gate, gate)
        weights, biases = glorot_normal(key, shapes, dtype), zeros(shapes, dtype)
        self.weights, (U, V) = weights[:-2], weights[-2:]
        self.biases, (b_U, b_V) = biases[:-2], biases[-2:]
        self.gate_weights, self.gate_biases = (U, V), (b_U, b_V)
        self.activation = as_module("ModifiedMLP(activation=...)", activation)
        self.scalar = out_size == "scalar"

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        one_point("ModifiedMLP", x, self.weights[0].shape[1])
        U, V = (self.activation(W @ x + b) for W, b in zip(self.gate_weights, self.gate_biases, strict=True))
        h = x
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            Z = self.activation(W @ h + b)
            h = (1 - Z) * U + Z * V
        u = self.weights[-1] @ h + self.biases[-1]
        return u[0] if self.scalar else u
