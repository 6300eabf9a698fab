"""Damped solves against dense textbook formulas, and the ladder that catches a failed Cholesky."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import flat

import sciml_opt as so
from sciml_opt._tree import unravel
from sciml_opt.linear import damped_cholesky, factorize

TREE = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}


def jacobian(count: int, seed: int = 0, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    tree = jax.tree.map(lambda leaf: leaf.astype(dtype), TREE)
    return so.StructuredJacobian(jnp.asarray(rng.normal(size=(10, count)), dtype), tree)


@pytest.mark.parametrize("marquardt", [False, True])
@pytest.mark.parametrize("count", [6, 30])
@pytest.mark.parametrize("solve", ["primal", "dual", "auto"])
def test_both_spaces_solve_the_textbook_system(solve, count, marquardt):
    J = jacobian(count)
    rng = np.random.default_rng(1)
    y, g = jnp.asarray(rng.normal(size=count)), rng.normal(size=10)
    lam = jnp.asarray(0.3)
    quick = {"xla_backend_optimization_level": 0}
    factor = jax.jit(lambda J: factorize(J, lam, marquardt=marquardt, solve=solve), compiler_options=quick)(J)
    matrix = np.asarray(J.as_matrix())
    dual = solve == "dual" or (solve == "auto" and count < 10)
    squares = (matrix**2).sum(0)
    if dual:
        squares = np.concatenate([np.full(6, squares[:6].mean()), np.full(4, squares[6:].mean())])
    D = np.diag(squares) if marquardt else np.eye(10)
    M = matrix.T @ matrix + 0.3 * D
    np.testing.assert_allclose(flat(factor.from_residual(y)), np.linalg.solve(M, matrix.T @ y), rtol=1e-11)
    got = factor.from_gradient(unravel(jnp.asarray(g), TREE))
    np.testing.assert_allclose(flat(got), np.linalg.solve(M, g), rtol=1e-11)
    assert int(factor.rung) == 0 and float(factor.damping) == 0.3


def test_relative_damping():
    J = jacobian(20)
    factor = factorize(J, jnp.asarray(1e-2), relative=True)
    np.testing.assert_allclose(factor.damping, 1e-2 * np.max(np.diag(J.gram())), rtol=1e-13)
    assert float(factorize(J, jnp.asarray(1e-2), relative=True, marquardt=True).damping) == pytest.approx(1e-2)


def rank_one(n=6, size=1.0):
    v = np.arange(1.0, n + 1) * size
    return jnp.asarray(np.outer(v, v))


ladder = jax.jit(damped_cholesky)


def test_ladder():
    ones = jnp.ones(6)
    good = jnp.asarray(np.diag(np.arange(1.0, 7)))
    L, lam, rung = ladder(good, ones, jnp.asarray(0.5))
    assert (int(rung), float(lam)) == (0, 0.5)
    np.testing.assert_allclose(L @ L.T, good + 0.5 * jnp.eye(6), rtol=1e-14)

    L, lam, rung = ladder(rank_one(), ones, jnp.asarray(0.0))  # singular: more damping
    assert int(rung) == 1 and lam > 0
    np.testing.assert_allclose(L @ L.T, rank_one() + lam * jnp.eye(6), rtol=1e-12, atol=1e-12)

    indefinite = rank_one() - 1e-3 * jnp.eye(6)  # more than rounding: eigenvalues are clipped
    L, lam, rung = ladder(indefinite, ones, jnp.asarray(1e-8))
    assert int(rung) == 2
    w, Q = np.linalg.eigh(indefinite)
    floor = 6 * np.finfo(float).eps * np.abs(w).max()
    want = (Q * (np.maximum(w, floor) + 1e-8)) @ Q.T
    np.testing.assert_allclose(L @ L.T, want, atol=1e-12)
    assert np.all(np.triu(L, 1) == 0)

    L, _, rung = ladder(good.at[0, 0].set(jnp.nan), ones, jnp.asarray(0.5))
    assert int(rung) == 0 and np.isnan(L).any()


def test_ladder_respects_the_scaling():
    D = jnp.asarray([1.0, 4.0, 9.0])
    indefinite = jnp.diag(jnp.asarray([1.0, 1.0, -0.5]))
    L, lam, rung = ladder(indefinite, D, jnp.asarray(1e-3))
    assert int(rung) == 2
    np.testing.assert_allclose(L @ L.T, np.diag([1 + 1e-3, 1 + 4e-3, 9e-3]), atol=1e-13)


def test_under_vmap_only_the_failing_lanes_climb():
    ones = jnp.ones(6)
    good = jnp.asarray(np.diag(np.arange(1.0, 7)))
    lanes = jnp.stack([good, rank_one(), rank_one() - 1e-3 * jnp.eye(6), good])
    lams = jnp.asarray([0.5, 0.0, 1e-8, 0.1])
    L, lam, rung = jax.jit(jax.vmap(damped_cholesky, (0, None, 0)))(lanes, ones, lams)
    assert rung.tolist() == [0, 1, 2, 0]
    for i in range(4):
        alone = ladder(lanes[i], ones, lams[i])
        np.testing.assert_allclose(L[i], alone[0], atol=1e-13)
        np.testing.assert_allclose(lam[i], alone[1], rtol=1e-14)
    nested = jax.vmap(jax.vmap(damped_cholesky, (None, None, 0)), (0, None, None))(lanes[:2], ones, lams[:3])
    assert nested[2].shape == (2, 3)
    # the fallback stays a branch: a select would run the eigendecomposition for every lane
    text = str(jax.make_jaxpr(jax.vmap(damped_cholesky, (0, None, 0)))(lanes, ones, lams))
    assert "cond[" in text and "scan[" in text


def test_float32_stays_float32():
    J = jacobian(20, dtype=jnp.float32)
    factor = factorize(J, jnp.asarray(1e-2, jnp.float32), relative=True)
    out = factor.from_residual(jnp.ones(20, jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves((factor, out))} <= {jnp.dtype("float32"), jnp.dtype("int32")}
