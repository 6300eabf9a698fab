"""CG, MINRES and LSMR: SciPy's iterates step by step, dense solutions, flags, dtypes, jit, vmap, NaN."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg as sla

from sciml_opt.linear import conjugate_gradient, lsmr, minres

# Many small programs, each run a few times: half the time goes if LLVM does not optimise them.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
N = 12
RNG = np.random.default_rng(0)
Q = np.linalg.qr(RNG.normal(size=(N, N)))[0]
SPD = (Q * np.logspace(0, 2, N)) @ Q.T
SPD = (SPD + SPD.T) / 2
INDEFINITE = (Q * (np.logspace(0, 2, N) * np.where(np.arange(N) % 3 == 0, -1, 1))) @ Q.T
INDEFINITE = (INDEFINITE + INDEFINITE.T) / 2
B = RNG.normal(size=N)
GUESS = RNG.normal(size=N)
DIAGONAL = 1 / np.diag(SPD)
SYMMETRIC = {"cg": conjugate_gradient, "minres": minres}


@functools.partial(quick_jit, static_argnums=0)
def run(method, A, b, guess, diagonal, rtol, max_steps):
    return method(
        lambda x: A @ x,
        b,
        guess=guess,
        preconditioner=None if diagonal is None else lambda x: diagonal * x,
        rtol=rtol,
        max_steps=max_steps,
    )


def dense(method, A, b, *, guess=None, diagonal=None, rtol=1e-6, max_steps=100):
    return run(method, jnp.asarray(A), jnp.asarray(b), guess, diagonal, jnp.asarray(rtol), jnp.int32(max_steps))


@pytest.mark.parametrize("guess", [None, GUESS], ids=["cold", "warm"])
@pytest.mark.parametrize("M", [None, DIAGONAL], ids=["plain", "preconditioned"])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_iterates_are_scipys(name, M, guess):
    operator = None if M is None else sla.LinearOperator((N, N), lambda x: M * np.ravel(x))
    peer = {"cg": sla.cg, "minres": sla.minres}[name]
    for steps in (1, 3, 6):
        want = peer(SPD, B, x0=guess, rtol=1e-300, maxiter=steps, M=operator)[0]
        got = dense(SYMMETRIC[name], SPD, B, diagonal=M, guess=guess, rtol=0.0, max_steps=steps)
        np.testing.assert_allclose(got.value, want, rtol=1e-6, err_msg=f"{steps} steps")  # rounding grows with them
        assert int(got.iterations) == steps and not got.converged
        if name == "cg" or M is None:
            residual = np.linalg.norm(B - SPD @ want) / np.linalg.norm(B)
            np.testing.assert_allclose(got.relative_residual, residual, rtol=1e-6)


@pytest.mark.parametrize("guess", [None, GUESS], ids=["cold", "warm"])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_solves_to_the_tolerance(name, guess):
    got = dense(SYMMETRIC[name], SPD, B, guess=guess, rtol=1e-10, max_steps=200)
    assert got.converged and got.relative_residual < 1.01e-10
    np.testing.assert_allclose(got.value, np.linalg.solve(SPD, B), rtol=1e-6)


def test_minres_takes_an_indefinite_matrix_and_its_residual_never_grows():
    residuals = [float(dense(minres, INDEFINITE, B, rtol=0.0, max_steps=k).relative_residual) for k in range(N)]
    assert np.all(np.diff(residuals) <= 1e-14) and residuals[0] == 1.0
    got = dense(minres, INDEFINITE, B, rtol=1e-10, max_steps=100)
    assert got.converged
    np.testing.assert_allclose(got.value, np.linalg.solve(INDEFINITE, B), rtol=1e-7)


def test_minres_stops_at_an_invariant_space():
    b = np.eye(N)[0]
    got = dense(minres, np.diag(np.arange(N) - 0.0), b, rtol=1e-12)  # b is an eigenvector of eigenvalue zero
    assert int(got.iterations) == 1 and not got.converged and float(got.relative_residual) == 1.0
    assert np.all(np.isfinite(got.value))
    got = dense(minres, np.diag(np.arange(1.0, N + 1)), b, rtol=0.0)
    assert int(got.iterations) == 1 and got.converged
    np.testing.assert_allclose(got.value, b, rtol=1e-14)


def test_negative_curvature_returns_the_iterate_before_it():
    got = dense(conjugate_gradient, INDEFINITE, B, rtol=1e-10)
    assert got.negative_curvature and not got.converged
    p = np.asarray(got.direction)
    assert p @ INDEFINITE @ p <= 0
    k = int(got.iterations)
    before = dense(conjugate_gradient, INDEFINITE, B, rtol=1e-10, max_steps=k - 1)
    assert not before.negative_curvature
    np.testing.assert_allclose(got.value, before.value, rtol=1e-14)
    np.testing.assert_allclose(p, before.direction, rtol=1e-14)
    # the first direction already curves down: the iterate is the guess, the direction b
    got = dense(conjugate_gradient, -SPD, B)
    assert got.negative_curvature and int(got.iterations) == 1 and not np.any(got.value)
    np.testing.assert_allclose(got.direction, B, rtol=1e-14)
    assert not dense(conjugate_gradient, SPD, B, max_steps=500).negative_curvature


J = RNG.normal(size=(20, 7)) * np.logspace(0, 2, 7)
Y = RNG.normal(size=20)


@quick_jit
def dense_lsmr(A, b, damp, guess=None, rtol=0.0, max_steps=60):
    return lsmr(lambda x: A @ x, lambda w: w @ A, b, damp=damp, guess=guess, rtol=rtol, max_steps=max_steps)


@pytest.mark.parametrize("matrix", [J, J.T], ids=["tall", "wide"])
def test_lsmr_iterates_are_scipys(matrix):
    b = Y[: matrix.shape[0]]
    for steps, damp in itertools.product((1, 3, 5), (0.0, 0.7)):
        want = sla.lsmr(matrix, b, damp=damp, atol=0, btol=0, conlim=0, maxiter=steps)[0]
        got = dense_lsmr(matrix, b, damp, max_steps=jnp.int32(steps))
        np.testing.assert_allclose(got.value, want, rtol=1e-6, err_msg=f"{steps} steps, damp {damp}")
        gradient = matrix.T @ (b - matrix @ want) - damp**2 * want
        size = np.linalg.norm(gradient) / np.linalg.norm(matrix.T @ b)
        np.testing.assert_allclose(got.relative_residual, size, rtol=1e-5)


@pytest.mark.parametrize("damp", [0.0, 0.7])
def test_lsmr_warm_start(damp):
    want = np.linalg.lstsq(np.concatenate([J, damp * np.eye(7)]), np.concatenate([Y, np.zeros(7)]))[0]
    for guess in (None, jnp.asarray(GUESS[:7])):
        got = dense_lsmr(J, Y, damp, guess, 1e-12, jnp.int32(60))
        assert got.converged
        np.testing.assert_allclose(got.value, want, rtol=1e-8)
    started = dense_lsmr(J, Y, damp, want, 1e-2, jnp.int32(1))
    np.testing.assert_allclose(started.value, want, rtol=1e-8)


def all_methods(A, b, rtol=1e-6):
    return {
        "cg": conjugate_gradient(lambda x: A @ x, b, rtol=rtol, max_steps=40),
        "minres": minres(lambda x: A @ x, b, rtol=rtol, max_steps=40),
        "lsmr": lsmr(lambda x: A @ x, lambda w: w @ A, b, rtol=rtol, max_steps=40),
    }


compiled = quick_jit(all_methods)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_kept_and_scales_do_not_matter(dtype):
    A = jnp.asarray(np.diag(np.linspace(1, 3, N)), dtype)
    for size in (1.0, 1e-25, 1e25):  # squares of these leave float32
        b = jnp.asarray(B * size, dtype)
        for name, got in compiled(A, b).items():
            assert got.value.dtype == got.relative_residual.dtype == dtype and got.iterations.dtype == jnp.int32, name
            assert got.converged and int(got.iterations) < 20, name
            np.testing.assert_allclose(got.value / size, B / np.linspace(1, 3, N), rtol=2e-5, atol=2e-5)


def test_zero_right_hand_side_and_zero_matrix():
    for name, got in compiled(jnp.asarray(SPD), jnp.zeros(N)).items():
        assert got.converged and int(got.iterations) == 0 and not np.any(got.value), name
    for name, got in compiled(jnp.zeros((N, N)), jnp.asarray(B)).items():
        assert not np.any(got.value), name
    assert compiled(jnp.zeros((N, N)), jnp.asarray(B))["cg"].negative_curvature


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_numbers_end_it(bad):
    A, b = jnp.asarray(SPD), jnp.asarray(B)
    for broken in (compiled(A.at[1, 2].set(bad), b), compiled(A, b.at[3].set(bad))):
        for name, got in broken.items():
            assert not got.converged and int(got.iterations) <= 2, name
            assert not np.all(np.isfinite(got.value)), name


def test_lanes_of_vmap_stop_each_at_its_own_step():
    matrices = jnp.stack([jnp.asarray(SPD), jnp.eye(N), jnp.asarray(SPD).at[0, 0].set(jnp.nan)])
    lanes = quick_jit(jax.vmap(all_methods, (0, None)))(matrices, jnp.asarray(B))
    for name, got in lanes.items():
        for i in range(2):
            alone = compiled(matrices[i], jnp.asarray(B))[name]
            np.testing.assert_allclose(got.value[i], alone.value, rtol=1e-6)
            assert got.iterations[i] == alone.iterations and got.converged[i], name
        assert not np.all(np.isfinite(got.value[2])) and not got.converged[2], name
