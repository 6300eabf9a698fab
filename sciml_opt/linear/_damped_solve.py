"""Solves with `J^T J + lambda D` in parameter space (primal) or in residual space (dual)."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Int, PyTree, Scalar

from .._tree import ravel, tree_size, unravel
from ..linearization import StructuredJacobian
from ._cholesky import damped_cholesky

Solve = Literal["auto", "primal", "dual"]
Scaling = Literal["identity", "marquardt"]
SCALE_FLOOR = 1e-6  # of the largest entry of diag(J^T J), the least entry of D


class DampedSolve(eqx.Module):
    """A factorisation of `M = J^T J + lambda D`, for several right-hand sides.

    **Attributes:** `damping` is the lambda that was used and `rung` the rung of the ladder (`damped_cholesky`).
    """

    damping: Scalar
    rung: Int[Array, ""]
    scale: PyTree  # the diagonal of D: parameter-shaped (primal), one scalar a leaf (dual)
    _jacobian: StructuredJacobian
    _lower: Array
    _dual: bool = eqx.field(static=True)

    def from_residual(self, y: Float[Array, " N"]) -> PyTree:
        """`M^-1 J^T y`; dual: `D^-1 J^T (J D^-1 J^T + lambda I)^-1 y`, which needs no difference of large terms."""
        if self._dual:
            return _divide(self._jacobian.rmv(self._back(y)), self.scale)
        return self.from_gradient(self._jacobian.rmv(y))

    def from_gradient(self, g: PyTree) -> PyTree:
        """`M^-1 g` for any `g`; dual, by Woodbury: `D^-1 (g - J^T (J D^-1 J^T + lambda I)^-1 J D^-1 g) / lambda`."""
        if self._dual:
            correction = self._jacobian.rmv(self._back(self._jacobian.mv(_divide(g, self.scale))))
            rest = jax.tree.map(lambda a, b: (a - b) / self.damping.astype(a.dtype), g, correction)
            return _divide(rest, self.scale)
        return unravel(self._back(ravel(g)), g)

    def _back(self, b: Array) -> Array:
        half = solve_triangular(self._lower, b, lower=True)
        return solve_triangular(self._lower, half, lower=True, trans=1)


def factorize(
    jacobian: StructuredJacobian,
    damping: Scalar,
    *,
    relative: bool = False,
    marquardt: bool = False,
    solve: Solve = "auto",
    residual_form: bool = True,
) -> DampedSolve:
    """Factorise `J^T J + lambda D` by a damped Cholesky in the smaller of the two spaces.

    **Arguments:**

    - `jacobian`: `J`, `N` residuals by `P` parameters.
    - `damping`: `lambda >= 0`; with `relative`, in units of the largest diagonal entry of `D^-1 J^T J`.
    - `marquardt`: `D = diag(J^T J)`, floored at `1e-6` of its largest entry (in the dual form its mean over each leaf,
      which keeps the factored kernel); otherwise `D = I`.
    - `solve`: `"primal"` (`P x P`), `"dual"` (`N x N`), or `"auto"`, the smaller one.
    - `residual_form`: whether right-hand sides will be `J^T y`; if not, `"auto"` is primal, since Woodbury's identity
      loses `eps / lambda` of its digits.

    **Returns:** a `DampedSolve`.

    **Cost:** primal `N P^2 + P^3 / 3` flops, memory `P^2`; dual `N^2 P + N^3 / 3`, memory `N^2`.
    """
    structure = jacobian.in_structure()
    count, size = jacobian.out_structure().shape[0], tree_size(structure)
    dual = solve == "dual" or (solve == "auto" and residual_form and count < size)
    scale = _scale(jacobian, marquardt, dual)
    dtype = jacobian.out_structure().dtype
    if relative:
        squares = jax.tree.map(lambda norm, s: jnp.max(norm**2 / s), jacobian.column_norms(), scale)
        damping = damping * jnp.max(jnp.stack([leaf.astype(dtype) for leaf in jax.tree.leaves(squares)]))
    if dual:
        inverse = jax.tree.map(lambda s: 1 / s, scale) if marquardt else None
        matrix, diagonal = jacobian.kernel(inverse), jnp.ones((count,), dtype)
    else:
        matrix = jacobian.gram()
        diagonal = ravel(jax.tree.map(lambda s, leaf: jnp.broadcast_to(s, leaf.shape), scale, structure))
    lower, used, rung = damped_cholesky(matrix, diagonal, damping)
    return DampedSolve(damping=used, rung=rung, scale=scale, _jacobian=jacobian, _lower=lower, _dual=dual)


def _scale(jacobian: StructuredJacobian, marquardt: bool, dual: bool) -> PyTree:
    structure = jacobian.in_structure()
    if not marquardt:
        return jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), structure)
    squares = jax.tree.map(lambda norm: norm**2, jacobian.column_norms())
    if dual:
        squares = jax.tree.map(jnp.mean, squares)
    largest = jnp.max(jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(squares)]))

    def positive(leaf):  # a parameter that no residual sees must be damped, and not run off to saturation
        floor = SCALE_FLOOR * largest.astype(leaf.dtype)
        return jnp.where(largest > 0, jnp.maximum(leaf, floor), jnp.ones_like(leaf))

    return jax.tree.map(positive, squares)


def _divide(tree: PyTree, scale: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf, s: leaf / s, tree, scale)
