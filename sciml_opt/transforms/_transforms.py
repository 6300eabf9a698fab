"""The public optax transformations."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import one_of, schedule
from .._tree import tree_all_finite, tree_dtype, tree_norm, tree_where
from ..globalization import Search
from ..linear import Scaling, Solve, factorize
from ..methods import GaussNewtonMethod, LevenbergMarquardtMethod, StepInfo, solve_info
from ..methods._gauss_newton import GaussNewtonScaling
from ..methods._levenberg_marquardt import DampingRule, LevenbergMarquardtScaling, Schedule
from ._adapter import bound_objective, is_gradient, to_transformation


def levenberg_marquardt(
    init_damping: ArrayLike = 1e-2,
    *,
    geodesic: bool = True,
    acceleration_limit: ArrayLike = 0.75,
    damping_rule: DampingRule | Schedule = "nielsen",
    scaling: LevenbergMarquardtScaling = "identity",
    solve: Solve = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Levenberg-Marquardt with geodesic acceleration; by default with Nielsen damping.

        (J^T J + lambda D) v = -J^T r,       (J^T J + lambda D) a = -J^T r_vv,       step = v + a/2

    A step is taken only if it decreases the loss on its batch; otherwise the update is zero and the damping grows.
    Carried from step to step: lambda and its growth factor (and the column norms of `"minpack"`). For an objective with
    other outer functions than least squares, `J^T J` is the generalised Gauss-Newton matrix and there is no
    acceleration.

    **Arguments:**

    - `init_damping`: the first lambda, relative to the largest diagonal entry of `D^-1 J^T J`.
    - `geodesic`: add the second-order correction `a/2`, with `r_vv` the second derivative of the residual along `v`.
    - `acceleration_limit`: it is used while `|a| <= limit |v|` (norms of `D`).
    - `damping_rule`: what moves lambda:

        - `"nielsen"`: by the gain ratio; accepted `*= max(1/3, 1 - (2 rho - 1)^3)`, rejected `*= 2, 4, 8, ...`;
        - `"delayed_gratification"`: accepted `/= 3`, rejected `*= 2`;
        - `"fixed"`: nothing (a rejected step is then tried again, unless the batch changes);
        - a schedule, `step -> factor`, of optax for example: `lambda = factor * init_damping * size`.

    - `scaling`: `D = I` (`"identity"`), `D = diag(J^T J)` (`"marquardt"`), or its running maximum over the steps
      (`"minpack"`); in the dual form the mean over each leaf.
    - `solve`: `"primal"` (`P x P`), `"dual"` (`N x N`), `"qr"`, `"svd"`, `"cg"`, `"minres"`, `"lsmr"`, `"nystrom"`,
      `"sketch"` (`sciml_opt.linear.factorize`), or `"auto"`: by predicted cost, memory and precision.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Errors:** `TypeError` if `value_fn` is no bound objective; `ValueError` if `updates` is not the gradient.

    **Cost:** per step one linearization, one trial loss, one second derivative along a line, one factorisation:
    `N P min(N, P)` flops; memory `N P`. About 4 gradients at `P = 129, N = 1020`.

    Source: Marquardt (1963), doi:10.1137/0111030; Nielsen (1999); Transtrum and Sethna, arXiv:1201.5885; the scaling of
    MINPACK: More (1978), doi:10.1007/BFb0067700.

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
            init_damping,
            geodesic=geodesic,
            acceleration_limit=acceleration_limit,
            damping_rule=damping_rule,
            scaling=scaling,
            solve=solve,
        )
    )


def gauss_newton(
    init_damping: ArrayLike = 1e-2,
    *,
    scaling: GaussNewtonScaling = "identity",
    line_search: Search = "armijo",
    solve: Solve = "auto",
) -> optax.GradientTransformationExtraArgs:
    """Damped Gauss-Newton with a line search; the damping follows the accepted step size.

        (J^T J + lambda D) d = -grad L,      step = eta d,      eta by line search

    Carried from step to step: lambda. Works for least squares and for convex outer functions (energies).

    **Arguments:** as in `levenberg_marquardt`, but for

    - `scaling`: `"identity"`, `"marquardt"`, or `"jacobi"`: where `N < P` the kernel is scaled to a unit diagonal,
      `(W J J^T W + lambda I) y = W r`, `d = -J^T W y` with `W = diag(J J^T)^-1/2`, so that rows of small norm count
      as much as others (lambda is relative to that diagonal); where `N >= P`, or for an energy, it is `"marquardt"`;
    - `line_search`: `"armijo"` (1, 1/2, 1/4, ... until the decrease suffices), `"strong_wolfe"`, or `"grid"` (the best
      of `2^0, ..., 2^-30`).

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** per step one linearization, one factorisation, one loss a trial step size (mostly one to three).

    Source: Nocedal and Wright, Numerical Optimization, section 10.3; arXiv:2402.07318 for the function-space view;
    arXiv:2604.05230 for the scaled kernel.

    **Example:** as in `levenberg_marquardt`.
    """
    return to_transformation(GaussNewtonMethod(init_damping, scaling=scaling, line_search=line_search, solve=solve))


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
    preconditioner = _GaussNewtonPreconditioner(
        damping=schedule("damping", damping, at_least=0),
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
