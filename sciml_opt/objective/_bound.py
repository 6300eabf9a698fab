"""An objective on given points: what optimizers call, differentiate and linearize."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray, PyTree, Scalar

from .._tree import tree_dtype
from ..linearization import (
    Block,
    Linearization,
    ProductBlock,
    StructuredJacobian,
    half_squared_norm,
    linearize,
)
from ._maps import Combine, Outer, PointFunction, PointMap, ProductMap, Shifted, Static
from ._metric import Metric


class BoundTerm(eqx.Module):
    """One term on its points."""

    inner: PointMap | ProductMap
    outer: PointMap | None  # None: half the squared norm
    points: PyTree
    weight: Array
    weights: Array | None
    count: int = eqx.field(static=True)
    shift: Array | None = None  # (N, m), added to the inner map

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights of single points."""
        return self.inner.shape if isinstance(self.inner, ProductMap) else (self.count,)


class BoundObjective(eqx.Module):
    """An objective bound to points and to the static part of the model: `loss(params) -> scalar`.

    A pytree of arrays and hashable static data: pass it through `jax.jit`, close over it, or hand it to
    `tx.update(..., value_fn=loss)`.

    **Methods:** `loss(params)`; `loss.linearize(params)`; `loss.residual(params)`; `loss.values(params)`;
    `loss.gradients(params)`; `loss.outputs(params)`; `loss.point_values(params)`; `loss.terms`; `loss.points`;
    `loss.sizes`; and for methods, other losses on the same terms: `reweighted`, `shifted`, `subsample`, `part`,
    `freeze`, `pull_back`.

    **Attributes:** `index` and `blocks`: which block of the data this loss is on, and of how many; `None` unless it was
    bound to a `Block`.
    """

    _terms: dict[str, BoundTerm]
    _static_arrays: PyTree
    _static: Static = eqx.field(static=True)
    _where: Static = eqx.field(static=True)
    _chunk: int | None = eqx.field(static=True)
    _mesh: Mesh | None = eqx.field(static=True)
    index: Int[Array, ""] | None
    blocks: int | None = eqx.field(static=True)

    def __init__(
        self,
        terms: dict[str, BoundTerm],
        static: PyTree,
        where: PyTree | Callable | None,
        chunk: int | None = None,
        mesh: Mesh | None = None,
        index: Int[Array, ""] | None = None,
        blocks: int | None = None,
    ):
        self._terms = terms
        self._static_arrays, rest = eqx.partition(static, lambda leaf: isinstance(leaf, jax.Array | np.ndarray))
        self._static = Static(rest)
        self._where = Static(jax.tree.map(lambda leaf: leaf if callable(leaf) else bool(leaf), where))
        self._chunk = chunk
        self._mesh = mesh
        self.index = index
        self.blocks = blocks

    # Identity, so that `jax.jit(loss)` and `jax.value_and_grad(loss)` take it as the function that it is.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    @property
    def least_squares(self) -> bool:
        """Whether every term is `0.5 |z|^2`."""
        return len(self.squares) == len(self._terms)

    @property
    def squares(self) -> tuple[str, ...]:
        """The names of the terms that are `0.5 |z|^2`."""
        return tuple(name for name, term in self._terms.items() if term.outer is None)

    def __call__(self, params: PyTree) -> Scalar:
        """`L(params)`. Cost: one evaluation of every inner map."""
        values = self.values(params)
        return sum(values.values(), start=jnp.zeros((), tree_dtype(params)))

    def values(self, params: PyTree) -> dict[str, Scalar]:
        """The weighted value of every term; they add up to `L(params)`."""
        return {name: block.value(params) for name, block in self._blocks(params).items()}

    def gradients(
        self, params: PyTree, terms: Iterable[str] | None = None
    ) -> tuple[dict[str, Scalar], dict[str, PyTree]]:
        """The weighted value of every term and its gradient; they add up to `L(params)` and its gradient.

        **Arguments:** `params`; `terms`, the names of some terms, by default all.

        **Cost:** all together one gradient of `L`, since every term has its own points; memory of a gradient a term.
        """
        names, blocks = self._named(terms), self._blocks(params)
        pairs = {name: jax.value_and_grad(blocks[name].value)(params) for name in names}
        return {name: value for name, (value, _) in pairs.items()}, {name: grad for name, (_, grad) in pairs.items()}

    def outputs(self, params: PyTree, terms: Iterable[str] | None = None) -> dict[str, Float[Array, "..."]]:
        """The inner map `z` at every point of every term (or of those named): `(N, m)`, of a product `(Nl, Nr, m)`."""
        blocks = self._blocks(params)
        return {name: blocks[name].inner_map(params) for name in self._named(terms)}

    def point_values(self, params: PyTree, terms: Iterable[str] | None = None) -> dict[str, Float[Array, "..."]]:
        """`ell(z, x)` at every point, without any weight, of every term (or of those named): `(N,)`.

        Of a product `(Nl, Nr)`. With a mesh the points that fill up the shares are among them.
        """
        blocks = self._blocks(params)
        return {name: _point_values(blocks[name], params) for name in self._named(terms)}

    def residual(self, params: PyTree) -> Float[Array, " N"]:
        """The flat whitened residual `rho` with `L = 0.5 |rho|^2`; least squares only."""
        if not self.least_squares:
            names = sorted(set(self._terms) - set(self.squares))
            raise ValueError(f"residual exists for least squares only; the terms {names} have another outer function.")
        return jnp.concatenate([block.residual(params) for block in self._blocks(params).values()])

    def linearize(self, params: PyTree, *, layers: bool = False) -> Linearization:
        """Value, gradient, whitened residual and structured Jacobian at `params`: see `Linearization`.

        Call it under `jax.jit`, `jax.jit(lambda p: loss.linearize(p))(params)`; operation by operation it is slow.
        With `layers` the Jacobian is the same in the form that `sciml_opt.curvature.kronecker_factors` reads.
        """
        return linearize(list(self._blocks(params).values()), params, self._mesh, layers=layers)

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms, sorted."""
        return tuple(self._terms)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of points of every term but products."""
        return {name: term.count for name, term in self._terms.items() if not isinstance(term.inner, ProductMap)}

    @property
    def points(self) -> dict[str, PyTree]:
        """The points of every term but products."""
        return {name: term.points for name, term in self._terms.items() if not isinstance(term.inner, ProductMap)}

    def reweighted(self, factors: Mapping[str, ArrayLike]) -> "BoundObjective":
        """The same terms, their weights times `factors[name]` (1 for a term that is not named).

        **Arguments:** `factors`: one number a term, or one a point, `(N,)` (of a product `(Nl, Nr)`).
        """
        self._check_terms(factors)
        changed = {name: _reweighted(self._terms[name], factor, name) for name, factor in factors.items()}
        return self._with_terms(self._terms | changed)

    def shifted(self, shifts: Mapping[str, ArrayLike]) -> "BoundObjective":
        """The same terms with a constant added to the inner map at every point: `0.5 |z + shift|^2`; squares only.

        A linear term beside a square is a shift: `l^T z + b/2 |z|^2 = b/2 |z + l/b|^2 - |l|^2 / 2b`, which stays a
        least-squares loss.

        **Arguments:** `shifts`: of some terms, `(N, m)`, or `(N,)` of a scalar inner map.
        """
        self._check_terms(shifts)
        changed = {name: _shifted(self._terms[name], shift, name) for name, shift in shifts.items()}
        return self._with_terms(self._terms | changed)

    def subsample(self, key: PRNGKeyArray, fraction: float) -> "BoundObjective":
        """The same loss on a random part of the points of every term, unbiased; product terms are kept whole.

        **Arguments:** `key`; `fraction` in (0, 1], of the points of each term, drawn without replacement.
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must lie in (0, 1], got {fraction}.")
        keys = dict(zip(self._terms, jax.random.split(key, len(self._terms)), strict=True))
        return self._with_terms({name: _subsample(term, keys[name], fraction) for name, term in self._terms.items()})

    def part(self, index: ArrayLike, count: int) -> "BoundObjective":
        """The loss on one of `count` parts of the points of every term, each with the weight of all of them.

        The points are dealt out at random, always in the same way, so that the parts have equal size but for one point;
        the mean over parts of equal size is the loss. Product terms, and those of fewer than `count`
        points, are kept whole.

        **Arguments:** `index` of the part, which may be traced; `count` of parts.
        """
        return self._with_terms({name: _part(term, index, count) for name, term in self._terms.items()})

    def freeze(self, frozen: PyTree) -> "BoundObjective":
        """The loss as a function of the other parameters alone.

        **Arguments:** `frozen`: shaped like the parameters, `None` where a leaf stays a parameter (the first part of
        `eqx.partition(params, ...)`); the result takes the second part.
        """
        static = self._static.tree
        if static is None:
            static = jax.tree.map(lambda _: None, frozen)
        arrays = frozen if self._static_arrays is None else eqx.combine(frozen, self._static_arrays)
        static = eqx.combine(arrays, static)
        options = self._where.tree, self._chunk, self._mesh, self.index, self.blocks
        return BoundObjective(self._terms, static, *options)

    def pull_back(self, metric: Metric, params: PyTree) -> StructuredJacobian:
        """`J` with `J^T J = G`, the metric pulled back to the parameters: `G_ij = <d_i m, d_j m>`, see `Metric`."""
        names = self._named(metric.terms)
        return (
            self._with_terms({name: _measured(self._terms[name], metric, name) for name in names})
            .linearize(params)
            .jacobian
        )

    def _named(self, terms: Iterable[str] | None) -> tuple[str, ...]:
        names = self.terms if terms is None else tuple(terms)
        self._check_terms(names)
        return names

    def _check_terms(self, names: Iterable[str]) -> None:
        odd = sorted(set(names) - set(self._terms))
        if odd:
            raise ValueError(f"The objective has no terms {odd}; its terms are {list(self._terms)}.")

    def _with_terms(self, terms: dict[str, BoundTerm]) -> "BoundObjective":
        return eqx.tree_at(lambda loss: loss._terms, self, terms)

    def _blocks(self, params: PyTree) -> dict[str, Block | ProductBlock]:
        dtype = tree_dtype(params)

        def cast(leaf):  # everything follows the dtype of the parameters
            return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        def whole(weight):  # weights may be integers
            return weight.astype(dtype)

        def point_function(inner, count):
            return PointFunction(inner, self._static_arrays, self._static, self._where, count)

        blocks = {}
        for name, term in self._terms.items():
            inner, points = term.inner, jax.tree.map(cast, term.points)
            weights = jnp.full(term.shape, 1 / term.count, dtype) if term.weights is None else whole(term.weights)
            outer = half_squared_norm if term.outer is None else Outer(term.outer)
            weights = weights * whole(term.weight)
            if isinstance(inner, ProductMap):
                left, right = map(point_function, (inner.left, inner.right), inner.shape)
                sides = points.left, points.right, points.pair
                blocks[name] = ProductBlock(left, right, Combine(inner.combine), outer, *sides, weights, self._chunk)
            else:
                function = point_function(inner, term.count)
                if term.shift is not None:
                    function, points = Shifted(function), (points, whole(term.shift))
                blocks[name] = Block(function, outer, points, weights, self._chunk)
        return blocks


def _point_values(block: Block | ProductBlock, params: PyTree) -> Float[Array, "..."]:
    if isinstance(block, ProductBlock):
        return jax.vmap(jax.vmap(block.outer))(block.inner_map(params), block.pairs)
    return jax.vmap(block.outer)(block.inner_map(params), block.points)


def _reweighted(term: BoundTerm, factor: ArrayLike, name: str) -> BoundTerm:
    factor = jnp.asarray(factor)
    if factor.ndim == 0:
        return dataclasses.replace(term, weight=term.weight * factor)
    if factor.shape != term.shape:
        raise ValueError(
            f"reweighted needs of term {name!r} one factor, or one a point, shape {term.shape}; got {factor.shape}."
        )
    dtype = jnp.result_type(float)  # weights may be integers
    weights = jnp.full(term.shape, 1 / term.count, dtype) if term.weights is None else term.weights.astype(dtype)
    return dataclasses.replace(term, weights=weights * factor.astype(dtype))


def _shifted(term: BoundTerm, shift: ArrayLike, name: str) -> BoundTerm:
    if isinstance(term.inner, ProductMap) or term.outer is not None:
        raise ValueError(f"shifted needs terms of single points and least squares; {name!r} is none.")
    shift = jnp.asarray(shift)
    if shift.ndim not in (1, 2) or len(shift) != term.count:
        raise ValueError(
            f"shifted needs of term {name!r} a shift (N, m), or (N,) of a scalar inner map, N = {term.count}; got "
            f"{shift.shape}."
        )
    shift = shift.reshape(term.count, -1)
    return dataclasses.replace(term, shift=shift if term.shift is None else term.shift + shift)


def _subsample(term: BoundTerm, key: PRNGKeyArray, fraction: float) -> BoundTerm:
    if isinstance(term.inner, ProductMap):
        return term
    count = max(1, round(fraction * term.count))
    chosen = jax.random.choice(key, term.count, (count,), replace=False)
    weights = None if term.weights is None else term.weights[chosen] * (term.count / count)
    points, shift = jax.tree.map(lambda leaf: leaf[chosen], (term.points, term.shift))
    return BoundTerm(term.inner, term.outer, points, term.weight, weights, count, shift)


def deal(total: int, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`total` points dealt out at random to `count` hands of equal size; the last hands may lack one.

    **Returns:** the points of each hand, and whether they are there (what is lacking repeats a point); `(count, size)`.
    """
    size = -(-total // count)
    order = np.random.default_rng(seed).permutation(total)
    places = np.arange(size * count).reshape(size, count).T
    return order[places % total], places < total


def _part(term: BoundTerm, index: ArrayLike, count: int) -> BoundTerm:
    if isinstance(term.inner, ProductMap) or term.count < count:
        return term
    hands, there = (jnp.asarray(array)[index] for array in deal(term.count, count))
    every = jnp.full(term.count, 1 / term.count) if term.weights is None else term.weights
    weights = jnp.where(there, every[hands], 0)
    # every part stands for all the points: one less of them, or the filler of a mesh, is no noise
    held = jnp.sum(weights)
    weights = weights * (jnp.sum(every) / jnp.where(held == 0, 1, held))
    points, shift = jax.tree.map(lambda leaf: leaf[hands], (term.points, term.shift))
    return BoundTerm(term.inner, term.outer, points, term.weight, weights, len(hands), shift)


def _measured(term: BoundTerm, metric: Metric, name: str) -> BoundTerm:
    """The metric on the points of a term, with the measure of these points and without the weight of the term."""
    if isinstance(term.inner, ProductMap):
        raise ValueError(f"A metric needs a term of single points; {name!r} is a product term.")
    inner = PointMap(*eqx.partition(metric.inner, eqx.is_array), name)
    outer = None
    if metric.outer is not half_squared_norm:
        outer = PointMap(*eqx.partition(metric.outer, eqx.is_array), name)
    return BoundTerm(inner, outer, term.points, jnp.ones_like(term.weight), term.weights, term.count)
