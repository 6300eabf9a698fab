"""From the outputs of a tapped program to rows of a Jacobian: scaling, and the choice of form matrix by matrix."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._tree import ravel, tree_dtype, tree_size
from ._contributions import Contribution, Explicit, Factored, Pulled
from ._rows import PointRows, join
from ._shared import Shared
from ._taps import Matrix, Tapped
from ._views import View, leaf_views

SECOND_ORDER = 4  # outer products a row of a second-order residual in two dimensions


def multiplied_out(shape: tuple[int, ...], terms: int) -> bool:
    """Whether a matrix of `rows x columns` keeps explicit rows: its entries are fewer numbers than the factors.

    At least those of a second-order residual, so that the terms of an objective take the same form.
    """
    return math.prod(shape) <= max(terms, SECOND_ORDER) * sum(shape)


def point_rows(
    tapped: Tapped,
    outputs: Sequence[Array],
    params: PyTree,
    scale: Float[Array, " N"],
    mix: Float[Array, "N m m"] | None = None,
    shared: bool = False,
    layers: bool = False,
) -> PointRows:
    """The rows of `N` points with `m` outputs, point by point: `scale_n sum_j mix_njk dz_nj / dtheta`, `k = 1 .. m`.

    **Arguments:** `outputs` of `tapped.evaluate`; `mix`, the identity by default; `shared`, whether matrices keep their
    inputs once a point (`Shared`; `scale` is 1 then), for rows that are multiplied or combined, not used one by one;
    `layers`, whether every matrix stays factored, with its bias as one more column (or row).
    """
    count, m = scale.shape[0], tapped.size
    size, dtype = tree_size(params), tree_dtype(params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(params)]
    starts = np.cumsum([0, *(int(np.prod(shape)) for shape in tapped.arrays.shapes)])
    generic = [i for i, use in enumerate(tapped.uses) if use.view is None]
    segment = {use: View(np.arange(starts[k], starts[k + 1])) for k, use in enumerate(generic)}

    def summed(numbers: Sequence[int]) -> Array:
        return sum((outputs[i] for i in numbers[1:]), start=outputs[numbers[0]]).astype(dtype)

    def gather(numbers: Sequence[int], cotangent: bool) -> Array:
        total = summed(numbers)
        if not cotangent:
            total = jnp.broadcast_to(total[:, None], (count, m, *total.shape[1:]))
        elif mix is not None:
            total = jnp.einsum("nm...,nmk->nk...", total, mix)
        return total.reshape(count * m, *total.shape[2:])

    def factored(matrix: Matrix, view: View) -> Contribution:
        if shared:
            sides = [(p.lefts, p.rights) if p.cotangent_left else (p.rights, p.lefts) for p in matrix.pairs]
            cotangents, inputs = (tuple(summed(side[k]) for side in sides) for k in (0, 1))
            return Shared(view, cotangents, inputs, tuple(pair.cotangent_left for pair in matrix.pairs))
        lefts = tuple(gather(pair.lefts, pair.cotangent_left) for pair in matrix.pairs)
        rights = tuple(gather(pair.rights, not pair.cotangent_left) for pair in matrix.pairs)
        if layers and matrix.bias is not None:
            added, rows_of_bias = tapped.dense[matrix.bias.dense].view.indices, not matrix.bias.along_rows
            view = View(np.vstack([view.indices, added]) if rows_of_bias else np.column_stack([view.indices, added]))
            entries = [pair.biased for pair in matrix.pairs]
            extended = tuple(map(_extended, lefts if rows_of_bias else rights, entries))
            lefts, rights = (extended, rights) if rows_of_bias else (lefts, extended)
        rows = Factored(view, lefts, rights, jnp.repeat(scale, m))
        if not layers and multiplied_out(view.shape, rows.terms):
            return Explicit(View(view.indices.reshape(-1)), rows.explicit())
        return rows

    shown: list[Contribution] = []
    pulled: list[Contribution] = []
    for matrix in tapped.matrices:
        if matrix.view is not None:
            shown.append(factored(matrix, matrix.view))
        else:
            site = next(s for s in tapped.uses[matrix.use].sites)
            indices = segment[matrix.use].indices.reshape(tapped.uses[matrix.use].var.aval.shape)
            pulled.append(factored(matrix, View(indices.transpose(site.axes).reshape(matrix.shape))))
    biases = {matrix.bias.dense for matrix in tapped.matrices if matrix.bias is not None} if layers else set()
    for dense in [dense for number, dense in enumerate(tapped.dense) if number not in biases]:
        values = gather((dense.output,), True) * jnp.repeat(scale, m)[:, None]
        if dense.view is not None:
            shown.append(Explicit(dense.view, values))
        else:
            pulled.append(Explicit(segment[dense.use], values))
    parts = join(shown)
    if pulled:
        touched = sorted(set().union(*(tapped.uses[i].leaves for i in generic)))
        entries = View(np.concatenate([leaf_views(shapes)[i].reshape(-1) for i in touched]))
        structure = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(params))
        parts.append(Pulled(entries, tapped.arrays, structure, tuple(pulled), ravel(params), tapped.constants))
    if not parts:  # the parameters do not matter
        parts = [Explicit(View(np.arange(0)), jnp.zeros((count * m, 0), dtype))]
    return PointRows(parts=tuple(parts), size=size, dtype=dtype)


def _extended(factor: Float[Array, "N T size"], entry: int) -> Float[Array, "N T size+1"]:
    return jnp.pad(factor, ((0, 0), (0, 0), (0, 1)), constant_values=entry)
