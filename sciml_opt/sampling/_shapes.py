"""Box, ball, annulus, L-shape, and the slab of a domain and a time interval."""

import math
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from ._domain import AbstractDomain, Patch
from ._points import Kind


class Box(AbstractDomain):
    """The box `lower < x < upper`, in any number of dimensions.

        d(x) = |max(q, 0)| + min(max_i q_i, 0),      q_i = |x_i - c_i| - h_i

    **Arguments:** `lower`, `upper`: the corners, `d` numbers each.

    **Errors:** `ValueError` unless `lower < upper`.

    **Example:** `so.sampling.Box((-1, 0), (1, 1)).interior(1024)`
    """

    lower: tuple[float, ...] = eqx.field(static=True)
    upper: tuple[float, ...] = eqx.field(static=True)

    def __init__(self, lower: Iterable[float], upper: Iterable[float]):
        self.lower, self.upper = _numbers(lower), _numbers(upper)
        if not 0 < len(self.lower) == len(self.upper) or not all(map(float.__lt__, self.lower, self.upper)):
            raise ValueError(f"Box needs lower < upper in every coordinate, got {self.lower} and {self.upper}.")

    @property
    def bounds(self):
        return np.array(self.lower), np.array(self.upper)

    @property
    def boxes(self) -> tuple["Box", ...]:
        """Boxes without overlap that make up the domain: the box itself."""
        return (self,)

    def _distance(self, x, xp):
        lower, upper = self.bounds
        q = xp.abs(x - _like(x, (lower + upper) / 2, xp)) - _like(x, (upper - lower) / 2, xp)
        return _norm(xp.maximum(q, 0), xp) + xp.minimum(xp.max(q, axis=-1), 0)

    @property
    def patches(self):
        lower, upper = self.bounds
        areas = [math.prod(np.delete(upper - lower, axis)) for axis in range(len(lower))]

        def face(axis, side):
            def onto(u):
                points = lower + (upper - lower) * np.insert(u, axis, side, axis=1)
                points[:, axis] = (lower, upper)[side][axis]
                return points, np.broadcast_to((2 * side - 1) * np.eye(len(lower))[axis], points.shape)

            return Patch(areas[axis], len(lower) - 1, onto)

        return tuple(face(axis, side) for axis in range(len(lower)) for side in (0, 1))


class Annulus(AbstractDomain):
    """The shell `inner < |x - center| < outer`, in two or more dimensions.

        d(x) = max(|x - c| - outer, inner - |x - c|)

    **Arguments:** `center`, `d` numbers; `inner`, `outer`: the radii.

    **Errors:** `ValueError` unless `d >= 2` and `0 <= inner < outer`.

    **Example:** `so.sampling.Annulus((0, 0), 0.5, 1.0).boundary(200)`
    """

    center: tuple[float, ...] = eqx.field(static=True)
    inner: float = eqx.field(static=True)
    outer: float = eqx.field(static=True)

    def __init__(self, center: Iterable[float], inner: float, outer: float):
        self.center, self.inner, self.outer = _numbers(center), float(inner), float(outer)
        if len(self.center) < 2:
            raise ValueError(f"Annulus needs two dimensions or more, got center {self.center}; in one, use a Box.")
        if not 0 <= self.inner < self.outer < math.inf:
            raise ValueError(f"Annulus needs 0 <= inner < outer, got inner {inner} and outer {outer}.")

    @property
    def bounds(self):
        return np.array(self.center) - self.outer, np.array(self.center) + self.outer

    def _distance(self, x, xp):
        radius = _norm(x - _like(x, self.center, xp), xp)
        return xp.maximum(radius - self.outer, self.inner - radius)

    @property
    def volume_map(self):
        # Equal volumes, whatever the dimension: the ball is a vanishing part of its bounding box.
        d = len(self.center)

        def onto(u):
            radius = (self.inner**d + (self.outer**d - self.inner**d) * u[:, :1]) ** (1 / d)
            return np.array(self.center) + radius * _directions(u[:, 1:], d)

        return 1 + _parameters(d), onto

    @property
    def patches(self):
        spheres = ((self.outer, 1), (self.inner, -1))
        return tuple(_sphere(np.array(self.center), radius, sign) for radius, sign in spheres if radius > 0)


