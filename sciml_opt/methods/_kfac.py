"""KFAC for differential operators: momentum and a grid line search, or the exact quadratic model (KFAC*)."""

from typing import Any, Literal, NamedTuple, cast, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Scalar

from .._check import number, one_of
from .._tree import (
    ravel,
    tree_add,
    tree_all_finite,
    tree_dot,
    tree_dtype,
    tree_norm,
    tree_scale,
    tree_size,
    tree_where,
    unravel,
)
from ..curvature import KroneckerFactors, KroneckerSum, kronecker_factors
from ..globalization import nielsen_update, step_size_damping
from ..linearization import Linearization
from ..linearization._views import assemble
from ._method import AbstractMethod, Loss, StepInfo, gain_ratio, keep, quotient, search_info, searched

StepRule = Literal["line_search", "quadratic_model"]


class Averages(NamedTuple):
    """Running averages of the factors, two pairs a matrix, with room for a bias on either side, and of the diagonal."""

    lefts: tuple[Float[Array, "2 _ _"], ...]
    rights: tuple[Float[Array, "2 _ _"], ...]
    diagonal: Float[Array, " P"]


class KfacState(NamedTuple):
    averages: Averages
    previous: PyTree  # the last direction, or with the quadratic model the last step
    damping: Scalar  # relative to the mean diagonal entry of each factor
    growth: Scalar  # nu of the Nielsen rule
    steps: Int[Array, ""]
    info: StepInfo


class KfacMethod(AbstractMethod):
    """KFAC: the Gauss-Newton matrix layer by layer as a sum of two Kronecker products, from running averages.

        A_k <- ema A_k + (1 - ema) A_k(theta),   B_k <- ema B_k + (1 - ema) B_k(theta),          k = 1, 2
        D = -[(B_1 + lambda) (x) (A_1 + lambda) + (B_2 + lambda) (x) (A_2 + lambda)]^-1 grad L   layer by layer

    from the inputs and the cotangents of a layer (`kronecker_factors`), then

        line_search:      d = D + mu d_prev,   eta = argmin of L(theta + eta d) over {0, 2^0, 2^-1, ..., 2^-30}
        quadratic_model:  s = alpha D + mu s_prev,   (alpha, mu) = argmin of <g, s> + |J s|^2 / 2 + lambda |s|^2 / 2

    with lambda by `step_size_damping`, or of the quadratic model, whose step is taken if it decreases the loss, by
    `nielsen_update`. See `sciml_opt.kfac`, `sciml_opt.kfac_star`.
    """

    init_damping: Array
    ema: Array
    momentum: Array
    step_rule: StepRule = eqx.field(static=True)

    def __init__(
        self,
        init_damping: ArrayLike = 1e-2,
        *,
        ema: ArrayLike = 0.9,
        momentum: ArrayLike = 0.6,
        step_rule: StepRule = "line_search",
    ):
        self.init_damping = number("init_damping", init_damping, above=0)
        self.ema = number("ema", ema, at_least=0, below=1)
        self.momentum = number("momentum", momentum, at_least=0, below=1)
        self.step_rule = one_of("step_rule", step_rule, get_args(StepRule))

    def init(self, params: PyTree) -> KfacState:
        dtype = tree_dtype(params)
        shapes = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim == 2]
        averages = Averages(
            tuple(jnp.zeros((2, rows + 1, rows + 1), dtype) for rows, _ in shapes),
            tuple(jnp.zeros((2, columns + 1, columns + 1), dtype) for _, columns in shapes),
            jnp.zeros(tree_size(params), dtype),
        )
        zero = jax.tree.map(jnp.zeros_like, params)
        growth = jnp.full((), 2, dtype)
        return KfacState(averages, zero, self.init_damping.astype(dtype), growth, jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Loss, params: PyTree, state: KfacState) -> tuple[PyTree, KfacState]:
        lin = cast(Any, loss).linearize(params, layers=True)
        dtype = tree_dtype(params)
        factors = kronecker_factors(lin.jacobian)
        ema = jnp.where(state.steps == 0, 0, self.ema.astype(dtype))  # the first factors as they are
        averages = jax.tree.map(lambda old, a: ema * old + (1 - ema) * a, state.averages, _averages(factors, params))
        direction, report = _precondition(factors, averages, state.damping, lin.grad)
        damping, growth = state.damping, state.growth

        if self.step_rule == "line_search":
            tried = tree_add(direction, tree_scale(self.momentum.astype(dtype), state.previous))
            update, found = searched(loss, params, tried, lin.value, lin.grad, "grid")
            previous = tried
            accepted = found.step_size > 0
            damping = step_size_damping(damping, found.step_size, shrink=10.0, growth=4.0)
            report |= search_info(found, tried)
            report |= {"gain_ratio": gain_ratio(lin, update, found.value), "products": 1}
        else:
            tried, predicted = _quadratic_model_step(lin, direction, state.previous, damping)
            trial = loss(tree_add(params, tried))
            accepted = jnp.isfinite(lin.value) & jnp.isfinite(trial) & (trial < lin.value)
            update = previous = tree_where(accepted, tried, jax.tree.map(jnp.zeros_like, tried))
            gain = quotient(lin.value - trial, predicted)
            damping, growth = nielsen_update(damping, growth, gain, accepted, jnp.ones((), dtype))
            report |= {"trial_loss": trial, "accepted": accepted, "gain_ratio": gain, "evaluations": 1}
            report |= {"step_norm": tree_norm(tried), "products": 2}

        info = StepInfo.of(
            params,
            loss=lin.value,
            damping=state.damping,
            grad_norm=tree_norm(lin.grad),
            linearizations=1,
            clipped=lin.clipped,
            **report,
        )
        previous = tree_where(accepted, previous, jax.tree.map(jnp.zeros_like, previous))  # a failure ends the momentum
        new = KfacState(averages, previous, damping, growth, state.steps + 1, info)
        started = jnp.isfinite(lin.value) & tree_all_finite(averages)  # a non-finite start changes nothing
        return update, keep(started, new, state)


