"""Blocks of fixed data, drawn at random: the sampler of finite-sum methods."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PRNGKeyArray, PyTree

from .._check import count as positive
from ..objective import Block, ProductBatch, Weighted
from ..objective._bound import deal
from ..objective._objective import point_count


class Blocks(eqx.Module):
    """The data in `count` fixed blocks of equal size, of which each step sees one.

        L = 1/count sum_j L_j,      L_j = sum_k w_k count/N_k sum over the points i of block j of ell_k(z_ki)

    A sampler `key -> Block` for `fit` and `train`: `j` is uniform. The points of every term are dealt out once, at
    random; where `N_k` is no multiple of `count`, some blocks have one point less, of which a copy of weight 0 takes
    the place. The data of a `Product`, and of a term of fewer than `count` points (a regulariser has one), are kept
    whole, in every block.

    **Arguments:**

    - `batch`: the data, as for `Objective.bind`.
    - `count`: the number of blocks.
    - `seed` of the permutation.

    **Attributes:** `count`.

    **Methods:** `blocks(key)`, a random block; `blocks.block(index)`, that block. A loss bound to one remembers its
    `index`, which `saga` needs.

    **Errors:** `ValueError` for more blocks than points in every term, empty data or leading axes that differ.

    **Cost:** memory: one copy of the data.

    **Example:**

    ```python
    blocks = so.Blocks({"data": (inputs, targets)}, 100)
    result = so.fit(model, objective, so.saga(0.1, blocks.count), data=blocks, steps=2000, key=jax.random.key(0))
    ```
    """

    count: int = eqx.field(static=True)
    _cut: dict[str, Weighted]
    _whole: dict[str, Any]

    def __init__(self, batch: Mapping[str, PyTree | Weighted], count: int, seed: int = 0):
        if not isinstance(batch, Mapping):
            raise TypeError(f"Blocks(batch=...) must be a dict with one entry a term, got {type(batch).__name__}.")
        self.count = positive("count", count)
        self._cut, self._whole = {}, {}
        for name, entry in batch.items():
            points, weights = entry if isinstance(entry, Weighted) else (entry, None)
            points = jax.tree.map(jnp.asarray, points)
            if isinstance(points, ProductBatch) or (size := point_count(name, points, weights)) < self.count:
                self._whole[name] = jax.tree.map(jnp.asarray, entry)
                continue
            hands, there = deal(size, self.count, seed)
            weights = jnp.full(size, 1 / size) if weights is None else jnp.asarray(weights)
            weights = jnp.where(there, self.count * weights[hands], 0)
            self._cut[name] = Weighted(jax.tree.map(lambda leaf, hands=hands: leaf[hands], points), weights)
        if not self._cut:
            raise ValueError(f"Blocks(count={count}) cannot cut the data: no term of single points has as many.")

    def __call__(self, key: PRNGKeyArray) -> Block:
        return self.block(jax.random.randint(key, (), 0, self.count, jnp.int32))

    def block(self, index: ArrayLike) -> Block:
        """Block number `index`, from 0 to `count - 1`; it may be traced."""
        index = jnp.asarray(index, jnp.int32)
        cut: dict[str, Any] = jax.tree.map(lambda leaf: leaf[index], self._cut)
        return Block(cut | self._whole, index, self.count)
