"""SIREN: sine activations and the uniform start that keeps their arguments of unit variance at any depth."""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from ._activations import Sine
from ._layers import OutSize
from ._mlp import MLP


def siren(
    in_size: int,
    out_size: OutSize = "scalar",
    layers: Sequence[int] = (32,),
    omega: float = 30.0,
    *,
    key: PRNGKeyArray,
    dtype: DTypeLike | None = None,
) -> MLP:
    """An `MLP` with sine activations and the SIREN start.

        h_0 = x,    h_l = sin(omega (W_l h_{l-1} + b_l)),    u(x) = W_{L+1} h_L + b_{L+1}

        W_1 ~ U(-1/n, 1/n),   W_l ~ U(-c, c) with c = sqrt(6/n) / omega for l > 1,   b_l ~ U(-1/sqrt(n), 1/sqrt(n))

    with n the number of inputs of the layer. From the second layer on `omega W_l h_{l-1}` has variance 1, at any depth.
    Inputs should be of size 1; `omega` then is about the largest frequency that the fresh network holds.

    **Arguments:** as for `MLP`; `omega`, a positive number of Python, which is not trained: 30 for images and audio,
    less (1 .. 10) where derivatives are trained.

    **Returns:** an `MLP` whose activation is `Sine(omega)`.

    **Errors:** as for `MLP`; `ValueError` for an `omega` that is no positive number.

    **Cost:** that of an `MLP`.

    **Source:** arXiv:2006.09661; the biases as in the authors' experiments.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import siren
    >>> u = siren(2, layers=(16, 16), omega=10.0, key=jax.random.key(0))
    >>> u(jnp.array([0.2, 0.7])).shape
    ()

    ```
    """
    activation = Sine(omega)
    net = MLP(in_size, out_size, layers, activation, key=key, dtype=dtype)
    shapes = tuple(W.shape for W in net.weights)
    drawn = _uniform(key, shapes, activation.omega, net.weights[0].dtype)
    return eqx.tree_at(lambda net: (net.weights, net.biases), net, drawn)


@partial(jax.jit, static_argnames=("shapes", "omega", "dtype"))
def _uniform(
    key: PRNGKeyArray, shapes: tuple[tuple[int, ...], ...], omega: float, dtype: jnp.dtype
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    ends = list(itertools.accumulate(m * (n + 1) for m, n in shapes))
    parts = jnp.split(jax.random.uniform(key, (ends[-1],), dtype, -1, 1), ends[:-1])  # one draw: see glorot_normal
    weights, biases = [], []
    for layer, ((m, n), z) in enumerate(zip(shapes, parts, strict=True)):
        c = 1 / n if layer == 0 else math.sqrt(6 / n) / omega
        weights.append(c * z[: m * n].reshape(m, n))
        biases.append(1 / math.sqrt(n) * z[m * n :])
    return tuple(weights), tuple(biases)
