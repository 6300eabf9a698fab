"""Ensembles: the same model from many starts, with a mean and a spread."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray, UInt32

from ._stack import each


class Ensemble(eqx.Module):
    """`k` models of one structure, stacked: every array has a leading axis `k`.

        u(x) = 1/k sum_j u_j(x),       std(x)^2 = 1/(k - 1) sum_j (u_j(x) - u(x))^2

    The members are to be trained apart, by `jax.vmap` of `so.train` over the stacked parameters: trained as one model
    the mean is fitted, and the spread says nothing. As one model, `so.explain` shows the stacked weights as factored up
    to 16 members, as dense beyond; biases are dense.

    **Attributes:** `members`, the stacked model.

    **Methods:** `model(x)`, the mean at one point; `model.std(x)`; `model.predictions(x)`, `(k, ...)`.

    **Cost:** k models a point.

    **Source:** arXiv:1612.01474.

    **Example:** see `ensemble`.
    """

    members: Any

    def predictions(self, x: Float[Array, " d"]) -> Float[Array, "k ..."]:
        """What each of the members yields at `x`."""
        return each(self.members, x)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        return jnp.mean(self.predictions(x), axis=0)

    def std(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The standard deviation of the members at `x`."""
        return jnp.std(self.predictions(x), axis=0, ddof=1)


def ensemble(make: Callable[[PRNGKeyArray], Any], keys: Key[Array, " k"] | UInt32[Array, "k n"]) -> Ensemble:
    """Draws the members of an `Ensemble`, by `vmap`.

    **Arguments:**

    - `make`: `key -> model`.
    - `keys`: `(k,)`, one a member, at least two.

    **Returns:** an `Ensemble`.

    **Errors:** `ValueError` for less than two keys.

    **Cost:** one draw, compiled once.

    **Example:**

    ```python
    >>> import equinox as eqx, jax, jax.numpy as jnp
    >>> import sciml_opt as so
    >>> from sciml_opt.models import MLP, Ensemble, ensemble
    >>> drawn = ensemble(lambda key: MLP(1, layers=(8,), key=key), jax.random.split(jax.random.key(0), 3))
    >>> params, static = eqx.partition(drawn.members, eqx.is_inexact_array)
    >>> objective = so.Objective(data=so.Term(lambda u, x: u(x) - jnp.sin(x[0])))
    >>> batch = {"data": jnp.linspace(0, 3, 10)[:, None]}
    >>> train = lambda p: so.train(p, objective, so.levenberg_marquardt(), batch, steps=5, static=static).params
    >>> trained = Ensemble(eqx.combine(jax.vmap(train)(params), static))
    >>> trained(jnp.array([0.5])).shape, bool(trained.std(jnp.array([0.5])) < drawn.std(jnp.array([0.5])))
    ((), True)

    ```
    """
    if jnp.ndim(keys) == 0 or len(keys) < 2:
        raise ValueError(f"ensemble(keys=...) must hold at least two keys, jax.random.split(key, k); got {keys.shape}.")
    return Ensemble(eqx.filter_vmap(make)(keys))