class Ball(AbstractDomain):
    """The ball `|x - center| < radius`, in two or more dimensions.

        d(x) = |x - c| - radius

    **Arguments:** `center`, `d` numbers; `radius`.

    **Errors:** `ValueError` unless `d >= 2` and the radius is positive.

    **Example:** `so.sampling.Box((-1, -1), (1, 1)) - so.sampling.Ball((0, 0), 0.25)`
    """

    center: tuple[float, ...] = eqx.field(static=True)
    radius: float = eqx.field(static=True)

    def __init__(self, center: Iterable[float], radius: float):
        self.center, self.radius = _numbers(center), float(radius)
        if len(self.center) < 2:
            raise ValueError(f"Ball needs two dimensions or more, got center {self.center}; in one, use a Box.")
        if not 0 < self.radius < math.inf:
            raise ValueError(f"Ball needs a positive radius, got {radius}.")

    @property
    def bounds(self):
        return np.array(self.center) - self.radius, np.array(self.center) + self.radius

    def _distance(self, x, xp):
        return _norm(x - _like(x, self.center, xp), xp) - self.radius

    @property
    def volume_map(self):
        return Annulus(self.center, 0.0, self.radius).volume_map

    @property
    def patches(self):
        return (_sphere(np.array(self.center), self.radius, 1),)


