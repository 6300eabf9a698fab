"""Gaussian random fields as Fourier series: functions, with exact derivatives and integrals."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from ..._check import count as positive
from ..._check import number

SMALLEST = 1e-18  # variances below it, relative to the largest, are left out: 1e-9 in the field


class RandomField(NamedTuple):
    """`N` functions of one variable as Fourier series.

        f(x) = sum_k  a_k cos(w_k x) + b_k sin(w_k x),      w_k = 2 pi k / L

    **Fields:** `cosines`, `sines`: `a` and `b`, `(N, K)` for `k = 0 .. K-1`; `period`: `L`.
    """

    cosines: Float[np.ndarray, "N K"]
    sines: Float[np.ndarray, "N K"]
    period: float

    def __call__(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, "N n"]:
        """The functions at `x`."""
        angles = np.outer(self._frequencies, x)
        return self.cosines @ np.cos(angles) + self.sines @ np.sin(angles)

    def antiderivative(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, "N n"]:
        """`int_0^x f`, exact."""
        w = self._frequencies[1:, None]
        integrals = self.cosines[:, 1:] @ (np.sin(w * x) / w) + self.sines[:, 1:] @ ((1 - np.cos(w * x)) / w)
        return np.outer(self.cosines[:, 0], x) + integrals

    @property
    def _frequencies(self) -> np.ndarray:
        return 2 * np.pi / self.period * np.arange(self.cosines.shape[1])


def gaussian_random_field(
    key: PRNGKeyArray, count: int, length_scale: float = 0.2, *, periodic: bool = False
) -> RandomField:
    """Draws of the centred Gaussian process on [0, 1] with the squared-exponential kernel.

        k(x, x') = exp(-(x - x')^2 / (2 l^2)),     or sum_n k(x, x' + n) if periodic

    A periodic process is a Fourier series with independent coefficients, of variance `s_0` or `2 s_k`,

        s_k = sqrt(2 pi) l / L exp(-(2 pi k l / L)^2 / 2)

    With the period `L = 1 + 9 l` the images of the kernel are below 1e-17 on [0, 1], so that the series is a draw of
    the process itself to rounding; nothing is factorised, and every draw is a function that can be evaluated,
    integrated and refined anywhere.

    **Arguments:** `key`; `count`, the number `N` of functions; `length_scale`, `l`; `periodic`, with period 1.

    **Returns:** a `RandomField`; `field(x)` are the values at `x`.

    **Errors:** `ValueError` for a length scale or a number that is not positive.

    **Cost:** `N K` normal numbers, `K = 1.4 L / l` frequencies; `N K n` multiply-adds to evaluate at `n` points.

    **Source:** the inputs of arXiv:1910.03193 (`l = 0.2`); circulant embedding, doi:10.1137/S1064827592240555.

    **Example:** `gaussian_random_field(jax.random.key(0), 150)(np.linspace(0, 1, 100))`
    """
    number("length_scale", length_scale, above=0)
    length = float(length_scale)
    period = 1.0 if periodic else 1 + 9 * length
    most = int(np.ceil(np.sqrt(-2 * np.log(SMALLEST)) * period / (2 * np.pi * length)))
    k = np.arange(most + 1)
    variances = np.sqrt(2 * np.pi) * length / period * np.exp(-((2 * np.pi * k * length / period) ** 2) / 2)
    return fourier_series(key, count, variances, period)


def fourier_series(key: PRNGKeyArray, count: int, variances: np.ndarray, period: float) -> RandomField:
    """Draws with the variance `variances[k]` for each of the frequencies `k` and `-k`."""
    spread = np.sqrt(np.where(np.arange(len(variances)) == 0, 1, 2) * variances)
    draws = spread * generator(key).normal(size=(2, positive("count", count), len(variances)))
    return RandomField(draws[0], draws[1], period)


def generator(key: PRNGKeyArray) -> np.random.Generator:
    """NumPy's generator from a key of jax: the data are float64, whether or not x64 is on."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32).tolist())
