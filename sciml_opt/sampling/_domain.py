"""Domains by their signed distance, and what can be built from them: unions, intersections, differences."""

import abc
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._check import count as positive
from ._points import Kind, unit_points

MOST = 2**20  # candidates: if so many yield too few points, the domain is (nearly) empty
STEP = 1e-7  # relative to the size of the domain: a step that tells the inside from the outside


class Patch(NamedTuple):
    """A part of a boundary: its `measure`, and the map of the unit cube of `dimension` onto it (and the normals).

    The map takes `(n, dimension)` to points and outward normals, both `(n, d)`; equal volumes go to equal areas.
    """

    measure: float
    dimension: int
    map: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class BoundaryPoints(NamedTuple):
    """Points of a boundary and the outward unit normals there: as a batch entry, a point of the term is `(x, n)`."""

    points: Float[np.ndarray, "count d"]
    normals: Float[np.ndarray, "count d"]


class AbstractDomain(eqx.Module):
    """A bounded open set, given by its signed distance: negative inside, positive outside.

    Domains combine: `a | b` is the union, `a & b` the intersection, `a - b` the difference. They hold no arrays, so
    that they can be a static part of a model: in `distance(x) * network(x)`, say, for a hard boundary condition.

    **Methods:** `signed_distance(x)`, `contains(x)`, `interior(count)`, `boundary(count)`,
    `boundary_with_normals(count)`. **Attributes:** `dimension`; `bounds`, the corners of the bounding box. A domain of
    one's own defines `bounds`, `_distance` and `patches`.
    """

    @property
    @abc.abstractmethod
    def bounds(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]: ...

    @abc.abstractmethod
    def _distance(self, x: Any, xp: Any) -> Any:
        """The signed distance, `(..., d) -> (...)`, by `xp`, which is numpy or jax.numpy."""

    @property
    @abc.abstractmethod
    def patches(self) -> tuple[Patch, ...]:
        """The parts of the boundary; of a combined domain they may have parts that are none."""

    @property
    def dimension(self) -> int:
        """The number of coordinates of a point."""
        return len(self.bounds[0])

    @property
    def volume_map(self) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
        """A dimension `k`, and a map of the unit cube of `k` dimensions onto a set that holds the domain."""
        lower, upper = self.bounds
        return len(lower), lambda u: lower + (upper - lower) * u

    def signed_distance(self, x: Float[Array | np.ndarray, "*batch d"]) -> Float[Array | np.ndarray, "*batch"]:
        """The signed distance to the boundary: negative inside.

        Exact for `Box`, `Ball` and `Annulus`, and inside of an `LShape`; elsewhere its sign and its zeros are right,
        and its size is a lower bound.

        **Arguments:** `x`, one point or many, NumPy or jax: jax transforms it, and its derivatives are finite.
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x must be floating, got {x.dtype}.")
        if x.shape[-1:] != (self.dimension,):
            raise ValueError(f"x must have shape (..., {self.dimension}) in this domain, got {x.shape}.")
        xp = jnp if isinstance(x, jax.Array) else np
        return xp.asarray(self._distance(x, xp))

    def contains(self, x: Float[Array | np.ndarray, "*batch d"]) -> Bool[Array | np.ndarray, "*batch"]:
        """Whether points lie inside, not on the boundary."""
        distance = self.signed_distance(x)
        return jnp.less(distance, 0) if isinstance(distance, jax.Array) else np.asarray(distance < 0)

    def interior(self, count: int, kind: Kind = "sobol", seed: int = 0) -> Float[np.ndarray, "count d"]:
        """`count` points inside, evenly spread: the same ones for the same seed, in float64.

        **Arguments:** `count`; `kind` and `seed` as for `unit_points` (of a grid there may be more points).

        **Errors:** `ValueError` for a domain that is empty, or too thin for its bounding box.
        """
        dimension, onto = self.volume_map
        patch = Patch(1.0, dimension, lambda u: (points := onto(u), points))
        return _spread((patch,), count, kind, seed, lambda points, _: self.contains(points))[0]

    def boundary(self, count: int, kind: Kind = "sobol", seed: int = 0) -> Float[np.ndarray, "count d"]:
        """`count` points on the boundary, evenly spread over all its parts; arguments as for `interior`."""
        return self.boundary_with_normals(count, kind, seed).points

    def boundary_with_normals(self, count: int, kind: Kind = "sobol", seed: int = 0) -> BoundaryPoints:
        """The points of `boundary`, with the outward normals."""
        lower, upper = self.bounds
        step = STEP * np.max(upper - lower)

        def crossed(points, normals):  # a piece of one domain may lie inside another
            return self.contains(points - step * normals) & ~self.contains(points + step * normals)

        return BoundaryPoints(*_spread(self.patches, count, kind, seed, crossed))

    def __or__(self, other: "AbstractDomain") -> "Combined":
        return Combined(self, other, "union")

    def __and__(self, other: "AbstractDomain") -> "Combined":
        return Combined(self, other, "intersection")

    def __sub__(self, other: "AbstractDomain") -> "Combined":
        return Combined(self, other, "difference")


class Combined(AbstractDomain):
    """The union, intersection or difference of two domains: what `a | b`, `a & b` and `a - b` return.

        d_union = min(d_a, d_b),      d_intersection = max(d_a, d_b),      d_difference = max(d_a, -d_b)

    Its `interior` draws from the bounding box, and keeps what lies inside; its `boundary` keeps what both boundaries
    contribute to that of the whole.
    """

    first: AbstractDomain
    second: AbstractDomain
    kind: Literal["union", "intersection", "difference"] = eqx.field(static=True)

    def __check_init__(self):
        if self.first.dimension != self.second.dimension:
            raise ValueError(
                f"Domains of {self.first.dimension} and {self.second.dimension} dimensions have no {self.kind}."
            )

    @property
    def bounds(self):
        (a, b), (c, d) = self.first.bounds, self.second.bounds
        if self.kind == "union":
            return np.minimum(a, c), np.maximum(b, d)
        return (np.maximum(a, c), np.minimum(b, d)) if self.kind == "intersection" else (a, b)

    def _distance(self, x, xp):
        a, b = self.first._distance(x, xp), self.second._distance(x, xp)
        if self.kind == "union":
            return xp.minimum(a, b)
        return xp.maximum(a, b if self.kind == "intersection" else -b)

    @property
    def patches(self):
        return (*self.first.patches, *map(self._of_the_second, self.second.patches))

    def _of_the_second(self, patch: Patch) -> Patch:
        sign = -1 if self.kind == "difference" else 1

        def mapped(u):
            points, normals = patch.map(u)
            lower, upper = self.first.bounds
            shared = np.abs(self.first.signed_distance(points)) < 1e-9 * np.max(upper - lower)
            # A face of both is counted once: nothing is crossed in the direction 0.
            return points, np.where(shared[:, None], 0, sign * normals)

        return patch._replace(map=mapped)


def _spread(
    patches: tuple[Patch, ...], count: int, kind: Kind, seed: int, keep: Callable[[np.ndarray, np.ndarray], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """`count` points with normals, at one density on all patches, out of the candidates that `keep` leaves."""
    count = positive("count", count)
    total = sum(patch.measure for patch in patches)
    candidates = float(count)
    while candidates <= MOST + count:
        parts = []
        for number, (measure, dimension, onto) in enumerate(patches):
            n = max(1, round(candidates * measure / total))
            points, normals = onto(unit_points(dimension, n, kind, (seed, number)))
            kept = keep(points, normals)
            # the place of a point in its sequence, of which any first part is evenly spread
            parts.append((points[kept], normals[kept], np.flatnonzero(kept) / n))
        points, normals, place = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        if len(points) >= count:
            first = np.argsort(place, kind="stable")[: None if kind == "grid" else count]
            return points[np.sort(first)], normals[np.sort(first)]
        candidates *= min(4, max(1.02, count / max(len(points), 1)))
    raise ValueError(
        f"Of {MOST} candidates fewer than {count} lie in the domain or on its boundary: it is empty, or very thin in "
        "its bounding box."
    )
