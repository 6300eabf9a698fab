"""Random Fourier features: coordinates as waves, so that a network sees high frequencies from the start."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from ._frozen import Frozen, value
from ._layers import floating, integer, one_point, real


class FourierFeatures(eqx.Module):
    """Random Fourier features of ONE point.

        phi(x) = [cos(2 pi B x), sin(2 pi B x)],     B_ki ~ N(0, scale^2)

    Put in front of a network by `Chain(FourierFeatures(2, 16, 1.0, key=k1), MLP(32, key=k2))`. `scale` is the typical
    frequency in waves a unit length: of all numbers of such a model, the one that matters most.

    As drawn, `B` stays: it is held as its bits, so that it is no parameter, and `so.explain` does not list it. With
    `trainable=True` it is a parameter, which `so.explain` shows as factored.

    **Arguments:**

    - `in_size`: number of coordinates d.
    - `count`: number of frequencies m.
    - `scale`: standard deviation of the entries of `B`, a positive number of Python.
    - `trainable`: whether `B` is trained.
    - `key`: for `B`.
    - `dtype`: as for `MLP`; the features follow the dtype of x.

    **Returns:** a module with the property `out_size`, `2 m`, and `B`, `(m, d)`; called on `x` of shape `(d,)` it
    yields `(2 m,)`.

    **Errors:** `TypeError` or `ValueError` for sizes that are no positive integers, a scale that is not positive, a
    dtype that is not floating or has less than 32 bits, and (when called) an `x` that is not one point.

    **Cost:** one product `B x`, 2 m sines.

    **Source:** arXiv:2006.10739; in PINNs arXiv:2012.10047.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import MLP, Chain, FourierFeatures
    >>> keys = jax.random.split(jax.random.key(0))
    >>> features = FourierFeatures(2, 16, 1.0, key=keys[0])
    >>> u = Chain(features, MLP(features.out_size, layers=(32,), key=keys[1]))
    >>> u(jnp.array([0.2, 0.7])).shape
    ()

    ```
    """

    frequencies: Float[Array, "m d"] | Frozen

    def __init__(
        self,
        in_size: int,
        count: int,
        scale: float,
        trainable: bool = False,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike | None = None,
    ):
        shape = integer("FourierFeatures(count=...)", count), integer("FourierFeatures(in_size=...)", in_size)
        dtype = floating("FourierFeatures", dtype)
        if dtype.itemsize < 4:
            raise TypeError(f"FourierFeatures(dtype=...) must be float32 or float64, got {dtype}.")
        B = real("FourierFeatures(scale=...)", scale) * jax.random.normal(key, shape, dtype)
        self.frequencies = B if trainable else Frozen(B)

    @property
    def B(self) -> Float[Array, "m d"]:
        return value(self.frequencies)

    @property
    def out_size(self) -> int:
        return 2 * self.B.shape[0]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        one_point("FourierFeatures", x, self.B.shape[1])
        phase = 2 * math.pi * (self.B.astype(x.dtype) @ x)
        return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)])
