"""What is minimised: named terms, each written for ONE point.

L(theta) = sum_k  w_k / N_k  sum_i  ell_k( z_k(theta, x_ki), x_ki )
"""

import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Scalar

from .._check import count as positive
from ..linearization import half_squared_norm
from ._bound import BoundObjective, BoundTerm
from ._maps import PointMap
from ._product import as_product, product_map
from ._shard import point_mesh, shard


class Weighted(NamedTuple):
    """Points with quadrature or importance weights: a batch entry that replaces the mean by `sum_i weights_i ell_i`.

    **Arguments:**

    - `points`: pytree with a leading axis of length `N`.
    - `weights`: `(N,)`, or `(Nl, Nr)` for a `ProductBatch`, non-negative. They take the place of `1 / N`: quadrature
      nodes bring their quadrature weights, an importance-sampled mean brings `1 / (N p_i)`, a padded batch zeros.
    """

    points: PyTree
    weights: ArrayLike


class Block(eqx.Module):
    """A batch that is one of `count` equal parts of larger data, and knows which: what `Blocks` draws.

    **Attributes:** `batch`, as for `Objective.bind`; `index`, of the part; `count`, the number of parts.
    """

    batch: dict[str, Any]
    index: Int[Array, ""]
    count: int = eqx.field(static=True)


class Term(eqx.Module):
    """One term of an objective, `w / N sum_i ell(z(theta, x_i), x_i)`.

    **Arguments:**

    - `inner`: the inner map `z`: `inner(model, point) -> scalar or (m,)`, written for ONE point. A point is any pytree
      without a batch axis: a coordinate vector, a pair of periodic points, an `(input, target)` pair.
    - `outer`: the outer function `ell(z, point) -> scalar`, convex in `z` of shape `(m,)`; the default
      `0.5 |z|^2` is least squares. Deep Ritz energies pass a density.
    - `weight`: `w`, a non-negative number.

    Numbers that change belong to the model, the point, or an `eqx.Module` residual with array fields: as with
    `jax.jit`, a global that a plain function reads is frozen when it is first traced.

    **Example:**

    ```python
    import sciml_opt as so

    interior = so.Term(lambda u, x: so.laplacian(u)(x) + f(x))
    periodic = so.Term(lambda u, pair: u(pair[0]) - u(pair[1]), weight=10.0)
    energy = so.Term(value_and_slope, outer=lambda z, x: 0.5 * z[1] ** 2 - f(x) * z[0])
    ```
    """

    inner: Callable[[Any, Any], ArrayLike]
    outer: Callable[[Float[Array, " m"], Any], Scalar]
    weight: Array

    def __init__(
        self,
        inner: Callable[[Any, Any], ArrayLike],
        outer: Callable[[Float[Array, " m"], Any], Scalar] = half_squared_norm,
        weight: ArrayLike = 1.0,
    ):
        for name, function in (("inner", inner), ("outer", outer)):
            if not callable(function):
                raise TypeError(f"Term({name}=...) must be a function of one point, got {type(function).__name__}.")
        self.inner = inner
        self.outer = outer
        self.weight = jnp.asarray(weight)
        if self.weight.ndim != 0:
            raise ValueError(
                f"Term(weight=...) must be one number, got shape {self.weight.shape}; weights of single points belong "
                "to the batch: Weighted(points, weights)."
            )
        if not isinstance(self.weight, jax.core.Tracer) and not np.asarray(self.weight) >= 0:
            raise ValueError(f"Term(weight=...) must not be negative, got {weight}.")


