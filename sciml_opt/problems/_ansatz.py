"""A network inside a formula: conditions that hold exactly, coordinates that suit the solution."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from ..models import MLP
from ._problem import Network


class Ansatz(eqx.Module):
    """`u(x) = form(network, x)` for ONE point, such as `u0(x) + t N(x, t)`, whose initial value is exact."""

    network: MLP
    form: Callable[..., Array] = eqx.field(static=True)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        return self.form(self.network, x)


def ansatz(
    form: Callable[..., Array],
    in_size: int,
    out_size: int | Literal["scalar"] = "scalar",
    activation: Callable[[Array], Array] = jnp.tanh,
) -> Network:
    """The `network` of a problem: an MLP of `in_size` features inside `form(network, x)`."""
    return partial(_draw, form, in_size, out_size, activation)


def _draw(
    form: Callable[..., Array],
    in_size: int,
    out_size: int | Literal["scalar"],
    activation: Callable[[Array], Array],
    key: PRNGKeyArray,
    layers: Sequence[int],
    dtype: DTypeLike | None,
) -> Ansatz:
    return Ansatz(MLP(in_size, out_size, layers, activation, key=key, dtype=dtype), form)


def harmonics(angle: Float[Array, ""], n: int) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """`cos(k angle)` and `sin(k angle)`, k = 1 .. n."""
    angles = jnp.arange(1, n + 1, dtype=angle.dtype) * angle
    return jnp.cos(angles), jnp.sin(angles)


def waves(angle: Float[Array, ""], n: int, order: int = 1) -> Float[Array, " {2*n}"]:
    """`harmonics` over `k^order`: in an equation of that order no wave of a fresh network drowns the others."""
    scale = jnp.arange(1, n + 1, dtype=angle.dtype) ** order
    cosines, sines = harmonics(angle, n)
    return jnp.concatenate([cosines / scale, sines / scale])
