"""Trainable coefficients of an equation: positive (numbers and fields), bounded, or in units of their own scale."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, DTypeLike, Float


class Positive(eqx.Module):
    """A positive coefficient, trained by its logarithm: every step is a relative change.

        value = exp(raw)

    **Arguments:** `value` > 0, the start: a number or an array of any shape (each entry by itself); `dtype`, `None` for
    jax's default.

    **Returns:** a module with one array `raw`; the coefficient is its property `value`. A model holds it beside its
    networks, and the residual reads it.

    **Errors:** `ValueError` if an entry of `value` is not positive.

    **Cost:** one exponential.

    **Example:**

    ```python
    >>> import equinox as eqx, jax
    >>> from sciml_opt.models import MLP, Positive
    >>> class Burgers(eqx.Module):
    ...     u: MLP
    ...     viscosity: Positive
    >>> model = Burgers(MLP(2, key=jax.random.key(0)), Positive(0.02))
    >>> round(float(model.viscosity.value), 6)
    0.02

    ```
    """

    raw: Float[Array, "..."]

    def __init__(self, value: ArrayLike, dtype: DTypeLike | None = None):
        value = _floating(value, dtype)
        _require("Positive(value=...) must be positive", value, lambda v: v > 0)
        self.raw = jnp.log(value)

    @property
    def value(self) -> Float[Array, "..."]:
        return jnp.exp(self.raw)


class PositiveField(eqx.Module):
    """A positive function of a point, a coefficient that varies in space.

        a(x) = exp(log(x))

    **Arguments:** `log`, a model of its logarithm: a network, or a `HardConstraint` where values on the boundary are
    known.

    **Returns:** a module, called on ONE point.

    **Cost:** that of `log`. `so.explain` shows the parameters of `log` as if it stood alone.

    **Example:** `PositiveField(HardConstraint(net, distance, lift=lambda x: jnp.log(2.0)))`, 2 on the boundary.
    """

    log: Callable[[Array], Array]

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        return jnp.exp(self.log(x))


class Bounded(eqx.Module):
    """A coefficient between two bounds, by a logistic function.

        value = lower + (upper - lower) / (1 + exp(-raw))

    The bounds themselves are never reached; near them the coefficient hardly moves, so they should be generous.

    **Arguments:** `value`, the start, a number or an array, strictly between the numbers `lower` and `upper`, which are
    not trained; `dtype`, `None` for jax's default.

    **Returns:** a module with one array `raw`; the coefficient is its property `value`.

    **Errors:** `ValueError` if an entry of `value` does not lie strictly between the bounds.

    **Cost:** one exponential.

    **Example:** `Bounded(0.3, lower=0.0, upper=0.5)`, a Poisson ratio.
    """

    raw: Float[Array, "..."]
    lower: float = eqx.field(static=True)
    upper: float = eqx.field(static=True)

    def __init__(self, value: ArrayLike, lower: float, upper: float, dtype: DTypeLike | None = None):
        value = _floating(value, dtype)
        self.lower, self.upper = float(lower), float(upper)
        _require(
            f"Bounded(value=...) must lie strictly between {self.lower} and {self.upper}",
            value,
            lambda v: (v > self.lower) & (v < self.upper),
        )
        share = (value - self.lower) / (self.upper - self.lower)
        self.raw = jnp.log(share) - jnp.log1p(-share)

    @property
    def value(self) -> Float[Array, "..."]:
        return self.lower + (self.upper - self.lower) * jax.nn.sigmoid(self.raw)


class Scaled(eqx.Module):
    """A coefficient of any sign in units of its own scale.

        value = scale * raw

    First-order methods need it: Adam moves every number by about its learning rate, so that a coefficient of size 1e6
    or 1e-6 beside weights of size one never arrives or never settles. Levenberg-Marquardt with
    `scaling="marquardt"` or `"minpack"` takes the same steps whatever the scale, and so does an undamped Gauss-Newton
    step; with `scaling="identity"` the damping compares the sizes of the parameters, and the scale matters.

    **Arguments:** `value`, the start, a number or an array; `scale` > 0, a number in the units of the coefficient, its
    expected order of magnitude, which is not trained; `dtype`, `None` for jax's default.

    **Returns:** a module with one array `raw`; the coefficient is its property `value`.

    **Errors:** `ValueError` if `scale` is not positive.

    **Cost:** one product.

    **Example:** `Scaled(2.1e11, scale=1e11)`, a Young's modulus in Pa.
    """

    raw: Float[Array, "..."]
    scale: float = eqx.field(static=True)

    def __init__(self, value: ArrayLike, scale: float, dtype: DTypeLike | None = None):
        self.scale = float(scale)
        if not self.scale > 0:
            raise ValueError(f"Scaled(scale=...) must be positive, got {scale}.")
        self.raw = _floating(value, dtype) / self.scale

    @property
    def value(self) -> Float[Array, "..."]:
        return self.scale * self.raw


def _floating(value: ArrayLike, dtype: DTypeLike | None) -> Array:
    return jnp.asarray(value, jnp.result_type(float) if dtype is None else dtype)


def _require(rule: str, value: Array, holds: Callable[[np.ndarray], np.ndarray]) -> None:
    if not isinstance(value, jax.core.Tracer) and not np.all(holds(np.asarray(value))):
        raise ValueError(f"{rule}, got {value}.")
