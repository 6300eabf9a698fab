"""One decomposition for many values of the damping."""

from typing import Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from ..linearization import StructuredJacobian
from ._damped_solve import DampedSolve, Solved
from ._scaling import ScaledJacobian


class Spectrum(eqx.Module):
    """Singular values and vectors of `J~ = J D^-1/2 = U diag(sigma) V^T`, which solve for any damping at once.

        (J^T J + lambda D)^-1 J^T y = D^-1/2 V diag(sigma / (sigma^2 + lambda)) U^T y

    Where rounding cannot tell `sigma^2 + lambda` from zero its inverse is zero: `lambda = 0` gives the pseudo-inverse.

    **Attributes:** `singular_values`, `(k,)`, in no promised order; `k = min(N, P)`, or the size of the matrix that
    `method` asked for.

    **Example:**

    ```python
    spectrum = Spectrum.of(lin.jacobian)
    steps = jax.vmap(spectrum.from_residual, (0, None))(dampings, -lin.residual)
    ```
    """

    singular_values: Float[Array, " k"]
    _floor: Scalar  # of sigma^2 + lambda
    _jacobian: ScaledJacobian
    _left: Float[Array, "N k"] | None
    _right: Float[Array, "P k"] | None

    @classmethod
    def of(
        cls,
        jacobian: StructuredJacobian | ScaledJacobian,
        *,
        marquardt: bool = False,
        method: Literal["auto", "svd", "gram", "kernel"] = "auto",
    ) -> "Spectrum":
        """Decompose `J~`.

        **Arguments:**

        - `jacobian`: `J`, `N` by `P`.
        - `marquardt`: the scaling, as in `factorize`.
        - `method`: `"svd"` of the explicit `J~` keeps all digits; `"gram"`, eigenvalues of `J~^T J~`, and `"kernel"`,
          of `J~ J~^T`, form no rows and lose the singular values below `sqrt(eps) max sigma`; `"auto"` is the smaller
          of these two.

        **Returns:** a `Spectrum`.

        **Cost:** `"svd"` about `6 N P^2 + 20 P^3` flops (`N >= P`), the others the matrix and `9 k^3`: 11 to 18
        Cholesky factorisations (measured, `k` from 512 to 1000), and it pays for more dampings than that.
        """
        if method == "auto":
            count, size = (
                ScaledJacobian.of(jacobian).shape if isinstance(jacobian, StructuredJacobian) else jacobian.shape
            )
            method = "kernel" if count < size else "gram"
        if isinstance(jacobian, StructuredJacobian):
            jacobian = ScaledJacobian.of(jacobian, marquardt=marquardt, leafwise=method == "kernel")
        (count, size), eps = jacobian.shape, jnp.finfo(jacobian.dtype).eps
        if method == "svd":
            U, sigma, Vt = jnp.linalg.svd(jacobian.as_matrix(), full_matrices=False)
            return cls(sigma, (count + size) * (eps * jnp.max(sigma)) ** 2, jacobian, U, Vt.T)
        matrix = jacobian.kernel() if method == "kernel" else jacobian.gram()
        eigenvalues, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
        floor = matrix.shape[0] * eps * jnp.max(eigenvalues)
        sides = (vectors, None) if method == "kernel" else (None, vectors)
        # what is below the floor is noise, whose root would be large; a NaN stays
        sigma = jnp.where(eigenvalues <= floor, 0, jnp.sqrt(jnp.maximum(eigenvalues, 0)))
        return cls(sigma, floor, jacobian, *sides)

    def coordinates(self, y: Float[Array, " N"]) -> Float[Array, " k"]:
        """`c = diag(sigma) U^T y`: the step for lambda has the length `|c / (sigma^2 + lambda)|` in the norm of `D`."""
        if self._left is not None:
            return self.singular_values * (y @ self._left)
        assert self._right is not None
        return self._jacobian.rmv(y) @ self._right

    def from_residual(self, damping: Scalar, y: Float[Array, " N"]) -> PyTree:
        """`(J^T J + lambda D)^-1 J^T y`."""
        return self._jacobian.to_params(self._flat_from_residual(damping, y))

    def from_gradient(self, damping: Scalar, g: PyTree) -> PyTree:
        """`(J^T J + lambda D)^-1 g` for any `g`; where `P > N` by Woodbury, which loses `eps / lambda` digits."""
        return self._jacobian.to_params(self._flat_from_gradient(damping, self._jacobian.from_gradient(g)))

    def _flat_from_residual(self, damping: Scalar, y: Array) -> Array:
        inverse = self._inverse(damping)
        if self._right is not None:
            return self._right @ (inverse * self.coordinates(y))
        assert self._left is not None
        return self._jacobian.rmv(self._left @ (inverse * (y @ self._left)))

    def _flat_from_gradient(self, damping: Scalar, b: Array) -> Array:
        inverse, k = self._inverse(damping), self.singular_values.shape[0]
        if self._right is not None:
            inside = b @ self._right
            t = self._right @ (inverse * inside)
            if k == b.shape[0]:
                return t
            return t + _safe_divide(b - self._right @ inside, damping)
        assert self._left is not None
        J = self._jacobian
        return _safe_divide(b - J.rmv(self._left @ (inverse * (J.mv(b) @ self._left))), damping)

    def _inverse(self, damping: Scalar) -> Array:
        squares = self.singular_values**2 + damping
        cut = squares <= self._floor  # false for a NaN
        return jnp.where(cut, 0, 1 / jnp.where(cut, 1, squares))


class SpectralSolve(DampedSolve):
    """A `Spectrum` at one damping: the pseudo-inverse where lambda is zero."""

    _spectrum: Spectrum

    def solve_residual(self, y: Float[Array, " N"]) -> Solved:
        return self._solved(self._spectrum._flat_from_residual(self.damping, y), self._jacobian.rmv(y))

    def solve_gradient(self, g: PyTree) -> Solved:
        b = self._jacobian.from_gradient(g)
        return self._solved(self._spectrum._flat_from_gradient(self.damping, b), b)


def _safe_divide(a: Array, b: Array) -> Array:
    """`a / b`, and 0 where `b = 0`."""
    zero = b == 0
    return jnp.where(zero, 0 * a, a / jnp.where(zero, jnp.ones_like(b), b))
