"""Samplers for `fit`: fresh points at every draw, compiled together with the step."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._check import count as positive
from ..objective._objective import point_count
from ._domain import AbstractDomain
from ._points import Kind, unit_points


class Shifted(eqx.Module):
    """Low-discrepancy points in a box, all shifted by one random vector at every draw.

        x_i = lower + (upper - lower) ((u_i + s) mod 1),      s uniform

    So every point is uniform, and the set stays evenly spread (a Cranley-Patterson rotation).

    **Arguments:**

    - `box`: a `Box`, or a `TimeSlab` of one.
    - `count`, `kind`, `seed`: as for `unit_points`.

    **Methods:** `shifted(key)`, points `(count, d)`.

    **Errors:** `TypeError` for another domain: rotations fit boxes only; use a `RandomPool` of interior points.

    **Cost:** `count d` additions a draw.

    Source: Cranley and Patterson (1976), doi:10.1137/0713071.

    **Example:** `sampler = so.sampling.Sampler(interior=so.sampling.Shifted(box, 1024), boundary=box.boundary(128))`
    """

    _unit: Float[Array, "count d"]
    _lower: Float[Array, "1 d"]
    _width: Float[Array, "1 d"]

    def __init__(self, box: AbstractDomain, count: int, kind: Kind = "sobol", seed: int = 0):
        if len(getattr(box, "boxes", ())) != 1:
            raise TypeError(
                f"Shifted needs a Box or a TimeSlab of one, got {type(box).__name__}; use RandomPool(interior points)."
            )
        lower, upper = box.bounds
        self._unit = jnp.asarray(unit_points(box.dimension, count, kind, seed), float)
        self._lower, self._width = jnp.asarray(lower[None], float), jnp.asarray((upper - lower)[None], float)

    def __call__(self, key: PRNGKeyArray) -> Float[Array, "count d"]:
        shift = jax.random.uniform(key, self._width.shape, self._unit.dtype)
        return self._lower + self._width * ((self._unit + shift) % 1)


class RandomPool(eqx.Module):
    """A random part of a pool of points at every draw, none twice: fresh points in any domain.

    **Arguments:**

    - `pool`: points as in a batch, a pytree whose leaves share a leading axis.
    - `count`: the points of a draw.

    **Methods:** `pool(key)`, `count` points.

    **Errors:** `ValueError` for more points than the pool has.

    **Cost:** a random permutation of the pool a draw.

    **Example:** `so.sampling.RandomPool(so.sampling.LShape().interior(20_000), 1024)`
    """

    _pool: PyTree[Array]
    _count: int = eqx.field(static=True)

    def __init__(self, pool: PyTree, count: int):
        self._pool, self._count = jax.tree.map(jnp.asarray, pool), positive("count", count)
        if (size := point_count("pool", self._pool, None)) < self._count:
            raise ValueError(f"RandomPool cannot draw count={count} different points from {size}.")

    def __call__(self, key: PRNGKeyArray) -> PyTree[Array]:
        size = jax.tree.leaves(self._pool)[0].shape[0]
        chosen = jax.random.permutation(key, size)[: self._count]
        return jax.tree.map(lambda leaf: leaf[chosen], self._pool)


class Sampler(eqx.Module):
    """The batches of an objective: fresh points for some terms, fixed ones for the others.

    **Arguments:** one keyword a term, either a batch entry, which stays the same, or `key -> entry`, such as a
    `Shifted` or a `RandomPool`.

    **Methods:** `sampler(key)`, a batch.

    **Errors:** `ValueError` if no entry is a function: then no sampler is needed.

    **Cost:** that of the entries.

    **Example:**

    ```python
    box = so.sampling.Box((0, 0), (1, 1))
    sampler = so.sampling.Sampler(interior=so.sampling.Shifted(box, 1024), boundary=box.boundary(128))
    result = so.fit(model, objective, so.spring(1e-2), data=sampler, steps=1000, key=jax.random.key(0))
    ```
    """

    _fresh: dict[str, Any]
    _fixed: dict[str, Any]

    def __init__(self, **entries: Any):
        self._fresh = {name: entry for name, entry in entries.items() if callable(entry)}
        self._fixed = {
            name: jax.tree.map(jnp.asarray, entry) for name, entry in entries.items() if name not in self._fresh
        }
        if not self._fresh:
            raise ValueError("Sampler needs an entry that is a function `key -> points`; fixed points need no sampler.")

    def __call__(self, key: PRNGKeyArray) -> dict[str, Any]:
        keys = jax.random.split(key, len(self._fresh))
        drawn = {name: draw(key) for (name, draw), key in zip(self._fresh.items(), keys, strict=True)}
        return self._fixed | drawn
