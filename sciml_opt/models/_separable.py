"""Separable networks: sums of products of functions of one coordinate each."""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from ._layers import OutSize, integer, one_point, output_size
from ._mlp import MLP


class Separable(eqx.Module):
    """A separable network (SPINN), written for ONE point.

        u(x) = sum_r  prod_i  f_ir(x_i),      (f_i1, .., f_iR) = MLP_i(x_i)

    a low-rank approximation of functions on a box. `so.explain` shows weights as factored and biases as dense.

    **Arguments:**

    - `in_size`: number of coordinates d.
    - `out_size`: number of outputs, each with R products of its own, or `"scalar"`.
    - `layers`, `activation`, `dtype`: of each network, as for `MLP`.
    - `rank`: R, the number of products.
    - `key`: for the weights.

    **Returns:** a module with the field `networks`, one `MLP` a coordinate; called on `x` of shape `(d,)` it yields
    `()` or `(out_size,)`.

    **Errors:** as for `MLP`; also for a rank that is no positive integer.

    **Cost:** d small networks a point. The networks of a tensor grid could be evaluated once a coordinate instead of
    once a point; here a point is a point.

    **Source:** arXiv:2306.15969.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import Separable
    >>> u = Separable(3, layers=(16,), rank=8, key=jax.random.key(0))
    >>> u(jnp.array([0.2, 0.7, 0.1])).shape
    ()

    ```
    """

    networks: tuple[MLP, ...]
    scalar: bool = eqx.field(static=True)
    rank: int = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: OutSize = "scalar",
        layers: Sequence[int] = (32,),
        activation: Callable[[Array], Array] = jnp.tanh,
        *,
        rank: int = 16,
        key: PRNGKeyArray,
        dtype: DTypeLike | None = None,
    ):
        self.scalar, self.rank = out_size == "scalar", integer("Separable(rank=...)", rank)
        outputs = output_size("Separable", out_size) * self.rank
        keys = jax.random.split(key, integer("Separable(in_size=...)", in_size))
        self.networks = tuple(MLP(1, outputs, layers, activation, key=k, dtype=dtype) for k in keys)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        one_point("Separable", x, len(self.networks))
        product = self.networks[0](x[:1])
        for axis, net in enumerate(self.networks[1:], start=1):
            product = product * net(x[axis : axis + 1])
        u = jnp.sum(product.reshape(-1, self.rank), axis=1)
        return u[0] if self.scalar else u
