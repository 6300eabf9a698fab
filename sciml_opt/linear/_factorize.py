"""The door to every damped solve."""

import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree, Scalar, ScalarLike

from ..linearization import StructuredJacobian
from ._cholesky import damped_cholesky
from ._choose import DEFAULT_MEMORY, SOLVES, Solve, choose
from ._damped_solve import DampedSolve
from ._direct import DualSolve, PrimalSolve
from ._krylov_solve import KrylovSolve, sketch
from ._orthogonal import OrthogonalSolve, orthogonal_factor
from ._scaling import ScaledJacobian
from ._sketch_solve import SketchSolve
from ._spectrum import SpectralSolve, Spectrum

ITERATIVE = ("cg", "minres", "lsmr", "nystrom")


def factorize(
    jacobian: StructuredJacobian,
    damping: Scalar,
    *,
    relative: bool = False,
    marquardt: bool = False,
    scale: PyTree | None = None,
    solve: Solve = "auto",
    residual_form: bool = True,
    memory: int = DEFAULT_MEMORY,
    rank: int | None = None,
    rtol: ScalarLike | None = None,
    max_steps: int | Int[Array, ""] = 500,
) -> DampedSolve:
    """Prepare solves with `M = J^T J + lambda D`, for several right-hand sides.

    **Arguments:**

    - `jacobian`: `J`, `N` residuals by `P` parameters.
    - `damping`: `lambda >= 0`; with `relative`, in units of the largest diagonal entry of `D^-1 J^T J`.
    - `marquardt`: `D = diag(J^T J)`, floored at `1e-6` of its largest entry (for `"dual"` its mean over each leaf,
      which keeps the factored kernel); otherwise `D = I`,
      or `scale`, positive: parameter-shaped, or one scalar a leaf (for `"dual"` its mean over each leaf).
    - `solve`: one of

        - `"primal"`, `"dual"`: Cholesky of the `P x P` or the `N x N` matrix, with a ladder (`damped_cholesky`);
        - `"qr"`: QR of the damped Jacobian (`orthogonal_factor`), which keeps the digits that `J^T J` loses;
        - `"svd"`: SVD of `J` (`Spectrum`), which for lambda = 0 gives the pseudo-inverse;
        - `"cg"`, `"minres"`, `"lsmr"`: iterations on products with `J` and `J^T`;
        - `"nystrom"`: conjugate gradients with a randomized Nystrom preconditioner;
        - `"sketch"`: the Nystrom approximation itself in place of the matrix (`SketchSolve`), which is no solution of
          the system unless the spectrum of `J` has fallen below `sqrt(lambda)` within the rank;
        - `"auto"`: by predicted cost and memory (`choose`).

    - `residual_form`: whether right-hand sides will be `J^T y`; if not, `"auto"` stays in parameter space, since
      Woodbury's identity loses `eps / lambda` of its digits.
    - `memory`: bytes that `"auto"` may use for the matrices of a direct solve, or for a sketch.
    - `rank`: of the Nystrom sketch; by default 5 % of the unknowns, between 100 and 500 (`"sketch"`: 10 %, at least
      100).
    - `rtol`, `max_steps`: of an iteration, relative to the right-hand side; `sqrt(eps)` by default. May be traced.

    **Returns:** a `DampedSolve`: `from_residual(y)`, `from_gradient(g)`, and `solve_residual`, `solve_gradient`, which
    tell the number of iterations and the residual of the linear system too; `damping`, `rung`, `scale`, `choice`,
    `predicted_flops`. Cholesky, QR and SVD are differentiable in both modes, an iteration in forward mode only.

    **Cost:** primal `N P^2 + P^3 / 3` flops, memory `P^2`; dual `N^2 P + N^3 / 3`, memory `N^2`; QR
    `4 (N + P) min(N, P)^2`, memory `2 N P`; an iteration one product with `J` and `J^T`; see `choose`.

    **Example:**

    ```python
    factor = factorize(lin.jacobian, damping)
    step = factor.from_residual(-lin.residual)
    ```
    """
    J = ScaledJacobian.of(jacobian)
    count, size = J.shape
    choice = choose(
        count,
        size,
        jacobian.cost,
        J.dtype.itemsize,
        solve=solve,
        residual_form=residual_form,
        memory=memory,
        rank=rank,
    )
    kind = choice.solve
    if kind in (*ITERATIVE, "sketch"):
        jacobian = jacobian.for_products()
    if scale is None:
        J = ScaledJacobian.of(jacobian, marquardt=marquardt, leafwise=kind == "dual")
    else:
        J = ScaledJacobian.given(jacobian, scale, leafwise=kind == "dual")
    damping = damping.astype(J.dtype)
    gram = jacobian.gram() if kind == "primal" else None
    if relative:
        damping = damping * (J.largest_diagonal() if gram is None else jnp.max(jnp.diagonal(gram) / J.diagonal()))
    report = {
        "choice": jnp.int32(SOLVES.index(kind)),
        "predicted_flops": jnp.asarray(choice.flops, J.dtype),
        "_jacobian": J,
    }
    none = jnp.int32(0)
    if gram is not None:
        lower, used, rung = damped_cholesky(gram, J.diagonal(), damping)
        return PrimalSolve(damping=used, rung=rung, _lower=lower, **report)
    if kind == "dual":
        lower, used, rung = damped_cholesky(J.kernel(), jnp.ones((count,), J.dtype), damping)
        return DualSolve(damping=used, rung=rung, _lower=lower, **report)
    if kind == "qr":
        wide, matrix = count < size, J.as_matrix()
        Q, R, rung = orthogonal_factor(matrix.T if wide else matrix, damping)
        return OrthogonalSolve(damping=damping, rung=rung, _Q=Q, _R=R, _wide=wide, **report)
    if kind == "svd":
        return SpectralSolve(damping=damping, rung=none, _spectrum=Spectrum.of(J, method="svd"), **report)
    if kind == "sketch":
        approximation = sketch(J, choice.dual, choice.rank)
        return SketchSolve(
            damping=damping,
            rung=approximation.rung,
            _sketch=approximation,
            _dual=choice.dual,
            _rank=choice.rank,
            **report,
        )
    approximation = sketch(J, choice.dual, choice.rank) if kind == "nystrom" else None
    return KrylovSolve(
        damping=damping,
        rung=none if approximation is None else approximation.rung,
        _sketch=approximation,
        _method=kind,
        _dual=choice.dual,
        _rank=choice.rank,
        _rtol=jnp.asarray(float(jnp.finfo(J.dtype).eps) ** 0.5 if rtol is None else rtol, J.dtype),
        _max_steps=jnp.asarray(max_steps, jnp.int32),
        **report,
    )
