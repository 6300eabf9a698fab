"""Damped Cholesky in parameter space (primal) or in residual space (dual)."""

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PyTree

from .._tree import ravel, unravel
from ._damped_solve import DampedSolve, Solved, relative_norm


class PrimalSolve(DampedSolve):
    """`L L^T = J^T J + lambda D`, in the variables of the parameters: `P x P`."""

    _lower: Float[Array, "P P"]

    def solve_residual(self, y: Float[Array, " N"]) -> Solved:
        return self.solve_gradient(self._jacobian.jacobian.rmv(y))

    def solve_gradient(self, g: PyTree) -> Solved:
        s = _back(self._lower, ravel(g))
        root = jnp.sqrt(self._jacobian.diagonal())
        solved = self._solved(root * s, self._jacobian.from_gradient(g))
        return solved._replace(value=unravel(s, g))


class DualSolve(DampedSolve):
    """`L L^T = J D^-1 J^T + lambda I`, in the variables of the residuals: `N x N`."""

    _lower: Float[Array, "N N"]

    def solve_residual(self, y: Float[Array, " N"]) -> Solved:
        """`D^-1 J^T (J D^-1 J^T + lambda I)^-1 y`, which needs no difference of large terms."""
        J = self._jacobian
        w = _back(self._lower, y)
        t = J.rmv(w)
        return Solved(J.to_params(t), jnp.int32(0), relative_norm(y - J.mv(t) - self.damping * w, y))

    def solve_gradient(self, g: PyTree) -> Solved:
        """`D^-1 (g - J^T (J D^-1 J^T + lambda I)^-1 J D^-1 g) / lambda` by Woodbury: loses `eps / lambda` digits."""
        J = self._jacobian
        b = J.from_gradient(g)
        return self._solved((b - J.rmv(_back(self._lower, J.mv(b)))) / self.damping, b)


def _back(lower: Array, b: Array) -> Array:
    half = solve_triangular(lower, b, lower=True)
    return solve_triangular(lower, half, lower=True, trans=1)
