"""Stored tables of reference solutions, and their values in between."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

DATA = Path(__file__).parent.parent / "data"


def load(name: str) -> dict[str, np.ndarray]:
    """The arrays of `data/NAME.npz`: the axes, the components of the solution, and `error`, its relative L2 error.

    The error was estimated by the generator, as the distance to a coarser solution: it bounds the error as long as the
    method converges.
    """
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def tabulated(
    name: str, axes: tuple[str, str], outputs: tuple[str, ...] = ("u",)
) -> Callable[[Float[np.ndarray, "N 2"]], Float[np.ndarray, "N *m"]]:
    """The solution of a table as a function of points: exact on its nodes, quintic splines in between.

    **Arguments:** `name` of the table; `axes`, the names of its two axes, in the order of the components of a point;
    `outputs`, the names of the components, arrays whose axes are `axes`.

    **Returns:** `(N, 2) -> (N,)`, or `(N, m)` for several outputs. The file is read at the first call.
    """

    def reference(points):
        from scipy.interpolate import RectBivariateSpline  # lazily: half a second

        table = load(name)
        first, second = (table[axis] for axis in axes)
        splines = [RectBivariateSpline(first, second, table[output], kx=5, ky=5) for output in outputs]
        values = np.stack([spline.ev(*points.T) for spline in splines], axis=1)
        return values[:, 0] if len(outputs) == 1 else values

    return reference
