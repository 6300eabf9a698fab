"""Exponential time differencing of fourth order, for periodic problems in Fourier space."""

from collections.abc import Callable

import numpy as np


def etdrk4(
    linear: np.ndarray,
    nonlinear: Callable[[np.ndarray], np.ndarray],
    v: np.ndarray,
    dt: float,
    steps: int,
    every: int,
) -> np.ndarray:
    """Solves `v' = L v + N(v)` with a diagonal `L`, by the Runge-Kutta method of Cox and Matthews.

        a = e^{hL/2} v + h/2 phi N(v),   b = e^{hL/2} v + h/2 phi N(a),   c = e^{hL/2} a + h/2 phi (2 N(b) - N(v))
        v <- e^{hL} v + h (f1 N(v) + 2 f2 (N(a) + N(b)) + f3 N(c))

    with `phi = (e^z - 1) / z` at `z = hL/2` and f1, f2, f3 as below at `z = hL`; all are means over a circle around z,
    which avoids the cancellation at small z.

    **Arguments:** `linear`, the diagonal of L; `nonlinear`, N; `v`, the start; `dt`, h; `steps`, a multiple of `every`.

    **Returns:** the start and every `every`-th step, `(steps / every + 1, len(v))`.

    **Cost:** four evaluations of N a step.

    **Source:** Kassam and Trefethen (2005), doi:10.1137/S1064827502410633.
    """
    whole, half = np.exp(dt * linear), np.exp(dt * linear / 2)
    circle = np.exp(2j * np.pi * (np.arange(64) + 0.5) / 64)
    mean = np.mean if np.iscomplexobj(linear) else lambda f, axis: np.mean(f.real, axis)
    z = dt * linear[:, None] + circle
    phi = dt / 2 * mean(np.expm1(z / 2) / (z / 2), axis=1)
    f1 = dt * mean((-4 - z + np.exp(z) * (4 - 3 * z + z**2)) / z**3, axis=1)
    f2 = dt * mean((2 + z + np.exp(z) * (z - 2)) / z**3, axis=1)
    f3 = dt * mean((-4 - 3 * z - z**2 + np.exp(z) * (4 - z)) / z**3, axis=1)
    kept = [v]
    for step in range(1, steps + 1):
        n = nonlinear(v)
        a = half * v + phi * n
        na = nonlinear(a)
        b = half * v + phi * na
        nb = nonlinear(b)
        c = half * a + phi * (2 * nb - n)
        v = whole * v + f1 * n + 2 * f2 * (na + nb) + f3 * nonlinear(c)
        if step % every == 0:
            kept.append(v)
    return np.stack(kept)
