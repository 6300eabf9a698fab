"""A Fourier series whose coefficients are a network of the time: the model of periodic problems that march in time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ._ansatz import ansatz, harmonics
from ._points import grid, midpoints
from ._problem import Network


def fourier_series(period: float, waves: int, length: float, decay: float) -> Network:
    """The `network` of a problem that is periodic in x, for local times 0 .. length.

        u(x, t) = c_0 + sum_k e^(-k / decay) (c_k cos(2 pi k x / period) + s_k sin(2 pi k x / period)),  k = 1 .. waves

    where (c, s) is a network of the time alone, through z = 2 t / length - 1 and the waves cos(k pi z / 2),
    sin(k pi z / 2), k = 1 .. 4.

    **Arguments:** `period`, in x; `waves`; `length`, of a slab; `decay`, the number of waves over which a typical
    spectrum falls by e.
    """
    return ansatz(partial(_series, 2 * np.pi / period, waves, length, decay), 9, 2 * waves + 1)


def _series(unit, waves, length, decay, network, x):
    x, t = x
    z = 2 * t / length - 1
    coefficients = network(jnp.concatenate([z[None], *harmonics(jnp.pi / 2 * z, 4)]))
    scale = jnp.asarray(np.exp(-np.arange(1, waves + 1) / decay), x.dtype)
    cosines, sines = harmonics(unit * x, waves)
    return coefficients @ jnp.concatenate([jnp.ones_like(x)[None], scale * cosines, scale * sines])


def slab_points(lower: float, upper: float, columns: int, rows: int, length: float, start):
    """Even points in x, Gauss points in t for the interior; the initial values `start(x)`, as `(points, values)`."""
    x = lower + (upper - lower) * midpoints(columns)
    t = (np.polynomial.legendre.leggauss(rows)[0] + 1) * length / 2
    return {"interior": grid(x, t), "initial": (grid(x, np.zeros(1)), start(x))}


def initial(u, point):
    """The residual of the initial values, at a point `(x, value)`."""
    x, value = point
    return u(x) - value


def restart(model, batch, time):
    """The batch of the next slab: initial values from `model` at the local `time`."""
    x, _ = batch["initial"]
    return batch | {"initial": (x, jax.vmap(lambda x: model(x.at[1].set(time)))(x))}
