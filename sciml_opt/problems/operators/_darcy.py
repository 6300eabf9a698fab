"""Darcy flow through a medium of two materials, from the permeability to the pressure."""

import numpy as np
from jaxtyping import PRNGKeyArray

from ..._check import count
from ._data import OperatorData, relative_error
from ._random_field import generator

CHECKED = 4  # samples that are solved again on twice the grid
MODES = 64  # of the field, an axis: what the published grid of 421 points resolves beyond is noise of the interface
HIGH, LOW = 12.0, 3.0


def darcy(
    key: PRNGKeyArray, training: int = 100, test: int = 50, *, points: int = 33, refinement: int = 2
) -> OperatorData:
    """`a -> u` of Darcy flow on the unit square.

        -div(a grad u) = 1,   u = 0 on the boundary,     a = 12 where mu >= 0, else 3,     mu ~ N(0, (-Delta + 9 I)^-2)

    with zero Neumann values for the Laplacian of the covariance: mu is a cosine series.

    **Arguments:**

    - `key`; numbers of functions for training and test.
    - `points`: an axis, boundary included, of the grid that `a` and `u` are given on.
    - `refinement`: how many cells of the solver are one of that grid.

    **Returns:** an `OperatorData`: inputs and outputs `(N, points, points)`. Five-point differences with harmonic means
    of `a` at the cell faces, solved by a sparse factorisation. `solver_error` from the first 4 fields, solved again on
    twice the grid; the interface is known to a cell only, so it falls about like the cell size.

    **Errors:** `ValueError` for numbers that are not positive.

    **Cost:** a sparse factorisation a function: 0.03 s at 64 cells an axis.

    **Source:** arXiv:2010.08895, section 5.2 (there on 421 x 421 points).
    """
    training = count("training", training)
    number = training + count("test", test)
    cells = count("points - 1", points - 1) * count("refinement", refinement)
    k = np.pi * np.arange(MODES)
    scale = 1 / (k[:, None] ** 2 + k[None] ** 2 + 9)
    scale[1:] *= 2**0.5  # cos(pi k x) has the mean square 1/2
    scale[:, 1:] *= 2**0.5
    field = scale * generator(key).normal(size=(number, MODES, MODES))
    inputs = _permeability(field, points - 1)
    outputs = np.stack([_solve(mu, cells)[::refinement, ::refinement] for mu in field])
    finer = np.stack([_solve(mu, 2 * cells)[:: 2 * refinement, :: 2 * refinement] for mu in field[:CHECKED]])
    x = np.linspace(0.0, 1.0, points)
    nodes = np.stack(np.meshgrid(x, x, indexing="ij"), axis=-1)
    return OperatorData(
        name="darcy",
        inputs=inputs,
        sensors=nodes,
        outputs=outputs,
        queries=nodes,
        training=training,
        solver_error=relative_error(outputs[:CHECKED], finer),
    )


def _permeability(field: np.ndarray, cells: int) -> np.ndarray:
    """`a` at the nodes of a grid, `(..., cells + 1, cells + 1)`."""
    cosines = np.cos(np.pi * np.outer(np.arange(cells + 1) / cells, np.arange(MODES)))
    return np.where(cosines @ field @ cosines.T >= 0, HIGH, LOW)


def _solve(field: np.ndarray, cells: int) -> np.ndarray:
    """`u` at the nodes."""
    import scipy.sparse as sp  # lazily: the import of sciml_opt stays light
    from scipy.sparse.linalg import splu

    a, n = _permeability(field, cells), cells - 1
    index = np.arange(n * n).reshape(n, n)
    diagonal, rows, columns, entries = np.zeros((n, n)), [], [], []
    for axis in (0, 1):
        before, after = (np.take(a, range(*ends), axis) for ends in ((0, cells), (1, cells + 1)))
        across = np.take(2 * before * after / (before + after), range(1, cells), 1 - axis)  # faces of the inner nodes
        left, right = (np.take(across, range(*ends), axis) for ends in ((0, n), (1, n + 1)))
        diagonal += left + right
        inside = np.take(across, range(1, n), axis).ravel()
        lower, upper = (np.take(index, range(*ends), axis).ravel() for ends in ((0, n - 1), (1, n)))
        rows += [lower, upper]
        columns += [upper, lower]
        entries += [-inside, -inside]
    matrix = sp.csc_matrix(
        (np.concatenate(entries), (np.concatenate(rows), np.concatenate(columns))), shape=(n * n, n * n)
    ) + sp.diags(diagonal.ravel(), format="csc")
    u = np.zeros((cells + 1, cells + 1))
    u[1:-1, 1:-1] = splu(matrix).solve(np.full(n * n, 1 / cells**2)).reshape(n, n)
    return u
