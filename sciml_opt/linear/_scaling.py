"""The diagonal `D` of the damping, taken into the Jacobian: `J~ = J D^-1/2` on flat vectors."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._tree import ravel, tree_size, unravel
from ..linearization import StructuredJacobian

Scaling = Literal["identity", "marquardt"]
SCALE_FLOOR = 1e-6  # of the largest entry of diag(J^T J), the least entry of D


class ScaledJacobian(eqx.Module):
    """`J~ = J D^-1/2`, so that `J^T J + lambda D` becomes `J~^T J~ + lambda I` in the variables `t = D^1/2 s`.

    **Attributes:** `jacobian`, `J`, `N` by `P`; `scale`, the diagonal of `D` as a parameter-shaped pytree or one scalar
    a leaf.
    """

    jacobian: StructuredJacobian
    scale: PyTree
    _identity: bool = eqx.field(static=True)

    @classmethod
    def of(cls, jacobian: StructuredJacobian, *, marquardt: bool = False, leafwise: bool = False) -> "ScaledJacobian":
        """`D = I`, or with `marquardt` `diag(J^T J)`, floored at `1e-6` of its largest entry; `leafwise` its means."""
        return cls(jacobian, _diagonal(jacobian, marquardt, leafwise), not marquardt)

    @classmethod
    def given(cls, jacobian: StructuredJacobian, scale: PyTree, *, leafwise: bool = False) -> "ScaledJacobian":
        """A given `D`: parameter-shaped, or one positive scalar a leaf; `leafwise` its means."""
        if leafwise:
            scale = jax.tree.map(_mean, scale)
        return cls(
            jacobian, jax.tree.map(lambda s, leaf: jnp.asarray(s, leaf.dtype), scale, jacobian.in_structure()), False
        )

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, P)`."""
        return self.jacobian.out_structure().shape[0], tree_size(self.jacobian.in_structure())

    @property
    def dtype(self) -> jnp.dtype:
        return self.jacobian.out_structure().dtype

    def mv(self, t: Float[Array, " P"]) -> Float[Array, " N"]:
        return self.jacobian.mv(self.to_params(t))

    def rmv(self, w: Float[Array, " N"]) -> Float[Array, " P"]:
        return self.from_gradient(self.jacobian.rmv(w))

    def as_matrix(self) -> Float[Array, "N P"]:
        rows = self.jacobian.as_matrix()
        return rows if self._identity else rows / jnp.sqrt(self.diagonal())[None, :]

    def diagonal(self) -> Float[Array, " P"]:
        """The diagonal of `D`, one entry a parameter."""
        full = jax.tree.map(lambda s, leaf: jnp.broadcast_to(s, leaf.shape), self.scale, self.jacobian.in_structure())
        return ravel(full)

    def kernel(self) -> Float[Array, "N N"]:
        """`J D^-1 J^T`, for a scale of one scalar a leaf."""
        return self.jacobian.kernel(None if self._identity else jax.tree.map(lambda s: 1 / s, self.scale))

    def gram(self) -> Float[Array, "P P"]:
        """`D^-1/2 J^T J D^-1/2`."""
        root = jnp.sqrt(self.diagonal())
        return self.jacobian.gram() if self._identity else self.jacobian.gram() / root[:, None] / root[None, :]

    def to_params(self, t: Float[Array, " P"]) -> PyTree:
        """`s = D^-1/2 t`, parameter-shaped."""
        return self._over_root(unravel(t, self.jacobian.in_structure()))

    def from_gradient(self, g: PyTree) -> Float[Array, " P"]:
        """`D^-1/2 g`, flat."""
        return ravel(self._over_root(g)).astype(self.dtype)

    def largest_diagonal(self) -> Array:
        """The largest entry of `diag(J~^T J~)`."""
        if self._identity:
            return self.jacobian.largest_column_square()
        return jnp.max(ravel(self.jacobian.column_norms()) ** 2 / self.diagonal())

    def _over_root(self, tree: PyTree) -> PyTree:
        if self._identity:
            return tree
        return jax.tree.map(lambda leaf, s: leaf / jnp.sqrt(s), tree, self.scale)


def _diagonal(jacobian: StructuredJacobian, marquardt: bool, leafwise: bool) -> PyTree:
    if not marquardt:
        return jax.tree.map(lambda leaf: jnp.ones((), leaf.dtype), jacobian.in_structure())
    squares = jax.tree.map(lambda norm: norm**2, jacobian.column_norms())
    if leafwise:
        squares = jax.tree.map(_mean, squares)
    return floored(squares)


def _mean(leaf: Array) -> Array:
    return jnp.sum(leaf) / max(1, leaf.size)


def floored(squares: PyTree) -> PyTree:
    """Squared column norms as a positive diagonal, at least `1e-6` of the largest.

    A parameter that no residual sees must be damped, and not run off to saturation.
    """
    largest = jnp.max(ravel(squares))

    def positive(leaf):
        floor = SCALE_FLOOR * largest.astype(leaf.dtype)
        return jnp.where(largest > 0, jnp.maximum(leaf, floor), jnp.ones_like(leaf))

    return jax.tree.map(positive, squares)
