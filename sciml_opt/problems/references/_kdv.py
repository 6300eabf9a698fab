"""The reference of the Korteweg-de Vries equation: Fourier in space, ETDRK4 in time."""

import numpy as np

from ._etdrk4 import etdrk4

DISPERSION = 0.022**2


def kdv(resolution: int = 1, columns: int = 256, rows: int = 100) -> dict[str, np.ndarray]:
    """`u_t + u u_x + 0.022^2 u_xxx = 0`, `u(x, 0) = cos(pi x)`, periodic on [-1, 1], up to t = 1.

    **Arguments:** `resolution`: 512 points and 20 000 steps, or that over 2; `columns`, a divisor of the points, and
    `rows`, intervals of the table in x and t.

    **Returns:** `x` `(columns + 1,)`, `t` `(rows + 1,)`, `u` `(columns + 1, rows + 1)`.
    """
    n, steps = 512 // resolution, 20_000 // resolution
    k = np.pi * np.arange(n // 2 + 1)
    k[-1] = 0  # the derivative of the highest cosine vanishes on the points

    def nonlinear(v):
        return -0.5j * k * np.fft.rfft(np.fft.irfft(v, n) ** 2)

    start = np.fft.rfft(np.cos(np.pi * (2 * np.arange(n) / n - 1)))
    series = etdrk4(1j * DISPERSION * k**3, nonlinear, start, 1 / steps, steps, steps // rows)
    u = np.fft.irfft(series, n)[:, :: n // columns]
    return {
        "x": np.linspace(-1.0, 1.0, columns + 1),
        "t": np.linspace(0.0, 1.0, rows + 1),
        "u": np.concatenate([u, u[:, :1]], axis=1).T,
    }
