"""Kronecker factors of gradients and their eigenbases, for one parameter array of any number of axes.

One entry an axis, and `None` for an axis that keeps the identity.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array

PerAxis = tuple[Array | None, ...]


def zero_factors(x: Array, max_dim: int) -> PerAxis:
    """For every axis of `2 .. max_dim` entries of an array with two or more axes, a zero matrix of that size."""
    return tuple(jnp.zeros((d, d), x.dtype) if x.ndim > 1 and 1 < d <= max_dim else None for d in x.shape)


def identities(factors: PerAxis) -> PerAxis:
    return _per_axis(lambda C: jnp.eye(len(C), dtype=C.dtype), factors)


def gradient_factors(gradient: Array, like: PerAxis) -> PerAxis:
    """The matrices `C_i` with `(C_i)_ab` the product of slices a and b of axis i; of a matrix `G G^T` and `G^T G`."""
    axes = range(gradient.ndim)
    others = ([other for other in axes if other != axis] for axis in axes)
    return tuple(
        None if C is None else jnp.tensordot(gradient, gradient, (rest, rest))
        for C, rest in zip(like, others, strict=True)
    )


def rotate(bases: PerAxis, x: Array) -> Array:
    """The coordinates of `x` in the bases: of a matrix `Q_L^T X Q_R`."""
    for Q in bases:  # takes the first axis off and puts its coordinates last: after a round the order is the old one
        x = jnp.moveaxis(x, 0, -1) if Q is None else jnp.tensordot(x, Q, (0, 0))
    return x


def rotate_back(bases: PerAxis, x: Array) -> Array:
    """The inverse of `rotate`: of a matrix `Q_L X Q_R^T`."""
    return rotate(_per_axis(jnp.transpose, bases), x)


def eigenbases(factors: PerAxis) -> PerAxis:
    """Orthonormal eigenvectors as columns, those of the largest eigenvalues first."""
    return _per_axis(lambda C: jnp.linalg.eigh(C)[1][:, ::-1], factors)


def eigenvalues(factors: PerAxis, bases: PerAxis) -> PerAxis:
    """`diag(Q^T C Q)`: the eigenvalues, as far as the columns of Q are eigenvectors."""
    return _per_axis(lambda C, Q: jnp.sum(Q * (C @ Q), axis=0), factors, bases)


def power_iteration(factors: PerAxis, bases: PerAxis) -> tuple[PerAxis, PerAxis]:
    """One step of the orthogonal iteration, `Q <- qr(C Q)`, with the columns of Q sorted by `diag(Q^T C Q)` before.

    Sorted, the QR takes the small directions off the large ones and not the other way round. Returns the bases, and
    which column of the old ones every column comes from.
    """
    orders = _per_axis(lambda values: jnp.argsort(values, descending=True), eigenvalues(factors, bases))
    return _per_axis(lambda C, Q, order: jnp.linalg.qr(C @ Q[:, order])[0], factors, bases, orders), orders


def reorder(orders: PerAxis, x: Array) -> Array:
    """Coordinates `x`, sorted like the columns that they belong to."""
    for axis, order in enumerate(orders):
        x = x if order is None else jnp.take(x, order, axis)
    return x


def _per_axis(f: Callable[..., Array], *given: PerAxis) -> PerAxis:
    return tuple(None if entries[0] is None else f(*entries) for entries in zip(*given, strict=True))
