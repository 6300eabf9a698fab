"""The public optax transformations on the true Hessian; they take any function of the parameters."""

import optax
from jaxtyping import ArrayLike

from ..globalization import Search
from ..methods import AdaptiveCubicMethod, NewtonKrylovMethod, NewtonTrustRegionMethod, NysNewtonCGMethod
from ..methods._newton_krylov import Krylov
from ._adapter import to_transformation


def newton_krylov(
    *,
    krylov: Krylov = "cg",
    max_forcing: ArrayLike = 0.1,
    krylov_steps: int = 200,
    line_search: Search = "armijo",
) -> optax.GradientTransformationExtraArgs:
    """Newton's method with inexact, matrix-free solves and a line search.

        |H d + g| <= eta |g|,      step = (step size) d,      eta = 0.9 (|g| / |g_old|)^2 at most `max_forcing`

    `H` is the true Hessian, through products `v -> H v`. Conjugate gradients stop at a direction of negative curvature
    with the iterate before it; MINRES solves on, and of `d` and `-d` the one that descends is taken. Carried from step
    to step: `eta` and `|g|`.

    **Arguments:**

    - `krylov`: `"cg"`, or `"minres"`, which is slow as long as much of the spectrum is negative.
    - `max_forcing`: the largest relative residual `eta`, below 1. The Hessian of a PINN is so ill-conditioned that a
      loose solve moves along few eigenvectors: on 2-D Poisson, after 400 steps, the error was 7 to 45 times smaller
      with 0.1 than with 0.5, for 1.7 times the products.
    - `krylov_steps`: products a solve.
    - `line_search`: `"armijo"`, `"strong_wolfe"` or `"grid"`.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did (`rung` 1 for negative
    curvature). `value_fn` may be any function of the parameters.

    **Cost:** per step one gradient and its linearization, a product (two to four losses) an iteration and one more, a
    loss a trial step size; memory of the linearized gradient, and a few vectors.

    Source: Dembo and Steihaug (1983), doi:10.1007/BF02592055; Eisenstat and Walker (1996), doi:10.1137/0917003.

    **Example:**

    ```python
    tx = so.newton_krylov()
    state = tx.init(params)
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
    params = optax.apply_updates(params, updates)
    ```
    """
    return to_transformation(
        NewtonKrylovMethod(krylov=krylov, max_forcing=max_forcing, krylov_steps=krylov_steps, line_search=line_search)
    )


def newton_trust_region(
    init_radius: ArrayLike = 1.0, *, max_forcing: ArrayLike = 0.1, krylov_steps: int = 200
) -> optax.GradientTransformationExtraArgs:
    """Newton's method in a trust region (Steihaug-Toint).

        min g^T s + s^T H s / 2  over  |s| <= Delta,      by conjugate gradients that stop on the boundary
        rho = (actual decrease) / (predicted decrease):   accept if rho > 0.1
        Delta = |s| / 4 if rho < 1/4,      Delta *= 2 if rho > 3/4 and |s| = Delta

    Directions of negative curvature are followed to the boundary. Carried from step to step: Delta, the forcing term
    and the gradient norm.

    **Arguments:** `init_radius`, the first Delta, in units of the parameters; the others as in `newton_krylov`.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** per step one gradient and its linearization, a product an iteration, one loss; memory of the linearized
    gradient, and a few vectors. A rejected step repeats the gradient.

    Source: Steihaug (1983), doi:10.1137/0720042; Conn, Gould and Toint, Trust-Region Methods (2000).

    **Example:** as in `newton_krylov`.
    """
    return to_transformation(NewtonTrustRegionMethod(init_radius, max_forcing=max_forcing, krylov_steps=krylov_steps))


def adaptive_cubic(init_weight: ArrayLike = 1.0, *, dimension: int = 40) -> optax.GradientTransformationExtraArgs:
    """Adaptive regularisation by cubics (ARC) in a Lanczos subspace.

        min g^T s + s^T H s / 2 + sigma |s|^3 / 3      over span(g, H g, ..., H^(m-1) g)
        rho = (actual decrease) / (predicted decrease):   accept if rho > 0.1
        sigma /= 2 if rho > 0.9,      sigma *= 10 if rho < 0.1

    The minimum over the subspace is the global one, with negative curvature too. Sigma rises faster than it falls: with
    a factor of 2 both ways nearly half of the steps on 2-D Poisson were rejected. Carried from step to step: sigma.

    **Arguments:**

    - `init_weight`: the first sigma, relative to the largest entry of the tridiagonal matrix (about the largest
      eigenvalue of `H`): a step of length 1 is damped by that much.
    - `dimension`: `m`, the number of Lanczos vectors, unless the space is exhausted before.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did (sigma as `damping`).

    **Cost:** per step one gradient and its linearization, `m` products, `8 m^2 P` flops of reorthogonalisation, one
    loss; memory `m P` and of the linearized gradient. A rejected step repeats it all.

    Source: Cartis, Gould and Toint (2011), doi:10.1007/s10107-009-0286-5.

    **Example:** as in `newton_krylov`.
    """
    return to_transformation(AdaptiveCubicMethod(init_weight, dimension=dimension))


def nys_newton_cg(
    damping: ArrayLike = 1e-7,
    *,
    rank: int = 60,
    refresh: int = 20,
    cg_rtol: ArrayLike = 1e-3,
    krylov_steps: int = 1000,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """NysNewton-CG: damped Newton by conjugate gradients with a sketch of the Hessian as the preconditioner.

        (H + mu I) d = -g,      mu = damping * (largest eigenvalue of the sketch),      step = (Armijo step size) d

    Made for the last phase, after Adam and L-BFGS. Carried from step to step: the sketch, made anew every `refresh`
    steps, and the direction, from which the next solve starts. Four things differ from the paper. There mu is
    absolute, 1e-5 to 1e-1, and means something else for every weight of the loss. There conjugate gradients go on to
    1e-16, here to `cg_rtol`. There the sketch is a Nystrom approximation, which an indefinite Hessian breaks; here it
    approximates `|H|` by Ritz values, for twice the products (`sciml_opt.linear.rayleigh_ritz`). And where conjugate
    gradients meet negative curvature at once, the direction is the preconditioned gradient.

    **Arguments:**

    - `damping`: mu relative to the largest eigenvalue. It should exceed the most negative one, which shrinks with the
      loss: 1e-6 to 1e-8 were about equal on 2-D Poisson in float64.
    - `rank` of the sketch (at most the number of parameters); `refresh`, steps between two of them.
    - `cg_rtol`, `krylov_steps`: relative residual and products of a solve.
    - `seed` of the test matrices.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did.

    **Cost:** per step one gradient and its linearization, a product an iteration and two more, a loss a trial step
    size; `2 rank` products and `10 P rank^2` flops a sketch. Memory `3 P rank` and of the linearized gradient; the
    sketch takes 64 products at once. Under `vmap` every step makes a sketch.

    Source: Rathore, Lei, Frangella, Lu and Udell, arXiv:2402.01868, algorithms 4 to 6.

    **Example:** `so.fit(model, objective, [so.Phase(optax.lbfgs(), 2000), so.Phase(so.nys_newton_cg(), 1000)], ...)`
    """
    return to_transformation(
        NysNewtonCGMethod(damping, rank=rank, refresh=refresh, cg_rtol=cg_rtol, krylov_steps=krylov_steps, seed=seed)
    )
