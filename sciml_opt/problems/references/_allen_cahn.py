"""The reference of the Allen-Cahn equation: a cosine series in space, ETDRK4 in time."""

import numpy as np
from scipy.fft import dct, idct

from ._etdrk4 import etdrk4

DIFFUSION = 1e-4


def allen_cahn(resolution: int = 1, columns: int = 128, rows: int = 100) -> dict[str, np.ndarray]:
    """`u_t = 1e-4 u_xx + 5 (u - u^3)`, `u(x, 0) = x^2 cos(pi x)`, periodic on [-1, 1], up to t = 1.

    The solution is even, so [0, 1] and the cosines cos(m pi x) do. The start has a kink at x = 1, and its samples give
    an error of second order; its EXACT coefficients, in closed form, leave none, since diffusion damps what is cut off.

    **Arguments:** `resolution`: 4096 points on [0, 1] (8192 on the period) and 2000 steps, or that over 2, 4, ...;
    `columns`, `rows`, intervals of the table in x and t.

    **Returns:** `x` `(columns + 1,)`, `t` `(rows + 1,)`, `u` `(columns + 1, rows + 1)`.
    """
    n, steps = 4096 // resolution, 2000 // resolution
    m = np.arange(n)
    start = 0.5 * (_moment(m - 1) + _moment(m + 1)) * np.where(m == 0, 0.5, 1.0)
    scale = np.where(m == 0, 2 * n, n)  # of scipy's transforms at the midpoints (j + 1/2) / n

    def values(a):
        return np.asarray(idct(a * scale, type=2))

    def nonlinear(a):
        u = values(a)
        return np.asarray(dct(-5 * u**3, type=2)) / scale

    linear = 5 - DIFFUSION * (np.pi * m) ** 2
    series = etdrk4(linear, nonlinear, start, 1 / steps, steps, steps // rows)
    x = np.linspace(0.0, 1.0, columns + 1)
    u = series @ np.cos(np.pi * np.outer(m, x))
    u[0] = x**2 * np.cos(np.pi * x)  # the series converges slowly at the kink, and only at t = 0
    return {"x": x, "t": np.linspace(0.0, 1.0, rows + 1), "u": u.T}


def _moment(k):
    """The integral of x^2 cos(k pi x) over [-1, 1]."""
    return np.where(k == 0, 2 / 3, 4.0 * (-1.0) ** k / (np.pi * np.where(k == 0, 1, k)) ** 2)
