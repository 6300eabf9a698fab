"""PirateNet: gated residual blocks that start as the identity."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from ._layers import (
    OutSize,
    as_module,
    equal_widths,
    floating,
    glorot_normal,
    network_sizes,
    one_point,
    zeros,
)


class PirateNet(eqx.Module):
    """A physics-informed residual adaptive network, written for ONE point: of an embedding Phi, `FourierFeatures`.

        U = act(W_U Phi + b_U),    V = act(W_V Phi + b_V),    x_1 = Phi

        f = act(W_1 x_l + b_1),    z = f U + (1 - f) V
        g = act(W_2 z + b_2),      y = g U + (1 - g) V
        h = act(W_3 y + b_3),      x_{l+1} = alpha_l h + (1 - alpha_l) x_l     for l = 1 .. L,     u = W x_{L+1} + b

    with weights of its own in each block and elementwise products. All `alpha_l` start at 0: the fresh network is
    linear in the embedding however deep it is, and each block sets in as training asks for it. Glorot-normal weights,
    zero biases. `so.explain` shows weights as factored, biases and alphas as dense.

    **Arguments:** as for `MLP`; `in_size` is that of the embedding, and `layers` are the widths of the blocks, all
    equal.

    **Returns:** a module with the fields `weights` and `biases` (three a block, then the output), `gate_weights`,
    `gate_biases` of U, V, and `alphas`, `(L,)`; called on `Phi` of shape `(in_size,)` it yields `()` or `(out_size,)`.

    **Errors:** as for `MLP`; `ValueError` for unequal widths.

    **Cost:** that of an `MLP` of `3 L` hidden layers.

    **Source:** arXiv:2402.00326, without random weight factorisation and least-squares start of the last layer.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import Chain, FourierFeatures, PirateNet
    >>> keys = jax.random.split(jax.random.key(0))
    >>> u = Chain(FourierFeatures(2, 8, 1.0, key=keys[0]), PirateNet(16, layers=(16, 16), key=keys[1]))
    >>> u(jnp.array([0.2, 0.7])).shape
    ()

    ```
    """

    weights: tuple[Float[Array, "out in"], ...]
    biases: tuple[Float[Array, " out"], ...]
    gate_weights: tuple[Float[Array, "width d"], Float[Array, "width d"]]
    gate_biases: tuple[Float[Array, " width"], Float[Array, " width"]]
    alphas: Float[Array, " L"]
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
        dtype = floating("PirateNet", dtype)
        d, *hidden, m = network_sizes("PirateNet", in_size, layers, out_size)
        n = equal_widths("PirateNet", hidden)
        shapes = (*[(n, d), (n, n), (d, n)] * len(hidden), (m, d), (n, d), (n, d))
        weights, biases = glorot_normal(key, shapes, dtype), zeros(shapes, dtype)
        self.weights, (U, V) = weights[:-2], weights[-2:]
        self.biases, (b_U, b_V) = biases[:-2], biases[-2:]
        self.gate_weights, self.gate_biases = (U, V), (b_U, b_V)
        self.alphas = jnp.zeros(len(hidden), dtype)
        self.activation = as_module("PirateNet(activation=...)", activation)
        self.scalar = out_size == "scalar"

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        one_point("PirateNet", x, self.weights[-1].shape[1])
        U, V = (self.activation(W @ x + b) for W, b in zip(self.gate_weights, self.gate_biases, strict=True))

        def dense(layer, h):
            return self.activation(self.weights[layer] @ h + self.biases[layer])

        for block in range(len(self.alphas)):
            alpha = self.alphas[block]
            f = dense(3 * block, x)
            g = dense(3 * block + 1, f * U + (1 - f) * V)
            h = dense(3 * block + 2, g * U + (1 - g) * V)
            x = alpha * h + (1 - alpha) * x
        u = self.weights[-1] @ x + self.biases[-1]
        return u[0] if self.scalar else u
