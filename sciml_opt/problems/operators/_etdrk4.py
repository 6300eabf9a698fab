"""The exponential time-differencing Runge-Kutta method of fourth order, for systems with a diagonal linear part."""

from collections.abc import Callable

import numpy as np

CONTOUR = 32  # points of the mean over a circle of radius one


def etdrk4(
    linear: np.ndarray, nonlinear: Callable[[np.ndarray], np.ndarray], u: np.ndarray, dt: float, steps: int, every: int
) -> np.ndarray:
    """Integrate `u' = linear * u + nonlinear(u)`; the values after every `every` steps, the start included.

        a = e^{h/2} u + Q N(u),    b = e^{h/2} u + Q N(a),    c = e^{h/2} a + Q (2 N(b) - N(u))
        u <- e^h u + f_1 N(u) + 2 f_2 (N(a) + N(b)) + f_3 N(c),     h = dt * linear

    `Q, f_1, f_2, f_3` are means over a circle around each `h`, which avoids their cancellation.

    **Arguments:** `linear`, `(n,)`, real, not positive; `u`, `(N, n)`.

    **Returns:** `(steps // every + 1, N, n)`.

    **Source:** Kassam and Trefethen, doi:10.1137/S1064827502410633.
    """
    h = dt * linear
    circle = h[:, None] + np.exp(1j * np.pi * (np.arange(1, CONTOUR + 1) - 0.5) / CONTOUR)  # and its complex conjugate

    def mean(values: np.ndarray) -> np.ndarray:
        return dt * np.mean(values, axis=1).real

    e = np.exp(circle)
    Q = mean((np.exp(circle / 2) - 1) / circle)
    f1 = mean((-4 - circle + e * (4 - 3 * circle + circle**2)) / circle**3)
    f2 = mean((2 + circle + e * (-2 + circle)) / circle**3)
    f3 = mean((-4 - 3 * circle - circle**2 + e * (4 - circle)) / circle**3)
    full, half = np.exp(h), np.exp(h / 2)
    kept = [u]
    for step in range(1, steps + 1):
        n_u = nonlinear(u)
        a = half * u + Q * n_u
        n_a = nonlinear(a)
        b = half * u + Q * n_a
        n_b = nonlinear(b)
        c = half * a + Q * (2 * n_b - n_u)
        u = full * u + f1 * n_u + 2 * f2 * (n_a + n_b) + f3 * nonlinear(c)
        if step % every == 0:
            kept.append(u)
    return np.stack(kept)
