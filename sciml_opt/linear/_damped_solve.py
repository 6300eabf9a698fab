"""What every solve with `M = J^T J + lambda D` has in common."""

import abc
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Scalar

from ._scaling import ScaledJacobian


class Solved(NamedTuple):
    """A solution and how it was found.

    **Fields:** `value`, parameter-shaped; `iterations`, 0 for a direct solve; `relative_residual` of the linear system
    that was solved, in the variables `sqrt(D) s` (an iterative solve reports its own, a direct one computes it anew: at
    most one product with `J` and `J^T`, dropped by the compiler when nobody asks).
    """

    value: PyTree
    iterations: Int[Array, ""]
    relative_residual: Scalar


class DampedSolve(eqx.Module):
    """A factorisation of `M = J^T J + lambda D`, for several right-hand sides. Abstract; made by `factorize`.

    **Attributes:**

    - `damping`: the lambda that was used.
    - `rung`: of the fallback, 0 where none was needed (`damped_cholesky`, `orthogonal_factor`).
    - `choice`: the solve that was taken, an index of `SOLVES`.
    - `predicted_flops`: its predicted cost, in flops at the rate of a matrix product (`choose`).
    """

    damping: Scalar
    rung: Int[Array, ""]
    choice: Int[Array, ""]
    predicted_flops: Scalar
    _jacobian: ScaledJacobian

    @property
    def scale(self) -> PyTree:
        """The diagonal of `D`: parameter-shaped, or one scalar a leaf."""
        return self._jacobian.scale

    @abc.abstractmethod
    def solve_residual(self, y: Float[Array, " N"]) -> Solved:
        """`M^-1 J^T y`, and how it was found."""

    @abc.abstractmethod
    def solve_gradient(self, g: PyTree) -> Solved:
        """`M^-1 g` for any `g`, and how it was found."""

    def from_residual(self, y: Float[Array, " N"]) -> PyTree:
        """`M^-1 J^T y`."""
        return self.solve_residual(y).value

    def from_gradient(self, g: PyTree) -> PyTree:
        """`M^-1 g` for any `g`."""
        return self.solve_gradient(g).value

    def _solved(self, t: Array, b: Array) -> Solved:
        """A direct solution `t` of `(J~^T J~ + lambda I) t = b`, flat and scaled, with its residual."""
        J = self._jacobian
        return Solved(J.to_params(t), jnp.int32(0), relative_norm(b - J.rmv(J.mv(t)) - self.damping * t, b))


def relative_norm(r: Array, b: Array) -> Scalar:
    """`|r| / |b|`; `|r|` where `b = 0`."""
    size = jnp.sqrt(jnp.vdot(b, b))
    return jnp.sqrt(jnp.vdot(r, r)) / jnp.where(size == 0, jnp.ones_like(size), size)
