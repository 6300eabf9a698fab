"""The public optax transformations."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import number, one_of
from .._tree import tree_all_finite, tree_dtype, tree_norm, tree_where
from ..linear import Scaling, Solve, factorize
from ..methods import EnergyNaturalGradientMethod, GaussNewtonMethod, LevenbergMarquardtMethod, StepInfo, solve_info
from ._adapter import bound_objective, is_gradient, to_transformation


def levenberg_marquardt(
    init_damping: ArrayLike = 1e-2,
    *,
    geodesic: bool = True,
    acceleration_limit: ArrayLike = 0.75,
    scaling: Scaling = "identity",
    solve: Solve = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Levenberg-Marquardt with Nielsen damping and geodesic acceleration.

        (J^T J + lambda D) v = -J^T r,       (J^T J + lambda D) a = -J^T r_vv,       step = v + a/2

    A step is taken only if it decreases the loss on its batch; otherwise the update is zero and the damping grows.
    Carried from step to step: lambda and its growth factor. For an objective with other outer functions than least
    squares, `J^T J` is the generalised Gauss-Newton matrix and there is no acceleration.

    **Arguments:**

    - `init_damping`: the first lambda, relative to the largest diagonal entry of `D^-1 J^T J`.
    - `geodesic`: add the second-order correction `a/2`, with `r_vv` the second derivative of the residual along `v`.
    - `acceleration_limit`: it is used while `|a| <= limit |v|` (norms of `D`).
    - `scaling`: `D = I`, or `D = diag(J^T J)` (in the dual form its mean over each leaf).
    - `solve`: `"primal"` (`P x P`), `"dual"` (`N x N`), `"qr"`, `"svd"`, `"cg"`, `"minres"`, `"lsmr"`, `"nystrom"`
      (`sciml_opt.linear.factorize`), or `"auto"`: by predicted cost, memory and precision.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Errors:** `TypeError` if `value_fn` is no bound objective; `ValueError` if `updates` is not the gradient.

    **Cost:** per step one linearization, one trial loss, one second derivative along a line, one factorisation:
    `N P min(N, P)` flops; memory `N P`. About 4 gradients at `P = 129, N = 1020`.

    Source: Marquardt (1963), doi:10.1137/0111030; Nielsen (1999); Transtrum and Sethna, arXiv:1201.5885.

    **Example:**

    ```python
    tx = so.levenberg_marquardt()
    state = tx.init(params)
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
    params = optax.apply_updates(params, updates)
    ```
    """
    return to_transformation(
        LevenbergMarquardtMethod(
            init_damping, geodesic=geodesic, acceleration_limit=acceleration_limit, scaling=scaling, solve=solve
        )
    )


