"""The public optax transformations of the quasi-Newton methods; they take any function of the parameters."""

from collections.abc import Callable
from typing import Literal

import optax
from jaxtyping import Array, ArrayLike

from .._check import one_of
from ..methods import BroydenMethod, LBFGSMethod, SR1Method, StochasticLBFGSMethod
from ..methods._lbfgs import Correction, Initial
from ._adapter import to_transformation


def lbfgs(
    memory: int = 20, *, correction: Correction = "cautious", initial: Initial = "diagonal"
) -> optax.GradientTransformationExtraArgs:
    """Limited-memory BFGS with a strong Wolfe line search.

        theta+ = theta - eta H g,     H from H_0 and the last m pairs s = theta+ - theta, y = g+ - g

    Both gradients of a pair are of the points of one step, so that fresh points each step do no harm. A pair without
    positive curvature above rounding is left out.

    In float32 the line search goes on where losses differ by rounding only, by their slopes: the loss may rise above
    the lowest so far by `100 eps`, and after a failed search by more, up to `1e4 eps` (1e-3 in float32, 2e-12 in
    float64). If a search finds no step, the step is zero and `so.info(state).rung` is 1; after two of them in a row the
    pairs are dropped, after the third `H_0` too, and the next steps are along the gradient. The method never stops by
    itself; at a point where five searches have failed it makes one trial a step (end a phase there by
    `so.Stop(plateau=...)`). Carried from step to step: the pairs, `H_0`, how the searches fared, and the loss and the
    gradient at the new point.

    **Arguments:**

    - `memory`: m. The literature has 3 to 150; 50 to 100 is better where the gradient is dear.
    - `correction`: of a pair, `"cautious"` as above, or `"damped"`: `y` is moved towards `B s` until
      `s^T y >= 0.2 s^T B s` (Powell), so that no pair is lost.
    - `initial`: `H_0` is a `"diagonal"`, the diagonal of a BFGS matrix of its own that is only ever scaled up, or
      `"scalar"`, `(s^T y / y^T y) I`, the usual one. With the diagonal the losses of 2-D Poisson, Burgers and
      convection were 4 to 100 times lower after the same number of gradients, of which a step takes a tenth to a third
      more.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did (`gradients`: the trials).
    `value_fn` may be any function of the parameters. `state.value` and `state.grad` belong to the new point, as in
    optax: with `optax.value_and_grad_from_state` a loop on a fixed batch costs one value and gradient a trial and no
    more; `so.fit` does so by itself.

    **Cost:** one value and gradient a trial of the line search, mostly one a step; `8 m P` flops; memory `2 m P`.

    Source: Liu and Nocedal (1989), doi:10.1007/BF01589116; the diagonal: Gilbert and Lemarechal (1989),
    doi:10.1007/BF01589113; Li and Fukushima (2001), doi:10.1137/S1052623499354242.

    **Example:**

    ```python
    tx = so.lbfgs()
    state = tx.init(params)
    value_and_grad = optax.value_and_grad_from_state(loss)
    value, grad = value_and_grad(params, state=state)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
    params = optax.apply_updates(params, updates)
    ```
    """
    return to_transformation(LBFGSMethod(memory, correction=correction, initial=initial))


def bfgs(*, damped: bool = False) -> optax.GradientTransformationExtraArgs:
    """BFGS with the dense inverse and a strong Wolfe line search.

        theta+ = theta - eta H g
        H+ = (I - rho s y^T) H (I - rho y s^T) + rho s s^T,     rho = 1 / s^T y

    After the first step `H` is scaled to `(s^T y / y^T y) I`; after two failed searches it is the identity again. It is
    carried from step to step, also across batches: both gradients of a pair are of the points of one step.

    **Arguments:** `damped`: Powell's damping of `y`, as in `so.lbfgs`; without it pairs of no positive curvature above
    rounding are left out.

    **Returns:** an optax transformation; `so.info(state)`, `state.value` and `state.grad` as in `so.lbfgs`.

    **Cost:** one value and gradient a trial of the line search, mostly one a step; `9 P^2` flops, four passes over the
    matrix; memory `P^2`.

    Source: Nocedal and Wright, Numerical Optimization, algorithm 6.1.

    **Example:** `so.fit(model, objective, so.bfgs(), data=batch, steps=1000)`
    """
    return to_transformation(BroydenMethod("bfgs", damped=damped))


def dfp() -> optax.GradientTransformationExtraArgs:
    """The method of Davidon, Fletcher and Powell.

        theta+ = theta - eta H g,     H+ = H - H y y^T H / y^T H y + s s^T / s^T y

    The other end of Broyden's class from BFGS, and slower in almost every case. It does not recover from a poor step,
    and so its line search is tighter (`c2 = 0.1`); all else is as in `so.bfgs`.

    **Returns:** an optax transformation; `so.info(state)`, `state.value` and `state.grad` as in `so.lbfgs`.

    **Cost:** as `so.bfgs`.

    Source: Nocedal and Wright, Numerical Optimization, equation 6.15.

    **Example:** `so.fit(model, objective, so.dfp(), data=batch, steps=1000)`
    """
    return to_transformation(BroydenMethod("dfp"))


