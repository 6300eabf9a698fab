"""The solution operator of the viscous Burgers equation, from the initial value to the end."""

import numpy as np
from jaxtyping import PRNGKeyArray

from ..._check import count, number
from ..references._etdrk4 import etdrk4
from ._data import OperatorData, relative_error
from ._random_field import RandomField, fourier_series

CHECKED = 8  # samples that are solved again with twice the frequencies and half the step


@np.errstate(over="ignore", invalid="ignore")  # an unstable solution is refused in the end
def burgers_operator(
    key: PRNGKeyArray,
    training: int = 100,
    test: int = 50,
    *,
    viscosity: float = 0.05,
    points: int = 64,
    solver_points: int = 256,
    steps: int = 200,
) -> OperatorData:
    """`u_0 -> u(., 1)` of the Burgers equation on the periodic interval (0, 1).

        u_t + (u^2 / 2)_x = nu u_xx,      u_0 ~ N(0, 625 (-Delta + 25 I)^-2)

    **Arguments:**

    - `key`; numbers of functions for training and test.
    - `viscosity`: nu; 0.1 is the published case, steep fronts of width 4 nu appear at 0.01 (then take 512
      `solver_points` and 800 `steps`).
    - `points`: of the even grid that inputs and outputs are given on; it must divide `solver_points`.
    - `solver_points`, `steps`: of the pseudo-spectral solver in space (2/3 rule) and of ETDRK4 in time.

    **Returns:** an `OperatorData`: inputs and outputs `(N, points)`. `solver_error` from the first 8 functions, solved
    again with twice the points and half the step.

    **Errors:** `ValueError` for numbers that are not positive, and for `points` that do not divide `solver_points`.

    **Cost:** 8 Fourier transforms a function and step; 0.3 s for 150 functions.

    **Source:** arXiv:2010.08895, section 5.1.
    """
    training = count("training", training)
    number("viscosity", viscosity, above=0)
    steps = count("steps", steps)
    if solver_points % count("points", points):
        raise ValueError(f"solver_points must be a multiple of points = {points}, got {solver_points}.")
    k = np.arange(solver_points // 3)
    variances = 625 / ((2 * np.pi * k) ** 2 + 25) ** 2
    field = fourier_series(key, training + count("test", test), variances, 1.0)
    x = np.arange(points) / points
    outputs = _solve(field, viscosity, solver_points, steps)[:, :: solver_points // points]
    some = RandomField(field.cosines[:CHECKED], field.sines[:CHECKED], field.period)
    finer = _solve(some, viscosity, 2 * solver_points, 2 * steps)[:, :: 2 * solver_points // points]
    return OperatorData(
        name="burgers",
        inputs=field(x),
        sensors=x[:, None],
        outputs=outputs,
        queries=x[:, None],
        training=training,
        solver_error=relative_error(outputs[:CHECKED], finer),
    )


def _solve(field: RandomField, nu: float, points: int, steps: int) -> np.ndarray:
    """`u(., 1)` on the grid of the solver."""
    k = np.arange(points // 2 + 1)
    resolved = k < points / 3  # without aliasing of the square

    def nonlinear(spectrum: np.ndarray) -> np.ndarray:
        u = np.fft.irfft(spectrum, points)
        return np.where(resolved, -1j * np.pi * k, 0) * np.fft.rfft(u * u)

    start = np.fft.rfft(field(np.arange(points) / points))
    spectra = etdrk4(-nu * (2 * np.pi * k) ** 2, nonlinear, start, 1 / steps, steps, steps)
    return np.fft.irfft(spectra[-1], points)
