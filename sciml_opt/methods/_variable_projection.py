"""Variable projection: the parameters that enter linearly are eliminated by least squares."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax import lax
from jaxtyping import Array, ArrayLike, Int, PyTree, Scalar

from .._check import number, one_of
from .._tree import tree_add, tree_dot, tree_dtype, tree_norm, tree_where
from ..globalization import nielsen_update
from ..linear import DampedSolve, Solve, Solved, factorize
from ..linearization import Linearization
from ._geodesic import geodesic_step
from ._method import AbstractMethod, StepInfo, keep, lin_is_finite, quotient, solution, solve_info

TINY = 1e-6  # the damping of the linear parameters, relative to that of the others
CUT = 1e-14  # the damping of the elimination, relative to the largest diagonal entry of J_c^T J_c
ACCELERATION_LIMIT = 0.75  # of |a| over |v|, as in Levenberg-Marquardt


class VariableProjectionState(NamedTuple):
    damping: Scalar  # lambda; set from the first Jacobian
    growth: Scalar  # nu of the Nielsen rule
    size: Scalar  # the unit of lambda: the largest diagonal entry of J^T J at the start
    steps: Int[Array, ""]
    info: StepInfo


class VariableProjectionMethod(AbstractMethod):
    """Variable projection: Levenberg-Marquardt on the loss with the linear parameters `c` eliminated.

        theta = (a, c),     L(a) = min_c L(a, c)
        (J^T J + lambda D) v = -J^T r,      (J^T J + lambda D) w = -J^T r_vv,      D = 1 on a, 1e-6 on c
        s = v + w/2  if |w|_D <= 0.75 |v|_D,  else v
        a += s_a,    c = argmin_c L(a + s_a, c)

    accepted and lambda moved as in `LevenbergMarquardtMethod`, with the loss after the elimination. Eliminating `v_c`
    from the first system leaves for `v_a` the damped least-squares problem with the Jacobian `(I - J_c J_c^+) J_a`:
    the projected one in Kaufman's simplification. See `sciml_opt.variable_projection`.
    """

    init_damping: Array
    linear: Callable[[PyTree], Any] | None = eqx.field(static=True)
    solve: Solve = eqx.field(static=True)

    def __init__(
        self,
        linear: Callable[[PyTree], Any] | None = None,
        *,
        init_damping: ArrayLike = 1e-2,
        solve: Solve = "qr",
    ):
        if linear is not None and not callable(linear):
            raise TypeError(f"linear must be a function of the parameters that returns leaves, got {linear!r}.")
        self.linear = linear
        self.init_damping = number("init_damping", init_damping, above=0)
        self.solve = one_of("solve", solve, get_args(Solve))

    def init(self, params: PyTree) -> VariableProjectionState:
        one = jnp.ones((), tree_dtype(params))
        return VariableProjectionState(0 * one, 2 * one, one, jnp.int32(0), StepInfo.of(params))

    def step(self, loss: Any, params: PyTree, state: VariableProjectionState):  # a `Loss` with `freeze`
        linear = last_layer(params) if self.linear is None else chosen(self.linear, params)
        lin = loss.linearize(params)
        dtype, first = state.damping.dtype, state.steps == 0
        size = lax.cond(first, lambda: lin.jacobian.largest_column_square(), lambda: state.size)
        damping = jnp.where(first, self.init_damping.astype(dtype) * size, state.damping)
        scale = jax.tree.map(lambda is_linear: TINY if is_linear else 1.0, linear)
        factor, solved = damped_step(lin, damping, self.solve, scale=scale)
        solves = [solved]
        v = step = jax.tree.map(jnp.negative, solved.value)
        accelerated = jnp.zeros((), bool)
        if lin.residual is not None:
            limit = jnp.asarray(ACCELERATION_LIMIT, dtype)
            step, accelerated, solved = geodesic_step(loss, params, factor, v, limit)
            solves.append(solved)

        c, a = eqx.partition(tree_add(params, step), linear)
        reduced = loss.freeze(a)
        reached = reduced.linearize(c)
        _, eliminated = damped_step(reached, jnp.asarray(CUT, dtype), self.solve, relative=True)
        solves.append(eliminated)
        final = jax.tree.map(jnp.subtract, eqx.filter(step, linear), eliminated.value)
        trial = reduced(tree_add(eqx.filter(params, linear), final))
        better = jnp.isfinite(trial) & ~(trial > reached.value)  # always, where the residual is affine in c
        trial = jnp.where(better, trial, reached.value)
        step = tree_where(better, eqx.combine(final, step), step)

        scaled = jax.tree.map(jnp.multiply, factor.scale, v)
        predicted = 0.5 * (factor.damping * tree_dot(v, scaled) - tree_dot(v, lin.grad))
        gain_ratio = quotient(lin.value - trial, predicted)
        started = lin_is_finite(lin) & jnp.isfinite(damping)  # a non-finite start moves nothing, not even lambda
        accepted = started & jnp.isfinite(trial) & (trial < lin.value)
        new_damping, growth = nielsen_update(factor.damping, state.growth, gain_ratio, accepted, size)
        update = jax.tree.map(lambda s: jnp.where(accepted, s, jnp.zeros_like(s)), step)
        info = StepInfo.of(
            params,
            loss=lin.value,
            trial_loss=trial,
            accepted=accepted,
            damping=factor.damping,
            gain_ratio=gain_ratio,
            step_norm=tree_norm(step),
            grad_norm=tree_norm(lin.grad),
            accelerated=accelerated,
            evaluations=1,
            linearizations=2,
            clipped=lin.clipped,
            **solve_info(factor, *solves),
        )
        new = VariableProjectionState(new_damping, growth, size, state.steps + 1, info)
        return update, keep(started, new, state)


def damped_step(lin: Linearization, damping: Scalar, solve: Solve, **options: Any) -> tuple[DampedSolve, Solved]:
    """The factorisation of `J^T J + lambda D`, and its solution for the gradient."""
    factor = factorize(lin.jacobian, damping, solve=solve, residual_form=lin.residual is not None, **options)
    return factor, solution(factor, lin)


def chosen(linear: Callable[[PyTree], Any], params: PyTree) -> PyTree[bool]:
    """Which leaves `linear(params)` returns, as a pytree of bools."""

    def fill(value: bool, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda _: value, tree)

    return eqx.tree_at(linear, fill(False, params), replace_fn=lambda node: fill(True, node))


def last_layer(params: PyTree) -> PyTree[bool]:
    """The last layer of the network that holds the last leaf, as a pytree of bools.

    That is the last member of each of its lists: of `layers`, or of `weights` and of `biases`.
    """
    leaves, treedef = jtu.tree_flatten_with_path(params)
    paths = [path for path, _ in leaves]
    depth = next((i for i, key in enumerate(paths[-1]) if isinstance(key, jtu.SequenceKey)), None)
    if depth is None:
        raise ValueError(
            "VariableProjection finds no list of layers that holds the last leaf of the parameters; say which leaves "
            "enter linearly: linear=lambda params: params['amplitude']."
        )
    network = paths[-1][: max(depth - 1, 0)]

    def is_last(path) -> bool:
        lists = [p for p in paths if p[:depth] == path[:depth] and len(p) > depth]
        inside = path[: len(network)] == network and len(path) > depth and isinstance(path[depth], jtu.SequenceKey)
        return inside and path[depth] == lists[-1][depth]

    return jtu.tree_unflatten(treedef, [is_last(path) for path in paths])
