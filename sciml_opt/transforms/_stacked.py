"""What SOAP and Shampoo share: leaves of equal shape stacked, their state, and the way to an optax transformation."""

import abc
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, Int, PyTree

from .._check import count, number, parameters, schedule
from .._tree import tree_all_finite, tree_dtype, tree_where
from ..curvature._eigenbasis import PerAxis, eigenbases, identities, zero_factors


class Stack(NamedTuple):
    """What is carried for all parameter arrays of one shape, along a leading axis."""

    momentum: Array  # running mean of the gradients
    moments: Array  # running mean of their squares; for SOAP, of the squares of their coordinates in the bases
    factors: PerAxis  # running means of `gradient_factors`
    bases: PerAxis  # their eigenvectors


class StackedState(NamedTuple):
    steps: Int[Array, ""]  # the finite gradients so far
    stacks: tuple[Stack, ...]


class StackedRule(eqx.Module):
    """A rule for one parameter array, which all arrays of one shape follow at once, under `vmap`."""

    b1: Array = eqx.field(converter=partial(number, "b1", at_least=0, below=1))
    b2: Array = eqx.field(converter=partial(number, "b2", at_least=0, below=1))
    eps: Array = eqx.field(converter=partial(number, "eps", above=0))
    refresh: Int[Array, ""] = eqx.field(converter=lambda steps: jnp.int32(count("refresh", steps)))
    max_dim: int = eqx.field(static=True, converter=partial(count, "max_dim"))

    @abc.abstractmethod
    def step(self, gradients: tuple[Array, ...], state: StackedState) -> tuple[tuple[Array, ...], tuple[Stack, ...]]:
        """The ascent directions and the new stacks."""

    @abc.abstractmethod
    def turn(self, stack: Stack) -> Stack:
        """A power iteration for the bases, with all that depends on them."""

    def init(self, params: PyTree) -> StackedState:
        def start(x: Array) -> Stack:
            factors = zero_factors(x, self.max_dim)
            return Stack(jnp.zeros_like(x), jnp.zeros_like(x), factors, identities(factors))

        return StackedState(jnp.int32(0), tuple(jax.vmap(start)(x) for x in stacked(params)))

    def adam(self, momentum: Array, moments: Array, steps: Int[Array, ""]) -> Array:
        """Adam's direction `M^ / (sqrt(V^) + eps)`, of means that started at zero `steps` steps ago."""

        def corrected(mean: Array, b: Array) -> Array:
            return mean / (1 - b ** steps.astype(b.dtype)).astype(mean.dtype)

        return corrected(momentum, self.b1) / (jnp.sqrt(corrected(moments, self.b2)) + self.eps.astype(moments.dtype))

    def refreshed(self, stacks: tuple[Stack, ...], steps: Int[Array, ""]) -> tuple[Stack, ...]:
        """New bases: by `eigh` from the first gradient, and by a power iteration every `refresh` steps."""

        def first(stack: Stack) -> Stack:
            return stack._replace(bases=eigenbases(stack.factors))

        def each(f: Callable[[Stack], Stack]):
            return lambda stacks: tuple(jax.vmap(f)(stack) for stack in stacks)

        case = jnp.where(steps == 0, 2, (steps % self.refresh == 0).astype(jnp.int32))
        return lax.switch(case, (lambda stacks: stacks, each(self.turn), each(first)), stacks)


def running_mean(decay: Array, mean: Array, new: Array) -> Array:
    return decay.astype(mean.dtype) * mean + (1 - decay).astype(mean.dtype) * new


def running_factors(decay: Array, means: PerAxis, new: PerAxis) -> PerAxis:
    return jax.tree.map(lambda mean, C: running_mean(decay, mean, C), means, new)


def to_ascent(rule: StackedRule) -> optax.GradientTransformationExtraArgs:
    """The rule as an optax transformation, whose updates are ascent directions."""
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init, rule), jax.tree_util.Partial(_update_ascent, rule)
    )


def to_descent(
    rule: StackedRule, learning_rate: ArrayLike | Callable, weight_decay: ArrayLike
) -> optax.GradientTransformationExtraArgs:
    """The rule as an optax transformation, whose updates are steps `-eta (direction + weight_decay theta)`."""
    numbers = (
        schedule("learning_rate", learning_rate, at_least=0),
        number("weight_decay", weight_decay, at_least=0),
    )
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init, rule), jax.tree_util.Partial(_update_descent, rule, numbers)
    )


def _init(rule: StackedRule, params: PyTree) -> StackedState:
    tree_dtype(parameters(params))
    return rule.init(params)


def _update_ascent(rule: StackedRule, updates, state: StackedState, params=None, **extra_args):
    del params, extra_args
    gradients = stacked(updates)
    got, expected = ([(x.shape, x.dtype) for x in xs] for xs in (gradients, (s.momentum for s in state.stacks)))
    if got != expected:
        raise ValueError(
            "updates must have the shapes and dtypes of the parameters that init was given: stacked by shape these "
            f"are {expected}, got {got}."
        )
    directions, stacks = rule.step(gradients, state)
    new = StackedState(state.steps + 1, stacks)
    usable = tree_all_finite((directions, stacks))
    directions = unstacked(tree_where(usable, directions, jax.tree.map(jnp.zeros_like, directions)), updates)
    return directions, tree_where(usable, new, state)


def _update_descent(rule: StackedRule, numbers, updates, state: StackedState, params=None, **extra_args):
    if params is None:
        raise ValueError("update(params=...) is needed, for the weight decay: tx.update(grad, state, params).")
    learning_rate, weight_decay = numbers
    eta = jnp.asarray(learning_rate(state.steps))
    directions, new = _update_ascent(rule, updates, state, params, **extra_args)
    moved = new.steps > state.steps

    def step(direction: Array, theta: Array) -> Array:
        dtype = direction.dtype
        decayed = direction + weight_decay.astype(dtype) * theta
        return jnp.where(moved, -eta.astype(dtype) * decayed, jnp.zeros_like(decayed))

    return jax.tree.map(step, directions, params), new


def stacked(tree: PyTree) -> tuple[Array, ...]:
    """The leaves of equal shape and dtype as one array each, in the order of their first one."""
    groups: dict[tuple, list[Array]] = {}
    for leaf in jax.tree.leaves(tree):
        groups.setdefault((leaf.shape, leaf.dtype), []).append(leaf)
    return tuple(jnp.stack(group) for group in groups.values())


def unstacked(stacks: Iterable[Array], like: PyTree) -> PyTree:
    """The inverse of `stacked`."""
    rows = {(stack.shape[1:], stack.dtype): iter(stack) for stack in stacks}
    return jax.tree.map(lambda leaf: next(rows[leaf.shape, leaf.dtype]), like)
