"""A metric of the function space, to be pulled back to the parameters."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Scalar

from .._check import one_of
from ..linearization import half_squared_norm


class Metric(eqx.Module):
    """An inner product of tangent functions, given by what it measures at ONE point.

        G_ij = sum_terms int  <d_i m, d_j m>_H  dx,     m = inner(u_theta, x),     H = d2 outer / dm2

    the integral by the points (and quadrature weights) of the terms.

    **Arguments:**

    - `inner`: `inner(model, point) -> scalar or (m,)`, written as in `Term`: `u(x)` for the L2 metric, value and
      gradient for H1.
    - `outer`: `outer(m, point) -> scalar`, convex; `0.5 |m|^2` by default. For the Fisher metric of a likelihood it is
      the divergence from the present prediction, `lambda m, x: KL(p(. | stop_gradient(m)) || p(. | m))`.
    - `terms`: the terms on whose points it is measured, by default all.

    The functions are static data: they may close over constants, not over arrays that change.

    **Example:**

    ```python
    h1 = so.Metric(lambda u, x: jnp.concatenate([u(x)[None], jax.grad(u)(x)]), terms=("interior",))
    tx = so.natural_gradient(metric=h1)
    ```

    Source: arXiv:2402.07318.
    """

    inner: Callable[[Any, Any], ArrayLike]
    outer: Callable[[Float[Array, " m"], Any], Scalar] = half_squared_norm
    terms: tuple[str, ...] | None = eqx.field(static=True, default=None)


def sobolev(order: int, terms: tuple[str, ...] | None = None) -> Metric:
    """The metric of `L2` (order 0), `H1` or `H2`, for points that are coordinate vectors.

        <v, w> = int  v w  +  grad v . grad w  +  D2 v : D2 w       (as many of them as the order says)

    **Arguments:** `order`: 0, 1 or 2; `terms`: as in `Metric`.

    **Example:** `so.natural_gradient(metric=so.sobolev(1, terms=("interior",)))`.
    """
    return Metric(_JETS[int(one_of("order", str(order), ("0", "1", "2")))], terms=terms)


def _value(u, x):
    return u(x)


def _first(u, x):
    value, slope = jax.value_and_grad(u)(x)
    return jnp.append(slope, value)


def _second(u, x):
    return jnp.append(_first(u, x), jax.hessian(u)(x))


_JETS = (_value, _first, _second)
