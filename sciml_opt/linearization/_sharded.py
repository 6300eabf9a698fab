"""Jacobians whose rows live on several devices: the points are sharded over a mesh, the parameters replicated.

Products with vectors need nothing (XLA adds one reduction). What loops over rows runs on every device on its own rows:

- sums over rows (`J^T J`, column norms) are summed across devices;
- the kernel `J J^T` goes around the ring: each device keeps its rows, passes the factors of the others on, and computes
  the tiles of its own rows; of a symmetric kernel every pair of devices computes its tile once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ._rows import PointRows


def over_devices(f: Callable[[PointRows, Array | None], PyTree], rows: PointRows, weights: Array | None, mesh: Mesh):
    """The sum over devices of `f(rows, weights)` on the rows of each."""
    (axis,) = mesh.axis_names

    def local(rows, weights):
        return lax.psum(f(rows, weights), axis)

    specs = (_specs(rows, axis), None if weights is None else PartitionSpec(axis))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)(rows, weights)


def ring_kernel(f: Callable[[PointRows, PointRows], Array], a: PointRows, b: PointRows, mesh: Mesh) -> Array:
    """`f(a, b)`, of shape `(N_a, N_b)`, tile by tile around the ring; replicated. `f(x, y)^T` is `f(y, x)`."""
    (axis,) = mesh.axis_names
    devices, symmetric = mesh.size, a is b
    hops = devices // 2 + 1 if symmetric else devices

    def local(a, b):
        def hop(other, _):
            passed = lax.ppermute(other, axis, [(d, (d - 1) % devices) for d in range(devices)])
            return passed, f(a, other)

        return lax.scan(hop, b, None, length=hops)[1]

    specs = (_specs(a, axis), _specs(b, axis))
    tiles = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(axis), check_vma=False)(a, b)
    tiles = lax.with_sharding_constraint(tiles, NamedSharding(mesh, PartitionSpec()))
    rows_a, rows_b = a.count // devices, b.count // devices
    tiles = tiles.reshape(devices, hops, rows_a, rows_b)
    first = jnp.repeat(jnp.arange(devices), hops).reshape(devices, hops)
    second = (first + jnp.arange(hops)[None, :]) % devices
    whole = jnp.zeros((devices, rows_a, devices, rows_b), a.dtype).at[first, :, second, :].set(tiles)
    if symmetric:
        whole = whole.at[second, :, first, :].set(tiles.transpose(0, 1, 3, 2))
    return whole.reshape(a.count, b.count)


def _specs(rows: PointRows, axis: str) -> PyTree:
    """Arrays of rows are sharded along them, the others replicated."""
    marked = rows.map_rows(lambda a: PartitionSpec(axis))

    def is_spec(leaf):
        return isinstance(leaf, PartitionSpec)

    return jax.tree.map(lambda leaf: leaf if is_spec(leaf) else PartitionSpec(), marked, is_leaf=is_spec)
