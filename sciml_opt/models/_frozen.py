"""Arrays of a model that no optimizer trains."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Frozen(eqx.Module):
    """A floating array held as its bits.

    Trained is what is a floating array (`eqx.partition(model, eqx.is_inexact_array)`). Integers are not, and yet they
    are a leaf, which `vmap`, `jit` and a stack of models treat as one; a static field could not differ between the
    members of an ensemble.
    """

    bits: Int[Array, "..."]

    def __init__(self, array: Float[Array, "..."]):
        self.bits = lax.bitcast_convert_type(array, jnp.dtype(f"int{8 * array.dtype.itemsize}"))

    @property
    def value(self) -> Float[Array, "..."]:
        return lax.bitcast_convert_type(self.bits, jnp.dtype(f"float{8 * self.bits.dtype.itemsize}"))


def value(array: Array | Frozen) -> jax.Array:
    return array.value if isinstance(array, Frozen) else array