def ss_bfgs(scaling: Literal["ab", "ol"] = "ab") -> optax.GradientTransformationExtraArgs:
    """Self-scaled BFGS: `H` is divided by `tau` before each BFGS update.

        tau = min(1, s^T y / s^T B s)  ("ab", Al-Baali),     tau = s^T y / s^T B s  ("ol", Oren and Luenberger)

    **Arguments:** `scaling`; with `"ol"` `H` forgets too much in most cases.

    **Returns:** an optax transformation; `so.info(state)`, `state.value` and `state.grad` as in `so.lbfgs`.

    **Cost:** as `so.bfgs`.

    Source: arXiv:2405.04230, equations 10 and 11; Al-Baali (1998), doi:10.1023/A:1018315205474.

    **Example:** `so.fit(model, objective, so.ss_bfgs(), data=batch, steps=1000)`
    """
    one_of("scaling", scaling, ("ab", "ol"))
    return to_transformation(BroydenMethod("ss_bfgs_ab" if scaling == "ab" else "ss_bfgs_ol"))


def ss_broyden(variant: Literal[1, 2] = 2) -> optax.GradientTransformationExtraArgs:
    """Self-scaled Broyden: the member of Broyden's class and the scale of `H` are chosen anew each step.

        v = s / s^T y - H y / y^T H y
        H+ = (H - H y y^T H / y^T H y + phi (y^T H y) v v^T) / tau + s s^T / s^T y

    with `phi` and `tau` from `s^T B s / s^T y` and `y^T H y / s^T y` (the formulas:
    `sciml_opt.methods.broyden_coefficients`). It comes near Levenberg-Marquardt on PINNs, and past it on Burgers' shock
    and on energies; without damping it fits between few points in the end (2 of 5 runs on 5-D Poisson, after 1e-6):
    keep the best model, or draw new points. The usual recipe is Adam first, then this with points redrawn every 500
    steps, `so.fit(..., [so.Phase(adam, 5000), so.Phase(so.ss_broyden(), 20000)], data=sampler, resample_every=500)`.

    **Arguments:** `variant`: 2, the paper's, or 1, which stays near the symmetric rank-one update.

    **Returns:** an optax transformation; `so.info(state)`, `state.value` and `state.grad` as in `so.lbfgs`.

    **Cost:** as `so.bfgs`.

    Source: Urban, Stefanou and Pons, arXiv:2405.04230; Al-Baali and Khalfan (2005).

    **Example:** `so.fit(model, objective, so.ss_broyden(), data=batch, steps=1000)`
    """
    if variant not in (1, 2):
        raise ValueError(f"variant must be 1 or 2, got {variant!r}.")
    return to_transformation(BroydenMethod("ss_broyden1" if variant == 1 else "ss_broyden2"))


def trust_region_sr1(
    memory: int | None = 20, *, init_radius: ArrayLike = 1.0, max_forcing: ArrayLike = 1e-2
) -> optax.GradientTransformationExtraArgs:
    """Symmetric rank-one updates in a trust region; they learn negative curvature too.

        min g^T s + s^T B s / 2  over  |s| <= Delta
        B+ = B + (y - B s)(y - B s)^T / (y - B s)^T s,     from B = (|s^T y| / s^T s) I

    by truncated conjugate gradients (Steihaug). An update is left out where the denominator is within 1e-8 of zero,
    relative to `|s| |y - B s|`. Carried from step to step: `B`, `Delta`, and the loss and the gradient at the new
    point.

    **Arguments:** `memory`: the number of pairs that `B` is made of, or `None` for the dense matrix; `init_radius`, the
    first Delta; `max_forcing`, the relative residual at which conjugate gradients stop.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did (`rung` 1 for negative
    curvature). `value_fn` may be any function of the parameters.

    **Cost:** one value and gradient a step, accepted or not; `4 m P` flops an iteration of conjugate gradients,
    `4 m^2 P` a step and `3 m P` memory, or `2 P^2`, `2 P^2` and `P^2`.

    Source: Byrd, Khalfan and Schnabel (1996), doi:10.1137/S1052623493252985; Nocedal and Wright, algorithm 6.2.

    **Example:** `so.fit(model, objective, so.trust_region_sr1(), data=batch, steps=1000)`
    """
    return to_transformation(SR1Method(memory, init_radius=init_radius, max_forcing=max_forcing))


def stochastic_lbfgs(
    learning_rate: ArrayLike | Callable[[Array], Array],
    memory: int = 20,
    *,
    overlap: float = 0.25,
    longest: ArrayLike | Callable[[Array], Array] = 0.1,
    correction: Correction = "damped",
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """L-BFGS for points that change, without a line search.

        theta+ = theta - eta H grad L_S(theta),     y = grad L_O(theta+) - grad L_O(theta),     O a part of S

    A line search on one minibatch fits its noise, and the difference of gradients of two minibatches is mostly noise.
    Here the step is a learning rate, and both gradients of a pair are on the same random part `O` of the points `S` of
    the step. For batches that are large enough to search on, `so.lbfgs` takes fresh points too.

    **Arguments:**

    - `learning_rate`: eta, a number or a schedule of the step.
    - `memory`: number of pairs.
    - `overlap`: the fraction of the points in `O`, in (0, 1].
    - `longest`: the longest step, a number or a schedule.
    - `correction`: of a pair, as in `so.lbfgs`.
    - `seed` of the parts.

    **Returns:** an optax transformation; `so.info(state)` tells what the last step did (`accepted` only says that the
    gradient was finite; `gain_ratio` is over the linear model, on `O`). `value_fn` must be a bound objective.

    **Cost:** one gradient, two on the part; `8 m P` flops; memory `2 m P`.

    Source: Berahas, Nocedal and Takac, arXiv:1605.06049; Byrd, Hansen, Nocedal and Singer, arXiv:1401.7020.

    **Example:** `so.fit(model, objective, so.stochastic_lbfgs(0.1), data=sampler, steps=1000, key=jax.random.key(0))`
    """
    return to_transformation(
        StochasticLBFGSMethod(learning_rate, memory, overlap=overlap, longest=longest, correction=correction, seed=seed)
    )
