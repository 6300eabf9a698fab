"""The solution operator of a diffusion-reaction equation, from the source to space-time."""

import numpy as np
from jaxtyping import PRNGKeyArray

from ..._check import count, number
from ..references._chebyshev import chebyshev, interpolation
from ..references._etdrk4 import etdrk4
from ._data import OperatorData, relative_error
from ._random_field import RandomField, gaussian_random_field

CHECKED = 8  # samples that are solved again with more nodes and a smaller step
NODES, STEPS_PER_INTERVAL = 48, 4


@np.errstate(over="ignore", invalid="ignore")  # an unstable solution is refused in the end
def diffusion_reaction(
    key: PRNGKeyArray,
    training: int = 100,
    test: int = 100,
    *,
    diffusion: float = 0.01,
    reaction: float = 0.01,
    sensors: int = 100,
    grid: tuple[int, int] = (30, 30),
    length_scale: float = 0.2,
) -> OperatorData:
    """`f -> u` of a diffusion-reaction equation with the source `f`, a Gaussian random field.

        u_t = D u_xx + k u^2 + f(x)  in (0, 1) x (0, 1),     u(x, 0) = 0,    u(0, t) = u(1, t) = 0

    **Arguments:**

    - `key`; numbers of functions for training and test.
    - `diffusion`, `reaction`: D, k.
    - `sensors`: even points of [0, 1] where `f` is given.
    - `grid`: even points in x and t, ends included, where `u` is.
    - `length_scale` of `gaussian_random_field`.

    **Returns:** an `OperatorData`: inputs `(N, sensors)`, outputs `(N, *grid)`, queries `(*grid, 2)` with rows (x, t).
    `solver_error` from the first 8 functions, solved again with 1.5 times the nodes and half the step.

    **Errors:** `ValueError` for numbers that are not positive.

    **Cost:** Chebyshev collocation on 48 nodes in the eigenbasis of its second derivative (which integrates the linear
    part exactly, the corners included, where `f` does not fit the boundary values); 0.2 s for 200 functions.

    **Source:** arXiv:2103.10974, section 4.3 (D = k = 0.01, l = 0.2).
    """
    training = count("training", training)
    number("diffusion", diffusion, above=0)
    number("reaction", reaction)
    field = gaussian_random_field(key, training + count("test", test), length_scale)
    places, times = (np.linspace(0.0, 1.0, count("grid - 1", n - 1) + 1) for n in grid)
    outputs = _solve(field, diffusion, reaction, places, times, NODES, STEPS_PER_INTERVAL)
    some = RandomField(field.cosines[:CHECKED], field.sines[:CHECKED], field.period)
    finer = _solve(some, diffusion, reaction, places, times, NODES * 3 // 2, 2 * STEPS_PER_INTERVAL)
    x = np.linspace(0.0, 1.0, count("sensors", sensors))
    return OperatorData(
        name="diffusion_reaction",
        inputs=field(x),
        sensors=x[:, None],
        outputs=outputs,
        queries=np.stack(np.meshgrid(places, times, indexing="ij"), axis=-1),
        training=training,
        solver_error=relative_error(outputs[:CHECKED], finer),
    )


def _solve(field: RandomField, D: float, k: float, x: np.ndarray, t: np.ndarray, nodes: int, steps: int) -> np.ndarray:
    """`(N, x, t)`; `steps` a time interval of the grid."""
    z, first = chebyshev(nodes)
    inner = slice(1, -1)  # of functions that vanish at the ends
    # real, but complex numbers from NumPy 2.5 on
    values, vectors = (array.real for array in np.linalg.eig((first @ first)[inner, inner]))
    inverse = np.linalg.inv(vectors)
    source = field(z[inner]) @ inverse.T

    def nonlinear(coefficients: np.ndarray) -> np.ndarray:
        return k * (coefficients @ vectors.T) ** 2 @ inverse.T + source

    total = (len(t) - 1) * steps
    path = etdrk4(D * values, nonlinear, np.zeros_like(source), 1 / total, total, steps)
    return np.moveaxis(path @ (interpolation(z, x)[:, inner] @ vectors).T, 0, 2)
