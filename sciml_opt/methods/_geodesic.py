"""Geodesic acceleration of a damped Gauss-Newton step."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree, Scalar

from .._tree import second_derivative, tree_add, tree_dot, tree_dtype, tree_scale, tree_where
from ..linear import DampedSolve, Solved
from ._method import Loss


def geodesic_step(
    loss: Loss, params: PyTree, factor: DampedSolve, v: PyTree, limit: Scalar
) -> tuple[PyTree, Bool[Array, ""], Solved]:
    """The step `v`, bent along the geodesic of the model manifold where that is a small correction.

        (J^T J + lambda D) a = -J^T r_vv,     r_vv = d^2/dt^2 r(theta + t v) at t = 0
        s = v + a/2  if |a|_D <= limit |v|_D,  else v

    **Returns:** `s`, whether it was bent, and the report of the solve.

    **Cost:** one second derivative along a line and one back-substitution.

    Source: Transtrum and Sethna, arXiv:1201.5885.
    """
    solved = factor.solve_residual(second_derivative(loss.residual, params, v))
    a = jax.tree.map(jnp.negative, solved.value)
    length, limited = (tree_dot(x, jax.tree.map(jnp.multiply, factor.scale, x)) for x in (a, v))
    bent = length <= limit**2 * limited  # false for a non-finite acceleration
    half = jnp.asarray(0.5, tree_dtype(params))
    return tree_where(bent, tree_add(v, tree_scale(half, a)), v), bent, solved
