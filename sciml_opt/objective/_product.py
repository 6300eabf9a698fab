"""Terms on all pairs of a left and a right point: operator learning.

z_ij = combine(left(theta, f_i), right(theta, y_j), pair_ij)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from ._maps import PointMap, ProductMap


class ProductBatch(NamedTuple):
    """All pairs of `Nl` left points (input functions) and `Nr` right points (queries): the batch entry of a `Product`.

    **Arguments:**

    - `left`, `right`: pytrees with a leading axis of length `Nl`, `Nr`.
    - `pair`: pytree with leading axes `(Nl, Nr)`, what belongs to a pair (the target); optional.

    `Weighted(ProductBatch(...), weights)` takes weights of shape `(Nl, Nr)` in place of `1 / (Nl Nr)`.
    """

    left: PyTree
    right: PyTree
    pair: PyTree = None


def dot_minus_pair(b: Float[Array, " p"], t: Float[Array, " p"], pair: PyTree) -> Array:
    """`b . t - pair`, or `b . t` without a pair."""
    if b.shape != t.shape:
        raise ValueError(
            f"Product(combine=...) is the dot product by default, which needs left and right outputs of one length; "
            f"left returned {b.shape}, right {t.shape}. Pass combine(b, t, pair)."
        )
    if pair is None:
        return jnp.dot(b, t)
    if not hasattr(pair, "shape") or pair.size != 1:
        shape = pair.shape if hasattr(pair, "shape") else jax.tree.map(jnp.shape, pair)
        raise ValueError(
            f"Product(combine=...) is `b . t - pair` by default, with one number a pair; ProductBatch(pair=...) brings "
            f"{shape} for each. Pass combine(b, t, pair)."
        )
    return jnp.dot(b, t) - pair.reshape(()).astype(b.dtype)


class Product(eqx.Module):
    """The inner map of a term on all pairs of two sets of points, for a DeepONet: `branch . trunk - target`.

        z_ij = combine(left(model, f_i), right(model, y_j), pair_ij),      i = 1 .. Nl,  j = 1 .. Nr

    A value, a gradient or a product with the Jacobian evaluates `left` at `Nl` points and `right` at `Nr`, not either
    at `Nl Nr`, and combines them by one matrix product. The outer function of the term, if it has one, is called as
    `outer(z, pair)`; rows and residuals run over `i`, then `j`, then components.

    **Arguments:**

    - `left`: `left(model, f) -> (p,)` for ONE left point (the branch on an input function); a scalar is `(1,)`.
    - `right`: `right(model, y) -> (q,)` for ONE right point (the trunk at a query, or a differential operator of it).
    - `combine`: `combine(b, t, pair) -> scalar or (m,)`, free of parameters; `b . t - pair` by default (`b . t` without
      pairs). An output bias is one more component, 1 in `b` and the bias in `t`.

    **Cost:** of the linearization, with `p` and `q` outputs, `Nl p + Nr q` backward passes of a point.

    **Source:** DeepONet, arXiv:1910.03193; the two-sided Jacobian is ours.

    **Example:**

    ```python
    keys = jax.random.split(jax.random.key(0))
    model = {
        "branch": eqx.nn.MLP(20, 16, 32, 2, jnp.tanh, key=keys[0]),
        "trunk": eqx.nn.MLP(1, 16, 32, 2, jnp.tanh, key=keys[1]),
        "bias": jnp.zeros(()),
    }

    def branch(model, f):
        return jnp.append(model["branch"](f), 1.0)

    def trunk(model, y):
        return jnp.append(model["trunk"](y), model["bias"])

    objective = so.Objective(data=so.Term(so.Product(branch, trunk)))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    sensors, queries, targets = jnp.ones((8, 20)), jnp.ones((5, 1)), jnp.zeros((8, 5))
    loss = objective.bind({"data": so.ProductBatch(sensors, queries, targets)}, static=static)
    loss(params)

    def slope(model, y):  # of the prediction: a physics-informed term is Product(branch, slope)
        return jax.jvp(lambda y: trunk(model, y), (y,), (jnp.ones_like(y),))[1]
    ```
    """

    left: Callable[[Any, Any], ArrayLike]
    right: Callable[[Any, Any], ArrayLike]
    combine: Callable[[Array, Array, Any], ArrayLike]

    def __init__(
        self,
        left: Callable[[Any, Any], ArrayLike],
        right: Callable[[Any, Any], ArrayLike],
        combine: Callable[[Array, Array, Any], ArrayLike] = dot_minus_pair,
    ):
        for name, function in (("left", left), ("right", right), ("combine", combine)):
            if not callable(function):
                raise TypeError(f"Product({name}=...) must be a function, got {type(function).__name__}.")
        self.left, self.right, self.combine = left, right, combine

    def __call__(self, model: Any, point: tuple[Any, Any, Any]) -> ArrayLike:
        """`z` of one pair, given as `(left point, right point, pair)`."""
        left, right, pair = point
        b, t = (jnp.asarray(f(model, x)).reshape(-1) for f, x in ((self.left, left), (self.right, right)))
        return self.combine(b, t, pair)


def as_product(name: str, inner: Callable, points: PyTree) -> Product | None:
    """The inner map if it and its batch entry are a product; a `TypeError` if only one of them is."""
    product, entry = inner if isinstance(inner, Product) else None, isinstance(points, ProductBatch)
    if product is not None and not entry:
        raise TypeError(
            f"Term {name!r} is a Product, so batch[{name!r}] must be a ProductBatch(left, right, pair), or Weighted of "
            f"one; got {type(points).__name__}."
        )
    if entry and product is None:
        raise TypeError(
            f"batch[{name!r}] is a ProductBatch, but the inner map of term {name!r} is no Product(left, right); it is "
            f"{type(inner).__name__}."
        )
    return product


def product_map(name: str, product: Product, batch: ProductBatch, weights: ArrayLike | None) -> ProductMap:
    """The maps of a product, made ready for binding, with the numbers of points, checked."""
    where = f"batch[{name!r}]"
    (left,), (right,) = (_axes(f"{where}.{side}", getattr(batch, side), 1) for side in ("left", "right"))
    if weights is not None:
        if np.shape(weights) != (left, right):
            raise ValueError(f"{where}.weights must have shape (Nl, Nr) = {(left, right)}, got {np.shape(weights)}.")
        if not isinstance(weights, jax.core.Tracer) and np.any(np.asarray(weights) < 0):
            raise ValueError(f"{where}.weights must not be negative; the least is {np.min(np.asarray(weights))}.")
    if batch.pair is not None and (axes := _axes(f"{where}.pair", batch.pair, 2)) != (left, right):
        raise ValueError(f"{where}.pair must have leading axes (Nl, Nr) = {(left, right)}, got {axes}.")
    maps = {"left": product.left, "right": product.right, "combine": product.combine}
    bound = {side: PointMap(*eqx.partition(f, eqx.is_array), f"{name}.{side}") for side, f in maps.items()}
    return ProductMap(**bound, shape=(left, right))


def _axes(where: str, tree: PyTree, number: int) -> tuple[int, ...]:
    """The common leading axes of all leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(f"{where} holds no arrays.")
    found = {}
    for path, leaf in leaves:
        leaf_name = f"{where}{jax.tree_util.keystr(path)}"
        if leaf.ndim < number:
            axes = "a leading point axis" if number == 1 else "leading axes (Nl, Nr)"
            raise ValueError(f"{leaf_name} has shape {leaf.shape}; every leaf needs {axes}.")
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"{leaf_name} is complex; split it into real and imaginary parts.")
        found[leaf_name] = leaf.shape[:number]
    if len(set(found.values())) > 1:
        raise ValueError(f"{where} has leaves of different leading axes {found}; all must agree.")
    axes = next(iter(found.values()))
    if 0 in axes:
        raise ValueError(f"{where} is empty (leading axes {axes}); a mean over nothing is undefined.")
    return axes