def _averages(factors: KroneckerFactors, params: PyTree) -> Averages:
    """The factors in the shapes of the state, which knows the parameters only."""
    pairs = {layer.leaf: layer.paired(factors.first) for layer in factors.layers}
    averages = Averages((), (), factors.diagonal)
    for i, leaf in enumerate(jax.tree.leaves(params)):
        if leaf.ndim == 2:
            rooms = [jnp.zeros((2, size + 1, size + 1), tree_dtype(params)) for size in leaf.shape]
            if i in pairs:
                rooms = [room.at[:, : a.shape[1], : a.shape[2]].set(a) for room, a in zip(rooms, pairs[i], strict=True)]
            averages = Averages((*averages.lefts, rooms[0]), (*averages.rights, rooms[1]), averages.diagonal)
    return averages


def _precondition(
    factors: KroneckerFactors, averages: Averages, damping: Scalar, grad: PyTree
) -> tuple[PyTree, dict[str, Any]]:
    """The direction `D`, and the fields of `StepInfo` about the linear system."""
    flat, leaves = ravel(grad), jax.tree.leaves(grad)
    slots = {leaf: slot for slot, leaf in enumerate(i for i, leaf in enumerate(leaves) if leaf.ndim == 2)}
    pieces, error, rung = [], jnp.zeros((), flat.dtype), jnp.int32(0)
    for layer in factors.layers:
        slot = slots[layer.leaf]
        rows, columns = layer.view.shape
        M = KroneckerSum(averages.lefts[slot][:, :rows, :rows], averages.rights[slot][:, :columns, :columns], damping)
        g = layer.view.read(flat)
        s = M.solve(g)
        pieces.append((layer.view, -s.reshape(-1)))
        error, rung = error + jnp.sum((M.mv(s) - g) ** 2), jnp.maximum(rung, M.rung)
    if factors.rest.size:
        diagonal = factors.rest.read(averages.diagonal)
        damped = diagonal + damping * jnp.max(diagonal)
        pieces.append((factors.rest, jnp.where(damped > 0, -factors.rest.read(flat) / damped, 0)))
    norm = jnp.sqrt(jnp.sum(flat**2))
    report = {"rung": rung, "linear_residual": quotient(jnp.sqrt(error), norm)}
    return unravel(assemble(pieces, flat.size), grad), report


def _quadratic_model_step(
    lin: Linearization, direction: PyTree, previous: PyTree, damping: Scalar
) -> tuple[PyTree, Scalar]:
    """`alpha D + mu s_prev` at the minimum of the damped quadratic model, and the decrease of the one undamped."""
    damping = damping * lin.jacobian.largest_column_square()
    pair = (direction, previous)
    images = [lin.jacobian.mv(v) for v in pair]
    a, b, c = (
        jnp.vdot(images[i], images[j]) + damping * tree_dot(pair[i], pair[j]) for i, j in ((0, 0), (0, 1), (1, 1))
    )
    slopes = [tree_dot(lin.grad, v) for v in pair]
    determinant = a * c - b * b
    both = determinant > jnp.finfo(a.dtype).eps * a * c  # not in the first step, nor along parallel directions
    safe = jnp.where(both, determinant, 1)
    alpha = jnp.where(both, (b * slopes[1] - c * slopes[0]) / safe, -slopes[0] / a)
    mu = jnp.where(both, (b * slopes[0] - a * slopes[1]) / safe, 0)
    image = alpha * images[0] + mu * images[1]
    predicted = -alpha * slopes[0] - mu * slopes[1] - 0.5 * jnp.sum(image**2)
    return tree_add(tree_scale(alpha, direction), tree_scale(mu, previous)), predicted