class Objective(eqx.Module):
    """A sum of named terms.

    **Arguments:** one keyword a term, `Objective(interior=Term(...), boundary=Term(...))`.

    **Example:**

    ```python
    objective = so.Objective(interior=so.Term(pde_residual), boundary=so.Term(bc_residual, weight=10.0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    loss = objective.bind({"interior": X, "boundary": B}, static=static)
    value, grad = jax.value_and_grad(loss)(params)
    ```

    Source: the composite view of arXiv:2402.07318.
    """

    terms: dict[str, Term]

    def __init__(self, **terms: Term):
        if not terms:
            raise ValueError("Objective() needs at least one term: Objective(interior=Term(residual)).")
        for name, term in terms.items():
            if not isinstance(term, Term):
                raise TypeError(f"Objective({name}=...) must be a Term, got {type(term).__name__}; wrap it: Term(f).")
        self.terms = dict(terms)

    def bind(
        self,
        batch: Mapping[str, PyTree | Weighted] | Block,
        static: PyTree = None,
        *,
        where: PyTree | Callable[[Any], bool] | None = None,
        chunk: int | None = None,
        mesh: Mesh | None = None,
    ) -> BoundObjective:
        """The loss on given points: a function of the parameters alone, and a plain `jax.jit` argument.

        **Arguments:**

        - `batch`: one entry a term, each a pytree whose leaves share a leading point axis, or `Weighted`; for a
          `Product` a `ProductBatch`. Or a `Block`, whose index the loss then remembers.
        - `static`: what `eqx.partition(model, eqx.is_inexact_array)` returned second; `None` if `params` itself is the
          model.
        - `where`: which parameters are trained; a pytree of bools (a prefix of the parameters' tree) or a function of a
          leaf. The others are frozen: their gradient and their Jacobian columns are zero (and are counted in `P`).
        - `chunk`: how many points of a term are evaluated at a time, by default all: bounds the memory of value,
          gradient (accumulated over chunks, for one more evaluation) and linearization.
        - `mesh`: a `jax.sharding.Mesh` of one axis, over which the points of every term are sharded (padded with points
          of weight 0 to equal shares; those of a `Product` are not); the parameters are replicated. In a program of
          several processes every process passes the same batch.

        **Returns:** a `BoundObjective`.

        **Errors:** `ValueError` for an unknown or a missing batch key, an empty batch or leading axes that differ;
        `TypeError` for a model with dropout or mutable state. All at trace time.
        """
        index = blocks = None
        if isinstance(batch, Block):
            batch, index, blocks = batch.batch, batch.index, batch.count
        _check_keys(batch, self.terms)
        _check_stateless(static)
        chunk = None if chunk is None else positive("chunk", chunk)
        mesh = None if mesh is None else point_mesh(mesh)
        bound = {}
        for name, term in sorted(self.terms.items()):  # the order that a dict has behind a jit boundary
            entry = batch[name]
            points, weights = entry if isinstance(entry, Weighted) else (entry, None)
            points = jax.tree.map(jnp.asarray, points)
            if (product := as_product(name, term.inner, points)) is not None:
                inner = product_map(name, product, points, weights)
                count = math.prod(inner.shape)
            else:
                count = point_count(name, points, weights)
                if mesh is not None:
                    points, weights, count = shard(points, weights, count, mesh)
                inner = PointMap(*eqx.partition(term.inner, eqx.is_array), name)
            outer, outer_static = eqx.partition(term.outer, eqx.is_array)
            bound[name] = BoundTerm(
                inner=inner,
                outer=None if term.outer is half_squared_norm else PointMap(outer, outer_static, name),
                points=points,
                weight=term.weight,
                weights=None if weights is None else jnp.asarray(weights),
                count=count,
            )
        return BoundObjective(bound, static, where, chunk, mesh, index, blocks)


def _check_keys(batch: Mapping[str, PyTree], terms: Mapping[str, Term]) -> None:
    if not isinstance(batch, Mapping):
        raise TypeError(f"bind(batch=...) must be a dict with one entry a term, got {type(batch).__name__}.")
    for key in batch:
        if key not in terms:
            near = difflib.get_close_matches(str(key), terms, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"batch has an entry {key!r}, but the objective's terms are {sorted(terms)}.{hint}")
    missing = sorted(set(terms) - set(batch))
    if missing:
        raise ValueError(f"batch lacks the entries {missing}; it has {sorted(map(str, batch))}, one a term is needed.")


def point_count(name: str, points: PyTree, weights: ArrayLike | None) -> int:
    """The common leading axis of one batch entry."""
    leaves = jax.tree_util.tree_leaves_with_path(points)
    if not leaves:
        raise ValueError(f"batch[{name!r}] holds no arrays.")
    if weights is not None:
        weights = np.asarray(weights) if not isinstance(weights, jax.Array) else weights
        leaves = [*leaves, ((jax.tree_util.GetAttrKey("weights"),), weights)]
        if np.ndim(weights) != 1:
            raise ValueError(f"batch[{name!r}].weights must have shape (N,), got {np.shape(weights)}.")
        if not isinstance(weights, jax.core.Tracer) and np.any(np.asarray(weights) < 0):
            raise ValueError(f"batch[{name!r}].weights must not be negative; the least is {np.min(weights)}.")
    for path, leaf in leaves:
        where = f"batch[{name!r}]{jax.tree_util.keystr(path)}"
        if np.ndim(leaf) == 0:
            raise ValueError(f"{where} is a scalar; every leaf needs a leading point axis.")
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"{where} is complex; split points into real and imaginary parts.")
    counts = {jax.tree_util.keystr(path) or "": int(np.shape(leaf)[0]) for path, leaf in leaves}
    if len(set(counts.values())) > 1:
        raise ValueError(f"batch[{name!r}] has leaves of different leading axes {counts}; all must hold N points.")
    count = next(iter(counts.values()))
    if count == 0:
        raise ValueError(f"batch[{name!r}] is empty (no points); a mean over nothing is undefined.")
    return count


def _check_stateless(static: PyTree) -> None:
    """Refuse models whose call depends on more than parameters and point."""

    def refuse(node):
        return isinstance(node, eqx.nn.Dropout | eqx.nn.StateIndex)

    for node in jax.tree.leaves(static, is_leaf=refuse):
        if isinstance(node, eqx.nn.StateIndex):
            raise TypeError("static holds mutable state (BatchNorm, ...); a loss must be a function of params alone.")
        if isinstance(node, eqx.nn.Dropout) and not node.inference:
            raise TypeError("static holds an active Dropout layer; use eqx.nn.inference_mode(model) first.")
