"""The Jacobian of stacked per-point residuals, as a lineax operator."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._tree import ravel, tree_structure, unravel


class StructuredJacobian(lx.AbstractLinearOperator):
    """The Jacobian `J` of `N` whitened residuals with respect to the parameters, a lineax operator.

    `J` maps a parameter-shaped pytree to a vector of length `N`. It is held as explicit rows, transposed: `J^T J`
    contracts the last axis, which is the faster layout on CPU.

    **Arguments:**

    - `columns`: `J^T`, shape `(P, N)`.
    - `structure`: a pytree of arrays or `jax.ShapeDtypeStruct` shaped like the parameters, `P` entries in all.

    **Cost:** memory `N P`; `mv` and `T.mv` `2 N P` flops each, `gram` `2 N P^2`, `kernel` `2 N^2 P`.
    """

    columns: Float[Array, "P N"]
    _structure: tuple = eqx.field(static=True)

    def __init__(self, columns: Float[Array, "P N"], structure: PyTree):
        self.columns = columns
        leaves, treedef = jax.tree.flatten(tree_structure(structure))
        self._structure = (tuple(leaves), treedef)

    def mv(self, vector: PyTree) -> Float[Array, " N"]:
        """`J v` for a parameter-shaped `v`."""
        return ravel(vector) @ self.columns

    def rmv(self, vector: Float[Array, " N"]) -> PyTree:
        """`J^T w` as a parameter-shaped pytree; the same as `J.T.mv(w)`."""
        return unravel(self.columns @ vector, self.in_structure())

    def as_matrix(self) -> Float[Array, "N P"]:
        return self.columns.T

    def transpose(self) -> lx.FunctionLinearOperator:
        return lx.FunctionLinearOperator(self.rmv, self.out_structure())

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        leaves, treedef = self._structure
        return jax.tree.unflatten(treedef, leaves)

    def out_structure(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.columns.shape[1],), self.columns.dtype)

    def gram(self) -> Float[Array, "P P"]:
        """`J^T J`."""
        return self.columns @ self.columns.T

    def kernel(self, inverse_scale: PyTree | None = None) -> Float[Array, "N N"]:
        """`J J^T`, or `J S J^T` with the diagonal `S = diag(inverse_scale)`, a pytree of one scalar a leaf."""
        if inverse_scale is None:
            return self.columns.T @ self.columns
        spread = ravel(jax.tree.map(lambda s, leaf: jnp.full(leaf.shape, s), inverse_scale, self.in_structure()))
        return (self.columns * spread[:, None]).T @ self.columns

    def column_norms(self) -> PyTree:
        """Euclidean norms of the columns, `sqrt(diag(J^T J))`, as a parameter-shaped pytree."""
        return unravel(jnp.sqrt(jnp.sum(self.columns**2, axis=1)), self.in_structure())

    def blocks(self) -> PyTree:
        """The diagonal blocks of `J^T J`, one matrix a leaf."""
        leaves, treedef = self._structure
        splits = np.cumsum([int(np.prod(leaf.shape)) for leaf in leaves])[:-1]
        return jax.tree.unflatten(treedef, [rows @ rows.T for rows in jnp.split(self.columns, splits)])


def _itself(operator: StructuredJacobian) -> StructuredJacobian:
    return operator


# lineax asks these questions of every operator; a Jacobian of a non-linear residual has no special structure.
lx.linearise.register(StructuredJacobian)(_itself)
lx.materialise.register(StructuredJacobian)(_itself)
lx.conj.register(StructuredJacobian)(_itself)
lx.diagonal.register(StructuredJacobian)(lambda operator: jnp.diagonal(operator.as_matrix()))
for _question in (
    lx.is_symmetric,
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_positive_semidefinite,
    lx.is_negative_semidefinite,
):
    _question.register(StructuredJacobian)(lambda operator: False)