def gauss_newton(
    init_damping: ArrayLike = 1e-2,
    *,
    scaling: Scaling = "identity",
    solve: Solve = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Damped Gauss-Newton with an Armijo line search; the damping follows the accepted step size.

        (J^T J + lambda D) d = -grad L,      step = eta d,      eta from 1, 1/2, 1/4, ...

    Carried from step to step: lambda. Works for least squares and for convex outer functions (energies).

    **Arguments:** as in `levenberg_marquardt`.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** per step one linearization, one factorisation, one loss a trial step size (mostly one to three).

    Source: Nocedal and Wright, Numerical Optimization, section 10.3; arXiv:2402.07318 for the function-space view.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(GaussNewtonMethod(init_damping, scaling=scaling, solve=solve))


def energy_natural_gradient(
    init_damping: ArrayLike = 1e-2, *, solve: Solve = "auto"
) -> optax.GradientTransformationExtraArgs:
    """Energy natural gradient descent with damping and a grid line search.

        (G + lambda I) d = -grad L,    G_ij = D^2 E(u)[d_i u, d_j u],    eta = argmin over {0, 2^0, ..., 2^-30}

    For least squares `G = J^T J`; for an energy (Deep Ritz) it is its second derivative in function space, pulled
    back. The published method is undamped and stalls from unlucky starts; here lambda starts large and follows the
    accepted step size, down to rounding level. Carried from step to step: lambda.

    **Arguments:** `init_damping`, the first lambda relative to the largest diagonal entry of `G`; `solve` as in
    `levenberg_marquardt`.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** per step one linearization, one factorisation and 31 evaluations of the loss.

    Source: Mueller and Zeinhofer, arXiv:2302.13163.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(EnergyNaturalGradientMethod(init_damping, solve=solve))


def scale_by_gauss_newton(
    damping: ArrayLike | Callable[[Int[Array, ""]], Scalar] = 1e-8,
    *,
    scaling: Scaling = "identity",
    solve: Solve = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Precondition the updates by the damped Gauss-Newton matrix: `(J^T J + lambda D)^-1 updates`.

    An ascent direction, as everywhere in optax; it stands first in a chain:
    `optax.chain(so.scale_by_gauss_newton(), optax.scale(-1.0), optax.scale_by_zoom_linesearch(20))`.
    If `updates` is the gradient itself, it is solved for in the residual form; otherwise (in the dual form) by
    Woodbury's identity.

    **Arguments:**

    - `damping`: lambda relative to the largest diagonal entry of `D^-1 J^T J`; a number, or a schedule of the step.
      With 0 a singular matrix is still damped at rounding level, by the ladder of the Cholesky factorisation.
    - `scaling`, `solve`: as in `levenberg_marquardt`.

    **Returns:** an optax transformation. A non-finite direction is replaced by zero.

    **Cost:** per step one linearization and one factorisation.

    **Example:** see the chain above.
    """
    if not callable(damping):
        schedule = jax.tree_util.Partial(_constant, number("damping", damping, at_least=0))
    else:
        schedule = jax.tree_util.Partial(damping)
    preconditioner = _GaussNewtonPreconditioner(
        damping=schedule,
        marquardt=one_of("scaling", scaling, get_args(Scaling)) == "marquardt",
        solve=one_of("solve", solve, get_args(Solve)),
    )
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init, preconditioner), jax.tree_util.Partial(_update, preconditioner)
    )


class _GaussNewtonPreconditioner(eqx.Module):
    damping: jax.tree_util.Partial
    marquardt: bool = eqx.field(static=True)
    solve: Solve = eqx.field(static=True)


class ScaleByGaussNewtonState(NamedTuple):
    steps: Int[Array, ""]
    info: StepInfo


def _constant(number: Array, count: Int[Array, ""]) -> Array:
    del count
    return number


def _init(preconditioner: _GaussNewtonPreconditioner, params: PyTree) -> ScaleByGaussNewtonState:
    del preconditioner
    return ScaleByGaussNewtonState(jnp.int32(0), StepInfo.of(params))


def _update(preconditioner, updates, state, params=None, *, grad=None, value_fn=None, value=None, **extra_args: Any):
    del value, extra_args
    lin = bound_objective(value_fn, params).linearize(params)
    damping = jnp.asarray(preconditioner.damping(state.steps)).astype(tree_dtype(params))
    residual = lin.residual if is_gradient(updates, grad) else None
    factor = factorize(
        lin.jacobian,
        damping,
        relative=True,
        marquardt=preconditioner.marquardt,
        solve=preconditioner.solve,
        residual_form=residual is not None,
    )
    solved = factor.solve_gradient(updates) if residual is None else factor.solve_residual(residual)
    direction = solved.value
    usable = tree_all_finite(direction)
    direction = tree_where(usable, direction, jax.tree.map(jnp.zeros_like, direction))
    info = StepInfo.of(
        params,
        loss=lin.value,
        trial_loss=lin.value,
        accepted=usable,
        damping=factor.damping,
        step_norm=tree_norm(direction),
        grad_norm=tree_norm(lin.grad),
        linearizations=1,
        clipped=lin.clipped,
        **solve_info(factor, solved),
    )
    return direction, ScaleByGaussNewtonState(state.steps + 1, info)
