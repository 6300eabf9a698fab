"""Rows times weights, for every kind of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import products
import pytest
from small import POISSON, RITZ, RITZ_BATCH, network, partition, problem

import sciml_opt as so


def long_output(u, x):
    return u(x) * jnp.cos(jnp.arange(70.0) * x[0])


def field():
    params, static = partition(network())
    objective = so.Objective(field=so.Term(long_output), energy=so.Term(long_output, outer=lambda z, x: jnp.sum(z**4)))
    points = np.linspace(0.1, 0.9, 6).reshape(3, 2)
    return params, objective.bind({"field": points, "energy": points}, static=static)


CASES = {
    "points": lambda: problem(POISSON),
    "energy": lambda: problem(RITZ, RITZ_BATCH),
    "matrix-free": field,
    **{name: lambda name=name: products.problem(name)[:2] for name in products.TERMS if name != "physics-informed"},
}


@pytest.mark.parametrize("name", CASES)
def test_row_scaled(name):
    params, loss = CASES[name]()

    @jax.jit
    def both(params):
        J = loss.linearize(params).jacobian
        w = jnp.cos(jnp.arange(J.out_structure().shape[0], dtype=jnp.float64))
        S = J.row_scaled(w)
        step = jax.tree.map(jnp.sin, params)
        return w, J.as_matrix(), S.as_matrix(), S.mv(step), J.mv(step), S.rmv(w), J.rmv(w * w), S.row_norms()

    w, J, S, mv, mv_, rmv, rmv_, norms = both(params)
    rows = w[:, None] * J
    np.testing.assert_allclose(S, rows, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(mv, w * mv_, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(norms, np.linalg.norm(rows, axis=1), rtol=1e-6, atol=1e-9)
    for a, b in zip(jax.tree.leaves(rmv), jax.tree.leaves(rmv_), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
