"""The residual network of the Deep Ritz method."""

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


class ResNet(eqx.Module):
    """Residual blocks of two layers each, written for ONE point.

        h_0 = W_0 x + b_0,    h_l = h_{l-1} + act(B_l act(A_l h_{l-1} + a_l) + b_l)  for l = 1 .. L,    u(x) = W h_L + b

    Glorot-normal weights, zero biases. `so.explain` shows weights as factored and biases as dense.

    **Arguments:** as for `MLP`; `layers` are the widths of the blocks, all equal.

    **Returns:** a module with the fields `weights` and `biases`, in the order `W_0, A_1, B_1, .., A_L, B_L, W`; called
    on `x` of shape `(d,)` it yields `()` or `(out_size,)`.

    **Errors:** as for `MLP`; `ValueError` for unequal widths.

    **Cost:** that of an `MLP` of `2 L` hidden layers.

    **Source:** arXiv:1710.00211.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import ResNet
    >>> u = ResNet(2, layers=(10, 10, 10, 10), key=jax.random.key(0))  # Deep Ritz: four blocks of width 10
    >>> u(jnp.array([0.2, 0.7])).shape
    ()

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
        layers: Sequence[int] = (10, 10),
        activation: Callable[[Array], Array] = jnp.tanh,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike | None = None,
    ):
        dtype = floating("ResNet", dtype)
        d, *hidden, m = network_sizes("ResNet", in_size, layers, out_size)
        n = equal_widths("ResNet", hidden)
        shapes = ((n, d), *[(n, n)] * (2 * len(hidden)), (m, n))
        self.weights, self.biases = glorot_normal(key, shapes, dtype), zeros(shapes, dtype)
        self.activation = as_module("ResNet(activation=...)", activation)
        self.scalar = out_size == "scalar"

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        one_point("ResNet", x, self.weights[0].shape[1])
        first, *inner, last = zip(self.weights, self.biases, strict=True)
        h = first[0] @ x + first[1]
        for (A, a), (B, b) in zip(inner[::2], inner[1::2], strict=True):
            h = h + self.activation(B @ self.activation(A @ h + a) + b)
        u = last[0] @ h + last[1]
        return u[0] if self.scalar else u
