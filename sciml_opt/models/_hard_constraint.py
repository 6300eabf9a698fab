"""Boundary values that hold exactly, whatever the parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._layers import as_module


class HardConstraint(eqx.Module):
    """A network whose values on the boundary hold exactly.

        u(x) = lift(x) + distance(x) net(x)

    `distance` vanishes where values are given and nowhere else, with a slope that is not 0 there (a slope of 0 takes
    the equation next to the boundary out of reach); `lift` has these values. A distance that vanishes to second order,
    such as `t ** 2`, also holds the slope of `lift`: initial value and velocity of a wave. The boundary term of the
    objective is then left out. `so.explain` shows the parameters of the network as if it stood alone.

    **Arguments:**

    - `net`: the model, `(d,) -> ()` or `(m,)`.
    - `distance`: `(d,) -> ()`, or `(m,)` for one factor a component.
    - `lift`: `(d,) ->` the shape of `net`, or a number; zero by default.

    A plain function has no parameters; the arrays of a module are trained as those of `net` are.

    **Returns:** a module with these fields; called on one point it yields the shape of `net`.

    **Errors:** `TypeError` for what cannot be called; `ValueError` (when called) for shapes that do not fit.

    **Cost:** one of each a point.

    **Source:** Lagaris, Likas and Fotiadis, doi:10.1109/72.712178; distance functions arXiv:2104.08426.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import MLP, HardConstraint
    >>> net = MLP(2, layers=(8,), key=jax.random.key(0))
    >>> u = HardConstraint(net, distance=lambda x: x[1] * (1 - x[0] ** 2), lift=lambda x: -jnp.sin(jnp.pi * x[0]))
    >>> bool(jnp.isclose(u(jnp.array([0.5, 0.0])), -1.0))
    True

    ```
    """

    net: Any
    distance: Any
    lift: Any

    def __init__(
        self,
        net: Callable[..., Any],
        distance: Callable[..., ArrayLike],
        lift: Callable[..., ArrayLike] | None = None,
    ):
        self.net = as_module("HardConstraint(net=...)", net)
        self.distance = as_module("HardConstraint(distance=...)", distance)
        self.lift = None if lift is None else as_module("HardConstraint(lift=...)", lift)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        u = self.net(x)
        bump = _fitting("distance", self.distance(x), u) * u
        return bump if self.lift is None else _fitting("lift", self.lift(x), u) + bump


def _fitting(name: str, part: ArrayLike, u: Array) -> ArrayLike:
    if jnp.shape(part) not in ((), u.shape):
        raise ValueError(
            f"HardConstraint({name}=...) must return a scalar or the shape {u.shape} of the network at one point, "
            f"got {jnp.shape(part)}."
        )
    return part
