"""The reference of the lid-driven cavities: Chebyshev collocation of the stream function, by Newton's method."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .._corner import Corner, linear_lid, uniform_lid
from ._chebyshev import chebyshev, interpolation

VISCOSITY = 0.01


def cavity(n: int = 64) -> dict[str, np.ndarray]:
    """The cavity on the unit square at Re = 100 whose lid moves with speed 1: `x`, `y`, `u`, `v`; see `_solve`."""
    table = _solve(n, 1.0, uniform_lid, lambda x: np.full_like(x, -1.0))
    return {name: table[name] for name in ("x", "y", "u", "v")}  # the pressure has no finite norm


def navier_stokes2d_c(n: int = 64) -> dict[str, np.ndarray]:
    """The cavity on the unit square at Re = 100 whose lid moves with speed 4 x (1 - x): `x`, `y`, `u`, `v`, `p`."""
    return _solve(n, 4.0, linear_lid, lambda x: 4 * x * (1 - x) - 4)


def _solve(
    n: int,
    strength: float,
    corner: Callable[..., Corner],
    rest: Callable[[np.ndarray], np.ndarray],
    nodes: int = 101,
) -> dict[str, np.ndarray]:
    """Velocity and pressure at `nodes x nodes` even points.

        nu Lap^2 psi = u Lap psi_x + v Lap psi_y,     u = psi_y,     v = -psi_x,     psi = psi_s + psi_r

    psi_s is the sum of the Stokes flows of the two corners under the lid, where the velocity (or its slope) jumps. The
    rest psi_r is smoother, and a polynomial of degree n in x and in y, whose boundary values are what psi_s lacks. The
    pressure follows by integration along the bottom and then upwards,

        h = p + (u^2 + v^2) / 2,     h_x = -nu omega_y + v omega,     h_y = nu omega_x - u omega,     omega = -Lap psi

    **Arguments:** `n`; `strength`, speed of the lid (or its slope) at the corners; `corner`, the Stokes flow for
    strength 1; `rest`, what the flow of both corners leaves of the speed of the lid; `nodes`.

    **Returns:** `x`, `y` `(nodes,)` and `u`, `v`, `p` `(nodes, nodes)`, x along the first axis; `p(0, 0) = 0`. In the
    two corners under the lid the velocity is that of the lid, and the pressure, which is infinite there, 0.

    **Source:** Botella and Peyret (1998), doi:10.1016/S0045-7930(98)00002-4, for the subtraction.
    """
    z, D = chebyshev(n)
    powers = [np.linalg.matrix_power(D, k) for k in range(5)]
    lift = _lift(z, D, corner, strength, rest(z))
    extend = _extend(D)
    inner = slice(2, -2)
    A = [(power @ extend)[inner] for power in powers]  # derivatives at the inner points, from the values there
    size = n - 3
    x, y = np.meshgrid(z, z, indexing="ij")
    singular = _singular(x[inner, inner], y[inner, inner], corner, strength)

    def derivative(psi, i, j):
        return powers[i] @ psi @ powers[j].T

    def operator(*pairs):
        return sum(np.kron(A[i], A[j]) for i, j in pairs)

    bilaplacian, Lx, Ly = operator((4, 0), (2, 2), (2, 2), (0, 4)), operator((3, 0), (1, 2)), operator((2, 1), (0, 3))
    Dx, Dy = operator((1, 0)), operator((0, 1))
    w = np.zeros(size * size)
    for _ in range(12):
        psi = lift + extend @ w.reshape(size, size) @ extend.T
        d = {ij: derivative(psi, *ij)[inner, inner] for ij in np.ndindex(5, 5) if sum(ij) <= 4}
        u, v = singular.u + d[0, 1], singular.v - d[1, 0]
        Zx, Zy = singular.Z_x + d[3, 0] + d[1, 2], singular.Z_y + d[2, 1] + d[0, 3]
        residual = VISCOSITY * (d[4, 0] + 2 * d[2, 2] + d[0, 4]) - u * Zx - v * Zy
        u, v, Zx, Zy = (field.reshape(-1, 1) for field in (u, v, Zx, Zy))
        step = np.linalg.solve(VISCOSITY * bilaplacian - u * Lx - Zx * Dy - v * Ly + Zy * Dx, -residual.ravel())
        w += step
        if np.linalg.norm(step) < 1e-10 * np.linalg.norm(w):
            break
    else:
        raise RuntimeError(f"Newton's method has not converged at n = {n}.")
    psi = lift + extend @ w.reshape(size, size) @ extend.T

    # the pressure, less that of the Stokes flow
    singular = _singular(x, y, corner, strength)
    u, v = singular.u + derivative(psi, 0, 1), singular.v - derivative(psi, 1, 0)
    vorticity = -derivative(psi, 2, 0) - derivative(psi, 0, 2)
    whole = vorticity - singular.Z
    head_x = -VISCOSITY * vorticity @ D.T + v * whole
    head_y = VISCOSITY * D @ vorticity - u * whole
    integrate = np.zeros((n + 1, n + 1))
    integrate[1:, 1:] = np.linalg.inv(D[1:, 1:])
    pressure = (integrate @ head_x[:, :1]) + head_y @ integrate.T - (u**2 + v**2) / 2

    axis = np.linspace(0.0, 1.0, nodes)
    M = interpolation(z, axis)
    singular = _singular(axis[:, None], axis, corner, strength)
    p = VISCOSITY * singular.p + M @ pressure @ M.T
    p -= p[0, 0]
    p[[0, -1], -1] = 0.0
    return {
        "x": axis,
        "y": axis,
        "u": singular.u + M @ derivative(psi, 0, 1) @ M.T,
        "v": singular.v - M @ derivative(psi, 1, 0) @ M.T,
        "p": p,
    }


class _Singular(NamedTuple):
    u: np.ndarray
    v: np.ndarray
    Z: np.ndarray  # the Laplacian of the stream function
    Z_x: np.ndarray
    Z_y: np.ndarray
    p: np.ndarray  # at viscosity 1


def _singular(x: np.ndarray, y: np.ndarray, corner: Callable[..., Corner], strength: float) -> _Singular:
    """The Stokes flows of both corners, psi_s = -strength (psi(x, 1 - y) + psi(1 - x, 1 - y))."""
    tiny = 1e-100  # in the corner itself, values along the lid
    left, right = (corner(np.maximum(a, tiny), 1 - y) for a in (x, 1 - x))
    return _Singular(
        u=strength * (left.psi_b + right.psi_b),
        v=strength * (left.psi_a - right.psi_a),
        Z=-strength * (left.vorticity + right.vorticity),
        Z_x=-strength * (left.Z_a - right.Z_a),
        Z_y=strength * (left.Z_b + right.Z_b),
        p=strength * (left.pressure - right.pressure),
    )


def _lift(z: np.ndarray, D: np.ndarray, corner: Callable[..., Corner], strength: float, lid: np.ndarray) -> np.ndarray:
    """A polynomial with the boundary values and slopes of psi_r: Hermite's in both directions (a Coons patch)."""
    # value at 0 and at 1, slope at 0 and at 1; of psi_s the corner at hand has no part in them
    far = corner(np.ones_like(z), 1 - z)
    walls = strength * np.stack([far.psi, far.psi, -far.psi_a, far.psi_a])
    left, right = (corner(a, np.ones_like(z)) for a in (z, 1 - z))
    bottom, slope = strength * (left.psi + right.psi), -strength * (left.psi_b + right.psi_b)
    floor_and_lid = np.stack([bottom, 0 * z, slope, lid])
    data = np.stack([np.eye(len(z))[0], np.eye(len(z))[-1], D[0], D[-1]])
    hermite = np.stack([(1 + 2 * z) * (1 - z) ** 2, z**2 * (3 - 2 * z), z * (1 - z) ** 2, z**2 * (z - 1)], axis=1)
    corners = (walls @ data.T + data @ floor_and_lid.T) / 2  # equal, but for what the polynomials miss
    return hermite @ walls + floor_and_lid.T @ hermite.T - hermite @ corners @ hermite.T


def _extend(D: np.ndarray) -> np.ndarray:
    """From values at the inner points to all points, with zero value and zero slope at both ends."""
    n = len(D) - 1
    extend = np.zeros((n + 1, n - 3))
    extend[2:-2] = np.eye(n - 3)
    extend[[1, -2]] = -np.linalg.solve(D[np.ix_([0, -1], [1, -2])], D[[0, -1], 2:-2])
    return extend
