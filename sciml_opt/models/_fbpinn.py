"""Finite basis PINNs: many small networks, each on a window of the domain."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from ._layers import OutSize, integer, interval, one_point, real
from ._mlp import MLP


class FBPINN(eqx.Module):
    """A multilevel finite basis PINN on a box, written for ONE point.

        u(x) = 1/L  sum_l  sum_j  w_lj(x) N_lj( (x - c_lj) / s_lj ),        sum_j w_lj(x) = 1

    Level l has `n` subdomains a dimension with centres `c` evenly from face to face of the box, a distance `h` apart,
    and half-width `s = overlap h / 2` (one subdomain: the middle, and `overlap` times half the box). The windows are
    products over the dimensions of `cos^4(pi (x_i - c_i) / (2 s_i))` inside, 0 outside (three continuous derivatives),
    normalised a level. Every network sees its window as [-1, 1], so that high frequencies are low ones there.

    The subdomain networks are one stacked `MLP`: every array has a leading axis of J subdomains, and a point gathers
    those whose windows reach it. So `so.explain` shows all parameters as dense.

    **Arguments:**

    - `domain`: `((a_1, b_1), .., (a_d, b_d))`, the box.
    - `out_size`, `layers`, `activation`, `dtype`: of every subdomain network, as for `MLP`.
    - `levels`: subdomains a dimension of each level: a number, or one a dimension, such as `(8, 1)`.
    - `overlap`: width of a window as a multiple of the distance of the centres, greater than 1. A point lies in at most
      `ceil(overlap)` windows a dimension.
    - `key`: for the weights.

    **Returns:** a module with the field `networks`, the property `boxes` and the functions `windows` and `active` of a
    point; called on `x` of shape `(d,)` in the box it yields `()` or `(out_size,)`. Far outside, where no window
    reaches, it yields NaN.

    **Errors:** as for `MLP`; `ValueError` for a domain that is no box, for levels that fit no dimension, and for an
    overlap that leaves gaps.

    **Cost:** at most `ceil(overlap)^d` small networks a level and point, and a copy of their parameters, however many
    subdomains there are. Neither does the time to compile grow with them.

    **Source:** arXiv:2107.07871; multilevel arXiv:2306.05486.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import FBPINN
    >>> u = FBPINN(((0.0, 1.0), (0.0, 1.0)), layers=(8,), levels=(1, 2, 4), key=jax.random.key(0))
    >>> u.boxes.shape, u(jnp.array([0.2, 0.7])).shape
    ((21, 2, 2), ())
    >>> print(jnp.sum(u.windows(jnp.array([0.2, 0.7]))).round(6))
    1.0

    ```
    """

    networks: MLP
    domain: tuple[tuple[float, float], ...] = eqx.field(static=True)
    levels: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    overlap: float = eqx.field(static=True)

    def __init__(
        self,
        domain: Sequence[tuple[float, float]],
        out_size: OutSize = "scalar",
        layers: Sequence[int] = (16,),
        activation: Callable[[Array], Array] = jnp.tanh,
        *,
        levels: Sequence[int | Sequence[int]] = (1, 2, 4),
        overlap: float = 1.9,
        key: PRNGKeyArray,
        dtype: DTypeLike | None = None,
    ):
        self.domain = tuple(interval("FBPINN(domain=...)", ends) for ends in domain)
        if not self.domain or not len(levels):
            raise ValueError("FBPINN needs a domain of at least one dimension and at least one level.")
        self.levels = tuple(_a_dimension(level, len(self.domain)) for level in levels)
        self.overlap = real("FBPINN(overlap=...)", overlap, above=1.0)

        def network(key):
            return MLP(len(self.domain), out_size, layers, activation, key=key, dtype=dtype)

        self.networks = eqx.filter_vmap(network)(jax.random.split(key, sum(map(math.prod, self.levels))))

    @property
    def boxes(self) -> Float[np.ndarray, "J d 2"]:
        """Lower and upper end of every subdomain, level by level; within a level the last dimension runs fastest."""
        boxes: list[tuple] = []
        for level in self.levels:
            sides = []
            for axis, n in enumerate(level):
                first, h, half = self._centres(axis, n)
                sides.append([(first + h * j - half, first + h * j + half) for j in range(n)])
            boxes += itertools.product(*sides)
        return np.array(boxes)

    def active(self, x: Float[Array, " d"]) -> tuple[Int[Array, " k"], Float[Array, " k"], Float[Array, "k d"]]:
        """The subdomains whose windows reach `x`, and some whose windows do not: as many at every point.

        **Returns:** their places in `boxes`, their weights `w_lj(x) / L`, and `x` in the coordinates of each.
        """
        one_point("FBPINN", x, len(self.domain))
        found, start = [], 0
        for level in self.levels:
            sides = zip(*(self._along(axis, n, x[axis]) for axis, n in enumerate(level)), strict=True)
            numbers, windows, local = (jnp.meshgrid(*side, indexing="ij") for side in sides)
            place = numbers[0]
            for n, number in zip(level[1:], numbers[1:], strict=True):
                place = place * n + number
            window = functools.reduce(jnp.multiply, windows) / len(self.levels)
            found.append(
                (start + place.reshape(-1), window.reshape(-1), jnp.stack(local, axis=-1).reshape(-1, len(level)))
            )
            start += math.prod(level)
        places, windows, local = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
        return places, windows, local

    def windows(self, x: Float[Array, " d"]) -> Float[Array, " J"]:
        """The weights of all subdomain networks at `x`, `w_lj(x) / L`, in the order of `boxes`; their sum is 1."""
        places, windows, _ = self.active(x)
        return jnp.zeros(len(self.boxes), x.dtype).at[places].set(windows)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        places, windows, local = self.active(x)
        networks = jax.tree.map(lambda a: a[places], self.networks)
        return windows @ eqx.filter_vmap(lambda net, y: net(y))(networks, local)

    def _centres(self, axis: int, n: int) -> tuple[float, float, float]:
        """The first of `n` centres along one axis, their distance, and the half-width of the windows."""
        a, b = self.domain[axis]
        h = (b - a) / max(n - 1, 1)
        return a if n > 1 else (a + b) / 2, h, self.overlap * h / 2

    def _along(self, axis: int, n: int, x: Float[Array, ""]) -> tuple[Array, Array, Array]:
        """The subdomains along one axis that reach `x`: numbers, windows of sum 1, local coordinates."""
        first, h, half = self._centres(axis, n)
        count = min(n, math.ceil(self.overlap))
        lowest = jnp.floor((lax.stop_gradient(x) - first - half) / h) + 1
        numbers = jnp.clip(lowest, 0, n - count).astype(jnp.int32) + jnp.arange(count, dtype=jnp.int32)
        s = (x - (first + h * numbers.astype(x.dtype))) / half
        if n == 1:
            return numbers, jnp.ones_like(s), s
        w = jnp.where(jnp.abs(s) < 1, jnp.cos(math.pi / 2 * s) ** 4, jnp.zeros_like(s))
        return numbers, w / jnp.sum(w), s


def _a_dimension(level: int | Sequence[int], d: int) -> tuple[int, ...]:
    """The number of subdomains a dimension of one level."""
    numbers = tuple(level) if isinstance(level, Sequence) else (level,) * d
    if len(numbers) != d:
        raise ValueError(f"FBPINN(levels=...) must hold numbers, or one a dimension: {d}; got {level!r}.")
    return tuple(integer("FBPINN(levels=...)", n) for n in numbers)
