"""The Fourier neural operator: a field in, a field out."""

import operator
from collections.abc import Callable, Sequence
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from .._check import count
from ._mlp import MLP


class FNO(eqx.Module):
    """The Fourier neural operator in any number of space dimensions, written for ONE input field on a uniform grid.

        v_0(x) = P (a(x), x),    v_{l+1} = act( W_l v_l + b_l + F^-1( R_l F(v_l) ) ),  l = 0 .. L-1,    u(x) = Q(v_L(x))

    with the lifting `P` (affine), the projection `Q` (an MLP with one hidden layer of twice the width) and the real
    Fourier transform `F`, of which the lowest modes alone are kept: in the last axis the frequencies `0 .. modes-1`, in
    the others `-modes .. modes-1`. `R_l` is a complex matrix a mode, held as the real arrays `real` and `imaginary`
    (complex parameters are refused by the optimizers). `act` is not applied after the last layer. The same parameters
    work on any grid that resolves the modes.

    One sample is one point of a term, and its residual a whole field:

        so.Term(lambda model, sample: (model(sample[0]) - sample[1]).ravel())

    A Jacobian row a grid point would be too large, so a term of 64 outputs or more is linearized matrix-free, by jvp
    and vjp a sample, as `so.explain` says.
    `so.lbfgs()`, `so.soap()`, `so.hessian_free()`, `so.newton_krylov()`, `so.levenberg_marquardt(solve="cg")` and
    `so.gauss_newton(solve="cg")` need no more than that; methods with a direct solve or Kronecker factors would make
    every row by a vjp of its own.

    **Arguments:**

    - `modes`: frequencies kept in each axis; their number is the dimension, `(8,)` in 1-D and `(8, 8)` in 2-D.
    - `width`: channels `w` of the hidden fields.
    - `depth`: number `L` of Fourier layers.
    - `in_channels`, `out_channels`: of the input and of the output field.
    - `activation`: elementwise; static.
    - `key`: for the weights. `P`, `W`, `Q` are Glorot-normal, `R` likewise in its complex entries; biases are zero.
    - `dtype`: of all parameters; `None` follows jax.

    **Returns:** a module; called on `a` of shape `(n_1, .., n_d)` (one channel) or `(n_1, .., n_d, in_channels)` it
    yields `(n_1, .., n_d)` for one output channel, else `(n_1, .., n_d, out_channels)`.

    **Errors:** `ValueError` for sizes that are not positive and, when called, for a field of the wrong shape, or on a
    grid that does not resolve the modes.

    **Cost:** a layer two fast Fourier transforms of `w` channels, `8 w^2` flops a mode and `2 w^2` a grid point.

    **Source:** arXiv:2010.08895.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> from sciml_opt.models import FNO
    >>> model = FNO(modes=(8, 8), width=16, depth=2, key=jax.random.key(0))
    >>> model(jnp.ones((32, 24))).shape
    (32, 24)

    ```
    """

    lift: tuple[Float[Array, "w c"], Float[Array, " w"]]
    layers: tuple["_FourierLayer", ...]
    projection: MLP
    modes: tuple[int, ...] = eqx.field(static=True)
    in_channels: int = eqx.field(static=True)
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(
        self,
        modes: Sequence[int],
        width: int = 16,
        depth: int = 4,
        in_channels: int = 1,
        out_channels: int = 1,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        *,
        key: PRNGKeyArray,
        dtype: DTypeLike | None = None,
    ):
        if isinstance(modes, int) or not len(modes):
            raise ValueError(f"FNO(modes=...) must name one number an axis, such as (8,) or (8, 8); got {modes!r}.")
        self.modes = tuple(count("modes", m) for m in modes)
        self.in_channels = count("in_channels", in_channels)
        width, depth = count("width", width), count("depth", depth)
        out = "scalar" if count("out_channels", out_channels) == 1 else operator.index(out_channels)
        self.activation = activation
        keys = jax.random.split(key, 3)
        self.projection = MLP(width, out, (2 * width,), activation, key=keys[0], dtype=dtype)
        dtype = self.projection.weights[0].dtype
        self.lift = _glorot(keys[1], (width, self.in_channels + len(self.modes)), dtype), jnp.zeros(width, dtype)
        self.layers = tuple(_FourierLayer(self.modes, width, k, dtype) for k in jax.random.split(keys[2], depth))

    def __call__(self, a: Float[Array, "..."]) -> Float[Array, "..."]:
        dimension = len(self.modes)
        if a.ndim == dimension and self.in_channels == 1:
            a = a[..., None]
        if a.ndim != dimension + 1 or a.shape[-1] != self.in_channels:
            raise ValueError(
                f"FNO is called on ONE field with {dimension} axes and {self.in_channels} channels last; got shape "
                f"{a.shape}. Use jax.vmap(model) for a batch."
            )
        grid = a.shape[:-1]
        for n, m in zip(grid, self.modes, strict=True):
            if n < 2 * m:
                raise ValueError(f"FNO(modes={self.modes}) needs at least {2 * m} grid points an axis, got {grid}.")
        x = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"))
        v = _affine(*self.lift, jnp.concatenate([jnp.moveaxis(a, -1, 0), jnp.asarray(x, a.dtype)]))
        for layer in self.layers[:-1]:
            v = self.activation(layer(v))
        v = jnp.moveaxis(self.layers[-1](v), 0, -1)
        project = self.projection
        for _ in grid:
            project = jax.vmap(project)
        return project(v)


