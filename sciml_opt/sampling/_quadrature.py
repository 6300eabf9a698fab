"""Composite Gauss-Legendre quadrature, for energies."""

import math
from collections.abc import Sequence

import numpy as np

from .._check import count as positive
from ..objective import Weighted
from ._domain import AbstractDomain, Combined
from ._points import grid


def quadrature(domain: AbstractDomain, panels: int | Sequence[int], order: int = 4) -> Weighted:
    """Composite Gauss-Legendre quadrature on a domain that is made of boxes: the batch entry of an energy.

        int f dx  ~  sum_i w_i f(x_i)

    exact for polynomials of degree `2 order - 1` in each coordinate. The panels must be finer than what the network can
    resolve, or it makes use of the gaps.

    **Arguments:**

    - `domain`: a `Box`, an `LShape` (three boxes), or a `TimeSlab` of one.
    - `panels`: the number of panels a side of each box; one number, or one a coordinate.
    - `order`: the Gauss nodes of a panel, in each coordinate.

    **Returns:** `Weighted(points, weights)` in float64, the weights adding up to the volume.

    **Errors:** `TypeError` for a domain that is not made of boxes; `ValueError` for counts that are not positive.

    **Cost:** `(panels order)^d` points a box.

    **Example:** `batch = {"energy": so.sampling.quadrature(so.sampling.LShape(), 8)}`
    """
    boxes = getattr(domain, "boxes", None)
    if boxes is None:
        raise TypeError(f"quadrature needs a domain made of boxes (Box, LShape), got {type(domain).__name__}.")
    u, weights = _unit_cube(domain.dimension, panels, order)
    corners = [box.bounds for box in boxes]
    points = np.concatenate([lower + (upper - lower) * u for lower, upper in corners])
    return Weighted(points, np.concatenate([math.prod(upper - lower) * weights for lower, upper in corners]))


def boundary_quadrature(domain: AbstractDomain, panels: int | Sequence[int], order: int = 4) -> Weighted:
    """Composite Gauss-Legendre quadrature on a boundary: on every face of a box or an L-shape, on circles by the angle.

        int f ds  ~  sum_i w_i f(x_i)

    **Arguments:** as for `quadrature`, and `Ball` and `Annulus` in two dimensions; the panels are those of each face.

    **Returns:** `Weighted(points, weights)` in float64, the weights adding up to the length or area (of a `TimeSlab`,
    times the duration).

    **Errors:** `TypeError` for a combined domain; `ValueError` for counts that are not positive.

    **Cost:** `(panels order)^(d - 1)` points a face.

    **Example:** `batch = {"boundary": so.sampling.boundary_quadrature(so.sampling.LShape(), 8)}`
    """
    if isinstance(domain, Combined):
        raise TypeError("boundary_quadrature needs whole faces, and a combined domain has only parts of them.")
    points, weights = [], []
    for measure, dimension, onto in domain.patches:
        u, w = _unit_cube(dimension, panels, order)
        points.append(onto(u)[0])
        weights.append(measure * w)
    return Weighted(np.concatenate(points), np.concatenate(weights))


def _unit_cube(dimension: int, panels: int | Sequence[int], order: int) -> tuple[np.ndarray, np.ndarray]:
    sides = [panels] * dimension if isinstance(panels, int) else list(panels)
    if len(sides) != dimension:
        raise ValueError(f"panels must be one number or {dimension}, one a coordinate, got {panels}.")
    if dimension == 0:
        return np.empty((1, 0)), np.ones(1)
    axes = [_unit_interval(positive("panels", side), positive("order", order)) for side in sides]
    points, weights = (grid(*arrays) for arrays in zip(*axes, strict=True))
    return points, np.prod(weights, axis=1)


def _unit_interval(panels: int, order: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(order)
    points = (np.arange(panels)[:, None] + (nodes + 1) / 2) / panels
    return points.ravel(), np.tile(weights / 2, panels) / panels
