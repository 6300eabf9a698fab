"""Periodic coordinates as waves, so that a network is periodic exactly."""

import math
from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._layers import axis_index, integer, interval, one_point, real


class PeriodicEmbedding(eqx.Module):
    """Replaces the periodic coordinates of ONE point by waves.

        x_i  ->  cos(2 pi k x_i / P_i),  sin(2 pi k x_i / P_i),    k = 1 .. harmonics,    if i is periodic
        x_i  ->  x_i,   or  2 (x_i - a_i) / (b_i - a_i) - 1 if it has bounds (a_i, b_i),  if not

    in the order of the coordinates, all cosines of one before its sines. Any network behind it is periodic exactly,
    with all derivatives: no boundary term is needed. It has no parameters; `so.explain` shows those of the network
    behind as if it were not there.

    **Arguments:**

    - `in_size`: number of coordinates d.
    - `periods`: axis -> period, positive; a negative axis counts from the end.
    - `harmonics`: number of waves a coordinate.
    - `bounds`: axis -> `(a, b)`, coordinates that are mapped to [-1, 1]: the inputs of a network should be of size 1.

    **Returns:** a module with the property `out_size`; called on `x` of shape `(d,)` it yields `(out_size,)`.

    **Errors:** `ValueError` for axes that a point lacks or that have both period and bounds, for periods that are not
    positive, bounds in the wrong order, and (when called) an `x` that is not one point.

    **Cost:** `2 harmonics` sines a periodic coordinate.

    **Source:** Dong and Ni, doi:10.1016/j.jcp.2021.110242 (arXiv:2007.07442).

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import MLP, Chain, PeriodicEmbedding
    >>> waves = PeriodicEmbedding(2, {0: 2.0}, harmonics=3, bounds={1: (0.0, 1.0)})  # x in (-1, 1), t in (0, 1)
    >>> u = Chain(waves, MLP(waves.out_size, layers=(16,), key=jax.random.key(0)))
    >>> bool(jnp.allclose(u(jnp.array([-1.0, 0.3])), u(jnp.array([1.0, 0.3]))))
    True

    ```
    """

    in_size: int = eqx.field(static=True)
    periods: tuple[tuple[int, float], ...] = eqx.field(static=True)
    harmonics: int = eqx.field(static=True)
    bounds: tuple[tuple[int, tuple[float, float]], ...] = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        periods: Mapping[int, float],
        harmonics: int = 1,
        bounds: Mapping[int, tuple[float, float]] | None = None,
    ):
        self.in_size = integer("PeriodicEmbedding(in_size=...)", in_size)
        self.harmonics = integer("PeriodicEmbedding(harmonics=...)", harmonics)
        name = "PeriodicEmbedding(periods=...)"
        waves = {axis_index(name, axis, self.in_size): real(name, period) for axis, period in periods.items()}
        name = "PeriodicEmbedding(bounds=...)"
        scaled = {axis_index(name, axis, self.in_size): interval(name, ends) for axis, ends in (bounds or {}).items()}
        if both := sorted(waves.keys() & scaled):
            raise ValueError(f"{name}: the axes {both} are periodic, and need no bounds.")
        self.periods, self.bounds = tuple(sorted(waves.items())), tuple(sorted(scaled.items()))

    @property
    def out_size(self) -> int:
        return self.in_size + (2 * self.harmonics - 1) * len(self.periods)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, " n"]:
        one_point("PeriodicEmbedding", x, self.in_size)
        periods, bounds = dict(self.periods), dict(self.bounds)
        parts = []
        for axis in range(self.in_size):
            if axis in periods:
                waves = 2 * math.pi / periods[axis] * jnp.arange(1, self.harmonics + 1, dtype=x.dtype)
                parts += [jnp.cos(waves * x[axis]), jnp.sin(waves * x[axis])]
            elif axis in bounds:
                a, b = bounds[axis]
                parts.append(2 / (b - a) * (x[axis : axis + 1] - a) - 1)
            else:
                parts.append(x[axis : axis + 1])
        return jnp.concatenate(parts)
