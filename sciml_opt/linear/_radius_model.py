"""Least squares within a ball: one decomposition, the step for every radius."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

from .._tree import ravel, tree_size, unravel
from ..linearization import StructuredJacobian
from ._cg import positive_norm
from ._random_projections import cosine_projection, count_sketch

SECULAR_STEPS = 50


class RadiusModel(eqx.Module):
    """`m(s) = 0.5 |r + J s|^2` in the coordinates of the right singular vectors, `J = U diag(sigma) V^T`.

        s(lambda) = -V (c / (sigma^2 + lambda)),     c = sigma U^T r,      s(Delta): |s(lambda)| = Delta

    Everything is relative to the largest singular value, so that no square over- or underflows: `squares` is
    `(sigma / sigma_1)^2`, `damping` arguments are `lambda / sigma_1^2`.

    **Attributes:** `squares`, `(k,)`; `unit`, `sigma_1`.
    """

    squares: Float[Array, " k"]
    unit: Scalar
    _gradient: Float[Array, " k"]  # c / sigma_1^2
    _lift: jax.tree_util.Partial  # coordinates -> flat parameters

    @classmethod
    def by_svd(cls, jacobian: StructuredJacobian, residual: Float[Array, " N"]) -> "RadiusModel":
        """QR of the explicit `[J r]` and SVD of `R`: all digits, also of singular values of 1e-15 of the largest.

        **Cost:** `2 N P^2 + 20 P^3` flops (`N >= P`); memory `2 N P`.
        """
        return cls._of_matrix(jacobian.as_matrix(), residual)

    @classmethod
    def by_gram(cls, jacobian: StructuredJacobian, residual: Float[Array, " N"]) -> "RadiusModel":
        """Eigenvectors of the smaller of `J^T J` and `J J^T`, which lose what is below 1e-8 of the largest.

        **Cost:** the matrix and `9 min(N, P)^3` flops; no row of `J` is formed for `J J^T`.
        """
        if residual.shape[0] >= tree_size(jacobian.in_structure()):
            squares, V = _eigh(jacobian.gram())
            gradient = jnp.where(squares == 0, 0, ravel(jacobian.rmv(residual)) @ V)
            return cls._of(jnp.sqrt(squares), gradient, jax.tree_util.Partial(jnp.matmul, V))
        squares, U = _eigh(jacobian.kernel())
        sigma = jnp.sqrt(squares)
        lift = jax.tree_util.Partial(_from_left, jacobian, U, _inverse(sigma))
        return cls._of(sigma, sigma * (residual @ U), lift)

    @classmethod
    def sketched(
        cls,
        jacobian: StructuredJacobian,
        residual: Float[Array, " N"],
        key: PRNGKeyArray,
        rows: int | None,
        columns: int | None,
    ) -> "RadiusModel":
        """`by_svd` of `C J S`: rows by `count_sketch`, columns (a random subspace of steps) by `cosine_projection`.

        **Cost:** `N P log(P) + 2 rows columns^2 + 20 columns^3` flops.
        """
        matrix = jacobian.as_matrix()
        first, second = jax.random.split(key)
        if rows is not None and rows < matrix.shape[0]:
            together = count_sketch(first, jnp.concatenate([matrix, residual[:, None]], axis=1), rows)
            matrix, residual = together[:, :-1], together[:, -1]
        if columns is None or columns >= matrix.shape[1]:
            return cls._of_matrix(matrix, residual)
        projection = cosine_projection(second, matrix.shape[1], columns)
        model = cls._of_matrix(projection.apply(matrix), residual)
        lift = jax.tree_util.Partial(_after, jax.tree_util.Partial(projection.lift), model._lift)
        return eqx.tree_at(lambda m: m._lift, model, lift)

    @classmethod
    def _of_matrix(cls, J: Float[Array, "N P"], residual: Float[Array, " N"]) -> "RadiusModel":
        count, size = J.shape
        if count >= size:
            R = jnp.linalg.qr(jnp.concatenate([J, residual[:, None]], axis=1), mode="r")
            U, sigma, Vt = jnp.linalg.svd(R[:size, :size])
            return cls._of(sigma, sigma * (R[:size, size] @ U), jax.tree_util.Partial(jnp.matmul, Vt.T))
        Q, R = jnp.linalg.qr(J.T)
        U, sigma, Wt = jnp.linalg.svd(R.T)
        return cls._of(sigma, sigma * (residual @ U), jax.tree_util.Partial(jnp.matmul, Q @ Wt.T))

    @classmethod
    def _of(cls, sigma: Array, coordinates: Array, lift: jax.tree_util.Partial) -> "RadiusModel":
        largest = jnp.max(sigma)
        unit = jnp.where(largest > 0, largest, 1)  # a NaN stays
        return cls((sigma / unit) ** 2, unit, coordinates / unit / unit, lift)

    def step(self, damping: Scalar, structure: PyTree) -> PyTree:
        """`s(lambda)`, parameter-shaped; where `sigma^2 + lambda = 0` a pseudo-inverse."""
        return unravel(-self._lift(self._coordinates(damping)), structure)

    def length(self, damping: Scalar) -> Scalar:
        """`|s(lambda)|`, falling in lambda."""
        return jnp.linalg.norm(self._coordinates(damping))

    def decrease(self, damping: Scalar) -> Scalar:
        """`m(0) - m(s(lambda)) = 0.5 sum c^2 (sigma^2 + 2 lambda) / (sigma^2 + lambda)^2`."""
        s = self._coordinates(damping)
        return 0.5 * jnp.sum((self.unit * s) ** 2 * (self.squares + 2 * damping))

    def damping(self, radius: Scalar) -> Scalar:
        """`lambda` with `|s(lambda)| = radius`; 0 if the undamped step is shorter.

        Newton's method on `1 / |s(lambda)| - 1 / radius`, nearly linear in lambda, from the left of its root: monotone.
        """

        def newton(_, damping):
            s = self._coordinates(damping)
            length = positive_norm(s)
            u = s / length  # whose squares do not overflow
            slope = jnp.sum(u**2 * _inverse(self.squares + damping))
            change = (1 - radius / length) * (length / radius) / jnp.where(slope > 0, slope, 1)
            return jnp.maximum(damping + jnp.where(jnp.isfinite(change), change, 0), 0)

        start = jnp.finfo(self.squares.dtype).eps ** 2  # squares below it are rounding
        return lax.fori_loop(0, SECULAR_STEPS, newton, jnp.asarray(start, self.squares.dtype))

    def _coordinates(self, damping: Scalar) -> Array:
        return self._gradient * _inverse(self.squares + damping)


def _eigh(matrix: Array) -> tuple[Array, Array]:
    eigenvalues, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    floor = matrix.shape[0] * jnp.finfo(matrix.dtype).eps * jnp.max(eigenvalues)
    return jnp.where(eigenvalues <= floor, 0, eigenvalues), vectors  # what is below is noise; a NaN stays


def _inverse(x: Array) -> Array:
    zero = x == 0
    return jnp.where(zero, 0, 1 / jnp.where(zero, 1, x))


def _from_left(jacobian: StructuredJacobian, U: Array, inverse: Array, x: Array) -> Array:
    return ravel(jacobian.rmv(U @ (inverse * x)))


def _after(outer, inner, x: Array) -> Array:
    return outer(inner(x))
