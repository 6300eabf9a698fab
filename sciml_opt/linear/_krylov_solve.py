"""Iterative solves with products of `J` and `J^T` only."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Scalar

from ._cg import conjugate_gradient
from ._damped_solve import DampedSolve, Solved
from ._lsmr import lsmr
from ._minres import minres
from ._nystrom import Nystrom, nystrom
from ._scaling import ScaledJacobian


class KrylovSolve(DampedSolve):
    """Conjugate gradients, MINRES or LSMR on `J~ = J D^-1/2`, with `D` as the preconditioner by that.

    `J^T y` is solved for in the smaller space, as `t = J~^T (J~ J~^T + lambda I)^-1 y` or from
    `(J~^T J~ + lambda I) t = J~^T y`; LSMR works on `J~` itself. Any other `g` is solved for in parameter space (by
    conjugate gradients, if LSMR was asked for). The Nystrom preconditioner is sketched in the space of the right-hand
    sides that were announced to `factorize`; other ones sketch anew.
    """

    _sketch: Nystrom | None
    _method: str = eqx.field(static=True)
    _dual: bool = eqx.field(static=True)
    _rank: int = eqx.field(static=True)
    _rtol: Scalar
    _max_steps: Int[Array, ""]

    def solve_residual(self, y: Float[Array, " N"]) -> Solved:
        J = self._jacobian
        if self._method == "lsmr":
            found = lsmr(J.mv, J.rmv, y, damp=jnp.sqrt(self.damping), rtol=self._rtol, max_steps=self._max_steps)
            return Solved(J.to_params(found.value), found.iterations, found.relative_residual)
        if self._dual:
            w, *report = self._iterate(y, dual=True)
            return Solved(J.to_params(J.rmv(w)), *report)
        t, *report = self._iterate(J.rmv(y), dual=False)
        return Solved(J.to_params(t), *report)

    def solve_gradient(self, g: PyTree) -> Solved:
        t, *report = self._iterate(self._jacobian.from_gradient(g), dual=False)
        return Solved(self._jacobian.to_params(t), *report)

    def _iterate(self, b: Array, *, dual: bool) -> tuple[Array, Array, Array]:
        J = self._jacobian

        def matvec(x: Array) -> Array:
            return (J.mv(J.rmv(x)) if dual else J.rmv(J.mv(x))) + self.damping * x

        method = minres if self._method == "minres" else conjugate_gradient
        precondition = None
        if self._method == "nystrom":
            announced = self._sketch is not None and dual == self._dual
            sketched = self._sketch if announced else sketch(J, dual, self._rank)
            assert sketched is not None
            precondition = sketched.preconditioner(self.damping)
        found = method(matvec, b, preconditioner=precondition, rtol=self._rtol, max_steps=self._max_steps)
        return found.value, found.iterations, found.relative_residual


def sketch(J: ScaledJacobian, dual: bool, rank: int) -> Nystrom:
    """Nystrom approximation of `J~ J~^T` (dual) or `J~^T J~`."""
    count, size = J.shape
    if dual:
        return nystrom(lambda w: J.mv(J.rmv(w)), count, rank, J.dtype)
    return nystrom(lambda t: J.rmv(J.mv(t)), size, rank, J.dtype)
