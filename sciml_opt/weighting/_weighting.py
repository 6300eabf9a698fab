"""A rule that weighs the terms or the points of a loss, around any optimizer."""

import abc
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int, PyTree

from .._check import count as positive
from .._check import parameters
from .._tree import tree_all_finite, tree_dtype, tree_where
from ..objective import BoundObjective, Weighted
from ..objective._objective import point_count
from ._term_gradients import bound_terms, require_terms


class WeightingState(NamedTuple):
    """State of a weighted optimizer.

    **Fields:** `steps`; `rule`, what the rule remembers; `inner`, of the optimizer. `state.weights`, those of the rule.
    """

    steps: Int[Array, ""]
    rule: Any
    inner: Any

    @property
    def weights(self) -> Any:
        return self.rule.weights


class Rule(eqx.Module):
    """How weights follow the training; a pytree over its numbers. The weights are constants of each step."""

    @property
    def every(self) -> Int[Array, ""] | None:
        """Steps between two updates; `None` for one in every step."""
        return None

    @abc.abstractmethod
    def init(self, dtype: jnp.dtype) -> Any:
        """What it remembers at first, a NamedTuple of arrays."""

    @abc.abstractmethod
    def check(self, loss: BoundObjective) -> None:
        """Refuse a loss that the rule is not made for."""

    @abc.abstractmethod
    def update(self, loss: BoundObjective, params: PyTree, state: Any, steps: Int[Array, ""]) -> Any:
        """What it remembers, before a step from `params`; dropped if anything in it is not finite."""

    def weigh(self, loss: BoundObjective, state: Any) -> BoundObjective:
        """The loss that the optimizer sees."""
        return loss.reweighted(state.weights)


class TermRule(Rule):
    """A rule with one weight a term."""

    names: tuple[str, ...] = eqx.field(static=True)

    def check(self, loss: BoundObjective) -> None:
        require_terms("terms", self.names, loss)

    def ones(self, dtype: jnp.dtype) -> dict[str, Array]:
        return {name: jnp.ones((), dtype) for name in self.names}

    def stack(self, tree: Mapping[str, Array]) -> Array:
        return jnp.stack([tree[name] for name in self.names])

    def unstack(self, values: Array) -> dict[str, Array]:
        return dict(zip(self.names, values, strict=True))


class PointRule(Rule):
    """A rule with one number a point; the points are the same in every step."""

    counts: tuple[tuple[str, int], ...] = eqx.field(static=True)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.counts)

    def check(self, loss: BoundObjective) -> None:
        if loss.blocks is not None:
            raise ValueError("Weights of single points need the same points in every step, not Blocks.")
        for name, count in self.counts:
            if loss.sizes.get(name) != count:
                raise ValueError(
                    f"points has {count} points of term {name!r}, but the loss has {loss.sizes.get(name, 'none')}; its "
                    f"terms have {loss.sizes}."
                )
        require_squares("A rule for single points", loss, self.names)


def weighting(rule: Rule, tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer on the loss that the rule weighs anew before each step (or as often as the rule says)."""
    inner = optax.with_extra_args_support(tx)
    return optax.GradientTransformationExtraArgs(
        jax.tree_util.Partial(_init, rule, inner), jax.tree_util.Partial(_update, rule, inner)
    )


def _init(rule: Rule, inner, params: PyTree) -> WeightingState:
    return WeightingState(jnp.int32(0), rule.init(tree_dtype(parameters(params))), inner.init(params))


def _update(
    rule: Rule, inner, updates, state: WeightingState, params=None, *, value_fn=None, value=None, grad=None, **extra
):
    del value
    loss = bound_terms(value_fn, updates, params, grad)
    rule.check(loss)

    def follow(remembered):
        return rule.update(loss, params, remembered, state.steps)

    if rule.every is None:
        new = follow(state.rule)
    else:
        new = lax.cond(state.steps % rule.every == 0, follow, lambda remembered: remembered, state.rule)
    finite = tree_all_finite(new)
    remembered = tree_where(finite, new, state.rule)
    updates, inner_state = weighted_update(inner, rule.weigh(loss, remembered), params, state.inner, extra)
    return updates, WeightingState(state.steps + finite.astype(jnp.int32), remembered, inner_state)


def weighted_update(inner, weighted: BoundObjective, params: PyTree, state: Any, extra: dict[str, Any]):
    """The update of the inner transformation with the value and the gradient of another loss."""
    value, grad = jax.value_and_grad(weighted)(params)
    given = {"value": value, "grad": grad, "value_fn": weighted}
    return inner.update(grad, state, params, **(extra | given))


def require_squares(rule: str, loss: BoundObjective, names: Iterable[str] | None = None) -> None:
    """Refuse terms that can be negative, by default any."""
    odd = sorted(set(loss.terms if names is None else names) - set(loss.squares))
    if odd:
        raise ValueError(f"{rule} needs terms that cannot be negative, least squares, but {odd} are none.")


def period(every: Any) -> Int[Array, ""]:
    return jnp.asarray(positive("every", every), jnp.int32)


def point_counts(points: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
    """How many points each term has; `points` holds the numbers, or entries of a batch."""
    if not isinstance(points, Mapping) or not points:
        raise TypeError(
            "points must be a dict from names of terms to their points (the batch, or a part of it) or to the number "
            f"of their points, got {type(points).__name__}."
        )
    return tuple((name, _point_count(name, entry)) for name, entry in sorted(points.items()))


def _point_count(name: str, entry: Any) -> int:
    if isinstance(entry, int):
        return positive(f"points[{name!r}]", entry)
    points, weights = entry if isinstance(entry, Weighted) else (entry, None)
    return point_count(name, jax.tree.map(jnp.asarray, points), weights)
