"""Sketch and solve against the dense formula, and where it is the damped solve itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import flat

import sciml_opt as so
from sciml_opt.linear import SOLVES, choose, factorize, nystrom
from sciml_opt.linearization import Cost

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
N, P = 30, 50
RNG = np.random.default_rng(0)
LEFT, RIGHT = np.linalg.qr(RNG.normal(size=(N, N)))[0], np.linalg.qr(RNG.normal(size=(P, N)))[0]
Y, G = RNG.normal(size=N), RNG.normal(size=P)


def matrix(singular_values):
    return (LEFT * singular_values) @ RIGHT.T


@functools.partial(quick_jit, static_argnames=("rank", "residual_form"))
def solve(columns, lam, rank, residual_form=True):
    J = so.StructuredJacobian(columns, jnp.zeros(P, columns.dtype))
    factor = factorize(J, lam, solve="sketch", rank=rank, residual_form=residual_form)
    K = nystrom(lambda w: J.mv(J.rmv(w)), N, rank, columns.dtype)
    return factor, factor.solve_residual(jnp.asarray(Y)), factor.solve_gradient(jnp.asarray(G)), K


@pytest.mark.parametrize("lam", [1e-1, 1e-4])
def test_dense_formula(lam):
    """The inverse of the approximation, not of the matrix; what it misses shows in the reported residual."""
    J = matrix(2.0 ** -np.arange(N))
    factor, solved, _, K = solve(jnp.asarray(J.T), jnp.asarray(lam), rank=8)
    U, s = np.asarray(K.vectors), np.asarray(K.eigenvalues)
    w = np.linalg.solve((U * s) @ U.T + lam * np.eye(N), Y)
    np.testing.assert_allclose(flat(solved.value), J.T @ w, rtol=1e-9, atol=1e-11)
    missing = np.linalg.norm(Y - J @ (J.T @ w) - lam * w) / np.linalg.norm(Y)
    np.testing.assert_allclose(solved.relative_residual, missing, rtol=1e-8)
    assert missing > 1e-6 and SOLVES[int(factor.choice)] == "sketch" and int(factor.rung) == 0


@pytest.mark.parametrize("residual_form", [True, False])
def test_a_spectrum_that_falls_within_the_rank_is_solved(residual_form):
    """In the space that was announced, and in the other one by a second sketch."""
    J, lam = matrix(np.where(np.arange(N) < 8, 2.0 ** -np.arange(N), 0)), 1e-4
    M = J.T @ J + lam * np.eye(P)
    _, by_residual, by_gradient, _ = solve(jnp.asarray(J.T), jnp.asarray(lam), 12, residual_form)
    np.testing.assert_allclose(flat(by_residual.value), np.linalg.solve(M, J.T @ Y), rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(flat(by_gradient.value), np.linalg.solve(M, G), rtol=1e-7, atol=1e-6)
    assert by_residual.relative_residual < 1e-7 and by_gradient.relative_residual < 1e-7


def test_more_rank_is_nearer_to_the_solution():
    J, lam = matrix(2.0 ** (-0.5 * np.arange(N))), 1e-3
    want = np.linalg.solve(J.T @ J + lam * np.eye(P), J.T @ Y)
    errors = [np.linalg.norm(flat(solve(jnp.asarray(J.T), jnp.asarray(lam), rank)[1].value) - want) for rank in (5, 15)]
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.1 * np.linalg.norm(want)


def test_it_is_a_descent_direction_even_of_rank_one():
    J = matrix(2.0 ** (-0.5 * np.arange(N)))
    _, by_residual, by_gradient, _ = solve(jnp.asarray(J.T), jnp.asarray(1e-6), 1)
    assert flat(by_residual.value) @ J.T @ Y > 0 and flat(by_gradient.value) @ G > 0


def test_choice_of_the_rank():
    cost = Cost(product=1e6, gram=1e9, kernel=1e9, rows=0.0)
    ranks = [choose(n, 100_000, cost, 8, solve="sketch", memory=2**40).rank for n in (40, 500, 1000, 10_000)]
    assert ranks == [40, 100, 100, 1000]  # a tenth of the residuals, at least 100
    assert choose(10_000, 100, cost, 8, solve="sketch").dual  # in the space of the residuals, though N > P
    assert choose(1000, 1000, cost, 8, solve="sketch", rank=7).rank == 7


def test_nan_and_a_zero_jacobian():
    for value, want in ((np.nan, np.nan), (0.0, 0.0)):
        _, solved, _, _ = solve(jnp.full((P, N), value), jnp.asarray(0.1), rank=8)
        np.testing.assert_array_equal(flat(solved.value), np.full(P, want))
