"""Darcy flow by Chebyshev collocation."""

import numpy as np

from ._chebyshev import chebyshev, interpolation


def darcy2d(n: int = 64) -> dict[str, np.ndarray]:
    """The solution of problem `darcy2d` on a grid of 101 x 101 nodes.

        -div(a grad u) = 1  in (0, 1)^2,    u = 0 on the boundary,    a D^2 u + (D a) . (D u) = -1  at Chebyshev points

    **Arguments:** `n`, the degree in each coordinate.

    **Accuracy:** a right-hand side that is not 0 in the corners leaves r^2 log r there: algebraic convergence.

    **Cost:** one dense solve with `(n - 1)^2` unknowns.
    """
    nodes, D = chebyshev(n)
    inner = slice(1, n)
    x, y = np.meshgrid(nodes[inner], nodes[inner], indexing="ij")
    a, a_x, a_y = (part.ravel()[:, None] for part in _permeability(x, y))
    one, d1, d2 = np.eye(n - 1), D[inner, inner], (D @ D)[inner, inner]
    A = a * (np.kron(d2, one) + np.kron(one, d2)) + a_x * np.kron(d1, one) + a_y * np.kron(one, d1)
    u = np.zeros((n + 1, n + 1))
    u[inner, inner] = np.linalg.solve(A, -np.ones(len(A))).reshape(n - 1, n - 1)
    axis = np.linspace(0.0, 1.0, 101)
    to_axis = interpolation(nodes, axis)
    return {"x": axis, "y": axis, "u": to_axis @ u @ to_axis.T}


def _permeability(x, y):
    x, y = np.pi * x, np.pi * y
    a = np.exp(np.sin(2 * x) * np.cos(y) + 0.5 * np.cos(3 * x + y))
    a_x = np.pi * a * (2 * np.cos(2 * x) * np.cos(y) - 1.5 * np.sin(3 * x + y))
    a_y = np.pi * a * (-np.sin(2 * x) * np.sin(y) - 0.5 * np.sin(3 * x + y))
    return a, a_x, a_y
