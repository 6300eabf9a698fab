"""Activations with a number of their own: a trained slope, a frequency."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from ._layers import floating, integer, real


class AdaptiveTanh(eqx.Module):
    """The hyperbolic tangent with a trained slope.

        act(h) = tanh(n a h),    a = 1 / n at the start

    As the `activation` of a network, one module is one slope for all layers; `MLP` also takes a sequence, one a layer:

        activation=AdaptiveTanh()                            one slope (1906.01170)
        activation=[AdaptiveTanh() for _ in layers]          a slope a layer (L-LAAF)
        activation=[AdaptiveTanh(n) for n in layers]         a slope a neuron (N-LAAF)

    `so.explain` shows the slope as dense.

    **Arguments:**

    - `size`: the number of neurons, each with a slope of its own; `None` for one slope.
    - `scale`: `n`, fixed, by which a step on `a` moves the slope faster.
    - `dtype`: as for `MLP`, which casts the slopes to its own.

    **Returns:** a module with the field `slope`, `()` or `(size,)`; called on `h` it yields its shape.

    **Errors:** `TypeError` or `ValueError` for a size that is no positive integer, `ValueError` for the scale.

    **Cost:** one product more than tanh.

    **Source:** arXiv:1906.01170; by layer and neuron arXiv:1909.12228, here without the slope recovery term.

    **Example:**

    ```python
    >>> import jax
    >>> from sciml_opt.models import MLP, AdaptiveTanh
    >>> u = MLP(2, layers=(8, 8), activation=[AdaptiveTanh(8), AdaptiveTanh(8)], key=jax.random.key(0))
    >>> u.activation[0].slope.shape
    (8,)

    ```
    """

    slope: Float[Array, "..."]
    scale: float = eqx.field(static=True)

    def __init__(self, size: int | None = None, scale: float = 1.0, *, dtype: DTypeLike | None = None):
        self.scale = real("AdaptiveTanh(scale=...)", scale)
        shape = () if size is None else (integer("AdaptiveTanh(size=...)", size),)
        self.slope = jnp.full(shape, 1 / self.scale, floating("AdaptiveTanh", dtype))

    def __call__(self, h: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.tanh(self.scale * self.slope * h)


class Sine(eqx.Module):
    """The sine of a fixed frequency, `act(h) = sin(omega h)`: the activation of a SIREN; see `siren`.

    **Arguments:** `omega`, a positive number of Python; it is not trained.

    **Errors:** `ValueError` for an `omega` that is no positive number.

    **Cost:** a sine.

    **Source:** arXiv:2006.09661.

    **Example:**

    ```python
    >>> import jax.numpy as jnp
    >>> from sciml_opt.models import Sine
    >>> print(Sine(2.0)(jnp.array(jnp.pi / 4)))
    1.0

    ```
    """

    omega: float = eqx.field(static=True)

    def __init__(self, omega: float = 30.0):
        self.omega = real("Sine(omega=...)", omega)

    def __call__(self, h: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.sin(self.omega * h)
