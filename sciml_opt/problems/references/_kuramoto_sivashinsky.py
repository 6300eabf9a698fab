"""The reference of the Kuramoto-Sivashinsky equation: Fourier in space, ETDRK4 in time."""

import numpy as np

from ._etdrk4 import etdrk4

ADVECTION, GROWTH, DECAY = 100 / 16, 100 / 16**2, 100 / 16**4


def kuramoto_sivashinsky(resolution: int = 1, columns: int = 128, rows: int = 100) -> dict[str, np.ndarray]:
    """`u_t + 100/16 u u_x + 100/16^2 u_xx + 100/16^4 u_xxxx = 0`, `u(x, 0) = cos x (1 + sin x)`, up to t = 1.

    Periodic on [0, 2 pi]. Errors grow by a factor of about 1e4 until t = 1: chaos.

    **Arguments:** `resolution`: 512 points and 40 000 steps, or that over 2, 4; `columns`, a divisor of the points, and
    `rows`, intervals of the table in x and t.

    **Returns:** `x` `(columns + 1,)`, `t` `(rows + 1,)`, `u` `(columns + 1, rows + 1)`.
    """
    n, steps = 512 // resolution, 40_000 // resolution
    k = np.arange(n // 2 + 1.0)
    odd = np.where(k < n // 2, k, 0.0)  # the derivative of the highest cosine vanishes on the points

    def nonlinear(v):
        return -0.5j * ADVECTION * odd * np.fft.rfft(np.fft.irfft(v, n) ** 2)

    x = 2 * np.pi * np.arange(n) / n
    start = np.fft.rfft(np.cos(x) * (1 + np.sin(x)))
    series = etdrk4(GROWTH * k**2 - DECAY * k**4, nonlinear, start, 1 / steps, steps, steps // rows)
    u = np.fft.irfft(series, n)[:, :: n // columns]
    return {
        "x": np.linspace(0.0, 2 * np.pi, columns + 1),
        "t": np.linspace(0.0, 1.0, rows + 1),
        "u": np.concatenate([u, u[:, :1]], axis=1).T,
    }