class _FourierLayer(eqx.Module):
    """`W v + b + F^-1(R F(v))` on `v` of shape `(w, n_1, .., n_d)`: transforms are faster along the last axes."""

    weight: Float[Array, "w w"]
    bias: Float[Array, " w"]
    real: Float[Array, "w w *modes"]
    imaginary: Float[Array, "w w *modes"]
    modes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, modes: tuple[int, ...], width: int, key: PRNGKeyArray, dtype: jnp.dtype):
        keys = jax.random.split(key)
        self.modes = modes
        self.weight = _glorot(keys[0], (width, width), dtype)
        self.bias = jnp.zeros(width, dtype)
        kept = (*(2 * m for m in modes[:-1]), modes[-1])
        # The modulus of an entry is what Glorot asks for: half of the variance for each part.
        parts = (_glorot(key, (width, width, *kept), dtype) for key in jax.random.split(keys[1]))
        self.real, self.imaginary = (0.5**0.5 * part for part in parts)

    def __call__(self, v: Float[Array, "w *grid"]) -> Float[Array, "w *grid"]:
        grid, axes = v.shape[1:], tuple(range(1, v.ndim))
        first, kept = np.array(self.modes[:-1], int), self.real.shape[2:]
        # In all axes but the last frequency -m is moved to the front, so that the kept ones are a slice.
        spectrum = jnp.roll(jnp.fft.rfftn(v, axes=axes), first, axes[:-1])
        low = spectrum[(slice(None), *(slice(n) for n in kept))]
        low = jnp.einsum("oi...,i...->o...", lax.complex(self.real, self.imaginary), low)
        padded = jnp.pad(low, [(0, n - k) for n, k in zip(spectrum.shape, low.shape, strict=True)])
        convolved = jnp.fft.irfftn(jnp.roll(padded, -first, axes[:-1]), s=grid, axes=axes)
        return _affine(self.weight, self.bias, v) + convolved


def _affine(weight: Float[Array, "w c"], bias: Float[Array, " w"], v: Float[Array, "c *grid"]) -> Array:
    return jnp.tensordot(weight, v, 1) + bias.reshape(-1, *[1] * (v.ndim - 1))


@partial(jax.jit, static_argnums=(1, 2))
def _glorot(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Normal numbers of variance `2 / (fan in + fan out)`, for `(out, in, ...)`."""
    return (2 / (shape[0] + shape[1])) ** 0.5 * jax.random.normal(key, shape, dtype)
