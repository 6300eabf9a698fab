"""Sketch and solve: a Nystrom approximation in place of the matrix."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from ._damped_solve import DampedSolve, Solved, relative_norm
from ._krylov_solve import sketch
from ._nystrom import Nystrom
from ._spectrum import _safe_divide

OVERSAMPLING = 10  # where N vectors would be just the rank of J^T J: their square Gaussian core is ill-conditioned


class SketchSolve(DampedSolve):
    """The damped inverse of a low-rank approximation, by Woodbury's identity.

        K = J~ J~^T ~ U diag(s) U^T,      (K + lambda I)^-1 y ~ U ((U^T y) / (s + lambda)) + (y - U U^T y) / lambda

    `J^T y` is solved for in the space of the residuals, any other `g` in that of the parameters; what was announced to
    `factorize` is sketched once, other right-hand sides sketch anew. What the sketch has missed is amplified by up to
    `(k + lambda) / lambda`, `k` the largest eigenvalue left out, and the reported residual is that of the true system:
    a large one asks for more damping, or a larger rank. With `lambda = 0` the second term is dropped.

    Source: arXiv:2505.12149, algorithm 2.
    """

    _sketch: Nystrom
    _dual: bool = eqx.field(static=True)
    _rank: int = eqx.field(static=True)

    def solve_residual(self, y: Float[Array, " N"]) -> Solved:
        J = self._jacobian
        if not self._dual:
            return self.solve_gradient(J.jacobian.rmv(y))
        w = _inverse(self._sketch, self.damping, y)
        t = J.rmv(w)
        return Solved(J.to_params(t), jnp.int32(0), relative_norm(y - J.mv(t) - self.damping * w, y))

    def solve_gradient(self, g: PyTree) -> Solved:
        J = self._jacobian
        b = J.from_gradient(g)
        approximation = sketch(J, False, self._rank + OVERSAMPLING) if self._dual else self._sketch
        return self._solved(_inverse(approximation, self.damping, b), b)


def _inverse(approximation: Nystrom, damping: Scalar, x: Float[Array, " n"]) -> Float[Array, " n"]:
    U, inside = approximation.vectors, x @ approximation.vectors
    return U @ _safe_divide(inside, approximation.eigenvalues + damping) + _safe_divide(x - U @ inside, damping)