class LShape(AbstractDomain):
    """A rectangle without its lower right part, `x > corner[0]` and `y < corner[1]`.

    So the re-entrant corner at the origin sees the angles from 0 to `3 pi / 2`, in which `r^(2/3) sin(2 theta / 3)` is
    harmonic and zero on both sides.

    **Arguments:** `lower`, `upper`: corners of the rectangle; `corner`: the re-entrant one.

    **Errors:** `ValueError` unless `lower < corner < upper`, two numbers each.

    **Example:** `so.sampling.LShape().interior(1024)`
    """

    lower: tuple[float, ...] = eqx.field(static=True)
    upper: tuple[float, ...] = eqx.field(static=True)
    corner: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        lower: Iterable[float] = (-1.0, -1.0),
        upper: Iterable[float] = (1.0, 1.0),
        corner: Iterable[float] = (0.0, 0.0),
    ):
        self.lower, self.upper, self.corner = _numbers(lower), _numbers(upper), _numbers(corner)
        (a, b), (c, d), (x, y) = self.lower, self.upper, self.corner
        if not (a < x < c and b < y < d):
            raise ValueError(f"LShape needs lower < corner < upper, got {self.lower}, {self.corner}, {self.upper}.")

    @property
    def bounds(self):
        return np.array(self.lower), np.array(self.upper)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Boxes without overlap that make up the domain: lower left, upper left and upper right."""
        (a, b), (c, d), (x, y) = self.lower, self.upper, self.corner
        return Box((a, b), (x, y)), Box((a, y), (x, d)), Box((x, y), (c, d))

    def _distance(self, x, xp):
        (a, b), (c, d), (right, low) = self.lower, self.upper, self.corner
        cut = Box((right, b - (d - b)), (c + (c - a), low))  # beyond the rectangle: its faces there are none of ours
        return xp.maximum(Box(self.lower, self.upper)._distance(x, xp), -cut._distance(x, xp))

    @property
    def patches(self):
        (a, b), (c, d), (x, y) = self.lower, self.upper, self.corner
        corners = np.array([(a, b), (x, b), (x, y), (c, y), (c, d), (a, d)])  # counterclockwise

        def edge(start, end):
            length = float(np.linalg.norm(end - start))
            normal = np.array([end[1] - start[1], start[0] - end[0]]) / length
            return Patch(length, 1, lambda u: (p := start + (end - start) * u, np.broadcast_to(normal, p.shape)))

        return tuple(map(edge, corners, np.roll(corners, -1, axis=0)))


class TimeSlab(AbstractDomain):
    """A domain times a time interval: points `(x, t)`, the time last.

    Its `boundary` is that of the domain at all times, with normals `(n, 0)`; the points at the start are `initial`.

    **Arguments:** `domain`; `start`, `stop`.

    **Errors:** `ValueError` unless `start < stop`.

    **Example:**

    ```python
    slab = so.sampling.TimeSlab(so.sampling.Box((-1,), (1,)), 0.0, 1.0)
    batch = {"interior": slab.interior(1024), "boundary": slab.boundary(128), "initial": slab.initial(128)}
    ```
    """

    domain: AbstractDomain
    start: float = eqx.field(static=True)
    stop: float = eqx.field(static=True)

    def __init__(self, domain: AbstractDomain, start: float, stop: float):
        self.domain, self.start, self.stop = domain, float(start), float(stop)
        if not self.start < self.stop:
            raise ValueError(f"TimeSlab needs start < stop, got {start} and {stop}.")

    def initial(self, count: int, kind: Kind = "sobol", seed: int = 0) -> Float[np.ndarray, "count d"]:
        """`count` points of the domain at the start; arguments as for `interior`."""
        points = self.domain.interior(count, kind, seed)
        return np.insert(points, points.shape[1], self.start, axis=1)

    @property
    def bounds(self):
        lower, upper = self.domain.bounds
        return np.append(lower, self.start), np.append(upper, self.stop)

    @property
    def boxes(self) -> tuple[Box, ...]:
        """Boxes without overlap that make up the slab, if the domain consists of such."""
        parts: tuple[Box, ...] = self.domain.boxes  # pyright: ignore[reportAttributeAccessIssue]
        return tuple(Box((*box.lower, self.start), (*box.upper, self.stop)) for box in parts)

    def _distance(self, x, xp):
        t = x[..., -1]
        return xp.maximum(self.domain._distance(x[..., :-1], xp), xp.maximum(self.start - t, t - self.stop))

    @property
    def volume_map(self):
        dimension, onto = self.domain.volume_map
        return dimension + 1, lambda u: self._with_time(onto(u[:, :-1]), u)

    @property
    def patches(self):
        def prolonged(patch):
            def onto(u):
                points, normals = patch.map(u[:, :-1])
                return self._with_time(points, u), np.insert(normals, normals.shape[1], 0, axis=1)

            return Patch(patch.measure * (self.stop - self.start), patch.dimension + 1, onto)

        return tuple(map(prolonged, self.domain.patches))

    def _with_time(self, points, u):
        return np.insert(points, points.shape[1], self.start + (self.stop - self.start) * u[:, -1], axis=1)


def _numbers(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _like(x: Any, values: Any, xp: Any) -> Any:
    """Coordinates in the dtype and with the number of axes of `x`."""
    return xp.asarray(np.reshape(values, (1,) * (x.ndim - 1) + (-1,)), x.dtype)


def _norm(x: Any, xp: Any) -> Any:
    """`|x|`, with derivative 0 at 0."""
    square = xp.sum(x * x, axis=-1)
    return xp.where(square > 0, xp.sqrt(xp.where(square > 0, square, 1)), 0)


def _parameters(d: int) -> int:
    """How many numbers in (0, 1) give a direction in d dimensions."""
    return d - 1 if d < 4 else d


def _directions(u: np.ndarray, d: int) -> np.ndarray:
    """Directions of even density: by the angle, by height and angle (Archimedes), or of a normal variable."""
    if d == 2:
        angle = 2 * np.pi * u[:, 0]
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if d == 3:
        height, angle = 1 - 2 * u[:, :1], 2 * np.pi * u[:, 1]
        return np.hstack([np.sqrt(1 - height**2) * np.stack([np.cos(angle), np.sin(angle)], axis=1), height])
    from scipy.special import ndtri

    z = ndtri(np.clip(u, 1e-12, 1 - 1e-12))
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-300)


def _sphere(center: np.ndarray, radius: float, sign: int) -> Patch:
    d = len(center)
    area = 2 * math.pi ** (d / 2) / math.gamma(d / 2) * radius ** (d - 1)

    def onto(u):
        directions = _directions(u, d)
        return center + radius * directions, sign * directions

    return Patch(area, _parameters(d), onto)
