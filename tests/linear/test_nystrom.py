"""The Nystrom approximation: exact on low rank, a positive definite preconditioner, fewer iterations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import flat

import sciml_opt as so
from sciml_opt.linear import conjugate_gradient, factorize, nystrom

# Many small programs, each run a few times: half the time goes if LLVM does not optimise them.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
N = 60
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.normal(size=(N, N)))[0]


def symmetric(eigenvalues):
    A = (Q * eigenvalues) @ Q.T
    return (A + A.T) / 2


@functools.partial(quick_jit, static_argnames="rank")
def sketch(A, rank, key=None):
    return nystrom(lambda x: A @ x, A.shape[0], rank, A.dtype, key=key)


@quick_jit
def columns_of_inverse(approximation, mu):
    return jax.vmap(approximation.preconditioner(mu))(jnp.eye(N, dtype=mu.dtype))


def inverse(approximation, mu):
    return np.asarray(columns_of_inverse(approximation, jnp.asarray(mu, approximation.vectors.dtype)))


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float64, 1e-10), (jnp.float32, 1e-4)])
def test_exact_on_low_rank(dtype, tolerance):
    eigenvalues = np.where(np.arange(N) < 8, 2.0 ** -np.arange(N), 0)
    got = sketch(jnp.asarray(symmetric(eigenvalues), dtype), 12)
    assert got.vectors.dtype == got.eigenvalues.dtype == dtype
    np.testing.assert_allclose(got.eigenvalues[:8], eigenvalues[:8], rtol=tolerance, atol=tolerance)
    U = np.asarray(got.vectors)
    np.testing.assert_allclose((U * np.asarray(got.eigenvalues)) @ U.T, symmetric(eigenvalues), atol=tolerance)
    np.testing.assert_allclose(U.T @ U, np.eye(12), atol=10 * tolerance)
    assert np.all(np.diff(got.eigenvalues) <= 0) and np.all(got.eigenvalues >= 0)


def test_below_the_matrix_and_reproducible():
    A = symmetric(1.0 / (1 + np.arange(N)) ** 2)
    got = sketch(jnp.asarray(A), 10)
    U = np.asarray(got.vectors)
    gap = np.linalg.eigvalsh(A - (U * np.asarray(got.eigenvalues)) @ U.T)
    assert gap[0] > -1e-12  # a Nystrom approximation never exceeds A
    np.testing.assert_array_equal(got.vectors, sketch(jnp.asarray(A), 10).vectors)
    other = sketch(jnp.asarray(A), 10, jax.random.key(1))
    assert np.abs(np.asarray(other.eigenvalues - got.eigenvalues)).max() > 0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    decay=st.floats(0.05, 3.0),
    log_size=st.floats(-8, 8),
    log_mu=st.floats(-12, 2),
    seen=st.integers(0, N),
    single=st.booleans(),
)
def test_the_preconditioner_is_positive_definite(decay, log_size, log_mu, seen, single):
    dtype = jnp.float32 if single else jnp.float64
    eigenvalues = 10**log_size * np.where(np.arange(N) < seen, np.exp(-decay * np.arange(N)), 0)
    P = inverse(sketch(jnp.asarray(symmetric(eigenvalues), dtype), 10), 10**log_mu * 10**log_size)
    rounding = 100 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(P, P.T, atol=rounding)
    spectrum = np.linalg.eigvalsh((P + P.T).astype(float) / 2)
    assert spectrum[0] > -rounding and spectrum[-1] < 1 + rounding  # (lambda_l + mu) / (lambda_i + mu), or one


def test_zero_matrix_no_damping_and_nan():
    np.testing.assert_allclose(inverse(sketch(jnp.zeros((N, N)), 5), 0.0), np.eye(N), atol=1e-14)
    assert np.any(np.isnan(inverse(sketch(jnp.full((N, N), jnp.nan), 5), 0.1)))


def test_damping_far_below_rounding():
    """The preconditioner stays positive definite, so that conjugate gradients move; of full rank it is the inverse."""
    A = symmetric(np.exp(-0.7 * np.arange(N)))
    b = jnp.asarray(A @ RNG.normal(size=N))

    @functools.partial(quick_jit, static_argnames="rank")
    def run(b, rank):
        M = nystrom(lambda x: jnp.asarray(A) @ x, N, rank, b.dtype).preconditioner(jnp.asarray(1e-25))
        return conjugate_gradient(lambda x: jnp.asarray(A) @ x, b, preconditioner=M, rtol=1e-8, max_steps=200)

    for rank in (40, N):
        found = run(b, rank)
        assert int(found.iterations) > 0 and found.relative_residual < 1e-4, found


def test_fewer_iterations_on_a_fast_decaying_spectrum():
    mu, A = 1e-8, symmetric(np.exp(-1.5 * np.arange(N)))
    b, M = jnp.asarray(RNG.normal(size=N)), jnp.asarray(A + mu * np.eye(N))

    @quick_jit
    def both(M, b):
        run = functools.partial(conjugate_gradient, lambda x: M @ x, b, rtol=1e-8, max_steps=1000)
        approximation = nystrom(lambda x: jnp.asarray(A) @ x, N, 20, b.dtype)
        return run(), run(preconditioner=approximation.preconditioner(jnp.asarray(mu)))

    plain, preconditioned = both(M, b)
    assert plain.converged and preconditioned.converged
    assert int(preconditioned.iterations) <= 5 < int(plain.iterations) / 4
    np.testing.assert_allclose(preconditioned.value, np.linalg.solve(M, b), rtol=1e-5)


@pytest.mark.parametrize("count, residual_form", [(40, True), (80, False)], ids=["dual", "primal"])
def test_factorize_sketches_the_space_that_was_announced(count, residual_form):
    """And solves well for other right-hand sides too."""
    U, V = np.linalg.qr(RNG.normal(size=(count, 30)))[0], np.linalg.qr(RNG.normal(size=(N, 30)))[0]
    matrix = (U * np.exp(-np.arange(30))) @ V.T
    J, lam = so.StructuredJacobian(jnp.asarray(matrix.T), jnp.zeros(N)), 1e-9
    M = matrix.T @ matrix + lam * np.eye(N)
    y, g = RNG.normal(size=count), RNG.normal(size=N)

    @quick_jit
    def run(J, y, g):
        factor = factorize(J, jnp.asarray(lam), solve="nystrom", residual_form=residual_form, rank=25, rtol=1e-10)
        return factor.solve_residual(y), factor.solve_gradient(g)

    by_residual, by_gradient = run(J, jnp.asarray(y), jnp.asarray(g))
    assert int(by_residual.iterations) <= 6 and int(by_gradient.iterations) <= 6
    np.testing.assert_allclose(flat(by_residual.value), np.linalg.solve(M, matrix.T @ y), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(flat(by_gradient.value), np.linalg.solve(M, g), rtol=1e-4)
