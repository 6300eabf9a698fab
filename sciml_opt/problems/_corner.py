"""Stokes flow in the corner between a moving lid and a wall at rest: the singular part of a lid-driven cavity."""

from typing import Any, NamedTuple

import numpy as np


class Corner(NamedTuple):
    """A flow around the corner (0, 0), with the lid along the axis `a` and the wall along `b`, both >= 0.

    **Fields:** `psi`, the stream function; `psi_a`, `psi_b`, its slopes: the velocity is `(psi_b, -psi_a)`; `vorticity`
    `Z = Lap psi`, with `Z_a`, `Z_b`; `pressure` at viscosity 1, `grad p = (Z_b, -Z_a)`.
    """

    psi: Any
    psi_a: Any
    psi_b: Any
    vorticity: Any
    Z_a: Any
    Z_b: Any
    pressure: Any


def uniform_lid(a: Any, b: Any, xp: Any = np) -> Corner:
    """The lid moves with speed 1, away from the wall: Taylor's scraper.

        psi = B b + theta (C a + D b),   C = 1 / (1 - pi^2 / 4),   D = pi C / 2,   B = -pi^2 C / 4

    The velocity jumps at the corner, vorticity and pressure grow as 1 / r.

    **Arguments:** `a`, `b`, arrays of one shape; `xp`, `numpy` or `jax.numpy`. **Source:** Taylor (1962), On scraping
    viscous fluid from a plane surface.
    """
    C = 1 / (1 - np.pi**2 / 4)
    D, B = np.pi * C / 2, -(np.pi**2) * C / 4
    theta, square = _angle(a, b, xp), a**2 + b**2
    K, Z = (C * a + D * b) / square, 2 * (D * a - C * b) / square
    return Corner(
        psi=B * b + theta * (C * a + D * b),
        psi_a=theta * C - b * K,
        psi_b=B + theta * D + a * K,
        vorticity=Z,
        Z_a=2 * (D - a * Z) / square,
        Z_b=2 * (-C - b * Z) / square,
        pressure=2 * K,
    )


def linear_lid(a: Any, b: Any, xp: Any = np) -> Corner:
    """The lid moves with speed a, away from the wall: the slope of the velocity jumps at the corner.

        psi = a b / 2 - pi b^2 / 4 + theta (a^2 + b^2) / 2,     p = 2 log r

    **Arguments:** as `uniform_lid`.
    """
    theta, square = _angle(a, b, xp), a**2 + b**2
    return Corner(
        psi=a * b / 2 - np.pi * b**2 / 4 + theta * square / 2,
        psi_a=theta * a,
        psi_b=a - (np.pi / 2 - theta) * b,
        vorticity=2 * theta - np.pi / 2,
        Z_a=-2 * b / square,
        Z_b=2 * a / square,
        pressure=xp.log(square),
    )


def _angle(a: Any, b: Any, xp: Any) -> Any:
    # the angle to the lid by an elementwise function: the forward Laplacian has no rule for arctan2
    return 2 * xp.arctan(b / (a + xp.sqrt(a**2 + b**2)))
