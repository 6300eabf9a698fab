"""Points spread over the devices of a mesh."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, PyTree


def point_mesh(mesh: Mesh) -> Mesh:
    """The mesh with an automatic axis: what explicit ones (the default of `jax.make_mesh`) break, lineax among them."""
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) != 1:
        what = f"axes {mesh.axis_names}" if isinstance(mesh, Mesh) else type(mesh).__name__
        raise ValueError(f"bind(mesh=...) must be a jax.sharding.Mesh of one axis, that of the points; got {what}.")
    return Mesh(mesh.devices, mesh.axis_names)


def shard(points: PyTree, weights: ArrayLike | None, count: int, mesh: Mesh) -> tuple[PyTree, Float[Array, " n"], int]:
    """Points and weights in equal shares, one a device: the last point is repeated with weight 0 to fill up.

    **Returns:** points, weights, and their number.
    """
    weights = jnp.full(count, 1 / count) if weights is None else jnp.asarray(weights)
    filler = -count % mesh.size
    sharding = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))

    def place(leaf):
        return jax.device_put(jnp.concatenate([leaf, jnp.repeat(leaf[-1:], filler, axis=0)]), sharding)

    weights = jnp.concatenate([weights, jnp.zeros(filler, weights.dtype)])
    return jax.tree.map(place, points), jax.device_put(weights, sharding), count + filler
