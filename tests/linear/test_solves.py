"""Every solve against dense textbook formulas: right-hand sides, scalings, dtypes, jit, vmap, NaN, reports."""

import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import flat

import sciml_opt as so
from sciml_opt._tree import unravel
from sciml_opt.linear import SOLVES, Spectrum, factorize, orthogonal_factor

TREE = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}
# Many small programs, each run a few times: half the time goes if LLVM does not optimise them.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ITERATIVE = ("cg", "minres", "lsmr", "nystrom")
RNG = np.random.default_rng(0)
ROWS = {6: RNG.normal(size=(6, 10)), 30: RNG.normal(size=(30, 10)) * np.logspace(0, 1, 10)}


def jacobian(matrix, dtype=jnp.float64):
    tree = jax.tree.map(lambda leaf: leaf.astype(dtype), TREE)
    return so.StructuredJacobian(jnp.asarray(matrix.T, dtype), tree)


def lane(tree, i):
    return flat(jax.tree.map(lambda leaf: leaf[i], tree))


@functools.partial(quick_jit, static_argnames=("solve", "marquardt", "rtol"))
def solve_all(J, lam, ys, g, solve, marquardt=False, rtol=1e-12):
    """Several residuals and a gradient with one factorisation."""
    factor = factorize(J, lam, solve=solve, marquardt=marquardt, rtol=rtol)
    return factor, [factor.solve_residual(y) for y in ys], factor.solve_gradient(g)


@pytest.mark.parametrize("count, marquardt", [(6, False), (30, True)])
@pytest.mark.parametrize("solve", SOLVES)
def test_textbook_system(solve, count, marquardt):
    matrix, lam = ROWS[count], 0.3
    ys, g = RNG.normal(size=(2, count)), RNG.normal(size=10)
    factor, residual_form, gradient_form = solve_all(
        jacobian(matrix), jnp.asarray(lam), list(jnp.asarray(ys)), unravel(jnp.asarray(g), TREE), solve, marquardt
    )
    D = flat(jax.tree.map(lambda s, leaf: np.broadcast_to(s, leaf.shape), factor.scale, TREE))
    squares = (matrix**2).sum(0)
    means = np.concatenate([np.full(6, squares[:6].mean()), np.full(4, squares[6:].mean())])
    np.testing.assert_allclose(D, 1 if not marquardt else means if solve == "dual" else squares, rtol=1e-13)
    M = matrix.T @ matrix + lam * np.diag(D)
    for y, solved in zip(ys, residual_form, strict=True):
        np.testing.assert_allclose(flat(solved.value), np.linalg.solve(M, matrix.T @ y), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(flat(gradient_form.value), np.linalg.solve(M, g), rtol=1e-9, atol=1e-12)
    assert SOLVES[int(factor.choice)] == solve and factor.choice.dtype == jnp.int32
    assert float(factor.predicted_flops) > 0 and int(factor.rung) == 0 and float(factor.damping) == lam
    for solved in (*residual_form, gradient_form):
        assert (int(solved.iterations) > 0) == (solve in ITERATIVE)
        assert solved.relative_residual < 1e-11


def test_the_reported_residual_is_the_one_of_the_system():
    """An iteration cut short says what is missing."""
    matrix, y = ROWS[30], jnp.asarray(RNG.normal(size=30))
    b = matrix.T @ y

    @quick_jit
    def run(J):
        factors = [factorize(J, jnp.asarray(0.1), solve=solve, max_steps=3) for solve in ("cg", "minres", "lsmr")]
        return [(factor.solve_residual(y), factor.from_residual(y)) for factor in factors]

    for solved, value in run(jacobian(matrix)):
        want = np.linalg.norm(b - matrix.T @ (matrix @ flat(solved.value)) - 0.1 * flat(solved.value))
        assert int(solved.iterations) == 3
        np.testing.assert_allclose(solved.relative_residual, want / np.linalg.norm(b), rtol=1e-8)
        np.testing.assert_array_equal(flat(solved.value), flat(value))


@pytest.mark.parametrize("solve", [*SOLVES, "auto"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_no_dtype_is_promoted(dtype, solve):
    """Float32 parameters stay so with x64 enabled, as here."""
    J = jacobian(ROWS[30], dtype)
    y, g = jnp.ones(30, dtype), unravel(jnp.ones(10, dtype), J.in_structure())
    out = jax.eval_shape(lambda *args: solve_all.__wrapped__(*args, solve, True), J, jnp.ones((), dtype), [y], g)
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(dtype), jnp.dtype("int32")}


@pytest.mark.parametrize("solve", ["primal", "qr", "lsmr", "nystrom"])
def test_float32(solve):
    J = jacobian(ROWS[30], jnp.float32)
    y, g = jnp.ones(30, jnp.float32), unravel(jnp.ones(10, jnp.float32), J.in_structure())
    _, (solved,), _ = solve_all(J, jnp.asarray(0.3, jnp.float32), [y], g, solve, True, rtol=1e-6)
    want = np.linalg.solve(ROWS[30].T @ ROWS[30] + 0.3 * np.diag((ROWS[30] ** 2).sum(0)), ROWS[30].T @ np.ones(30))
    np.testing.assert_allclose(flat(solved.value), want, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("solve", SOLVES)
def test_lanes_of_vmap(solve):
    stack = np.stack([ROWS[30], ROWS[30] * np.nan, np.zeros((30, 10)), ROWS[30][::-1]])
    y, lam = jnp.asarray(RNG.normal(size=30)), jnp.asarray(0.3)

    @quick_jit
    @jax.vmap
    def lanes(columns):
        return factorize(so.StructuredJacobian(columns, TREE), lam, solve=solve, rtol=1e-12).from_residual(y)

    out = lanes(jnp.asarray(stack).transpose(0, 2, 1))
    out = np.stack([lane(out, i) for i in range(4)])
    assert np.all(np.isnan(out[1])) and np.all(out[2] == 0)
    for i in (0, 3):
        want = np.linalg.solve(stack[i].T @ stack[i] + 0.3 * np.eye(10), stack[i].T @ y)
        np.testing.assert_allclose(out[i], want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "solve, count", [*((solve, 6) for solve in SOLVES), ("primal", 30), ("qr", 30), ("svd", 30), ("lsmr", 30)]
)
def test_no_damping_and_a_deficient_rank(solve, count):
    """Finite for lambda = 0; those that see J itself find the solution of least norm."""
    matrix = ROWS[count].copy()
    matrix[:, 3] = matrix[:, 2]
    if count == 6:
        matrix[5] = matrix[4]
    y = jnp.asarray(RNG.normal(size=count))
    factor, (solved, _), _ = solve_all(jacobian(matrix), jnp.asarray(0.0), [y, y], unravel(jnp.ones(10), TREE), solve)
    assert np.all(np.isfinite(flat(solved.value)))
    if solve in ("qr", "svd", "lsmr"):
        np.testing.assert_allclose(flat(solved.value), np.linalg.pinv(matrix) @ y, rtol=1e-6, atol=1e-7)
    assert int(factor.rung) in {"primal": (0, 1), "dual": (0, 1), "qr": (2,)}.get(solve, (0,))  # 0 by chance


# ---------------------------------------------------------------------------------------------- QR


def exact_solution(matrix, lam, y):
    """`(J^T J + lambda I)^-1 J^T y` by rational arithmetic, rounded once."""
    rows = [[Fraction(float(v)) for v in row] for row in matrix]
    n, y = len(rows[0]), [Fraction(float(v)) for v in y]
    M = [[sum(row[i] * row[j] for row in rows) + (Fraction(lam) if i == j else 0) for j in range(n)] for i in range(n)]
    b = [sum(row[i] * v for row, v in zip(rows, y, strict=True)) for i in range(n)]
    for i in range(n):
        for k in range(i + 1, n):
            factor = M[k][i] / M[i][i]
            M[k] = [p - factor * q for p, q in zip(M[k], M[i], strict=True)]
            b[k] -= factor * b[i]
    x = [Fraction(0)] * n
    for i in reversed(range(n)):
        x[i] = (b[i] - sum(M[i][j] * x[j] for j in range(i + 1, n))) / M[i][i]
    return np.array([float(v) for v in x])


def error(got, want):
    return np.linalg.norm(flat(got) - want) / np.linalg.norm(want)


@pytest.mark.parametrize("wide", [False, True], ids=["tall", "wide"])
def test_qr_keeps_the_digits_that_the_normal_equations_lose(wide):
    """cond J = 1e10, squared beyond 1 / eps; a residual that J nearly reaches, as near the end of a run."""
    U, V = np.linalg.qr(RNG.normal(size=(20, 10)))[0], np.linalg.qr(RNG.normal(size=(10, 10)))[0]
    matrix = (U * np.logspace(0, -10, 10)) @ V.T
    if wide:
        matrix = matrix[:6] / np.linalg.norm(matrix[:6], axis=1)[:, None]
        matrix = np.linalg.qr(RNG.normal(size=(6, 6)))[0] * np.logspace(0, -10, 6) @ matrix
    lam = 1e-22
    y = matrix @ RNG.normal(size=10)
    want = exact_solution(matrix, lam, y)
    g = unravel(jnp.asarray(matrix.T @ y), TREE)
    errors = {}
    for solve in ("dual" if wide else "primal", "qr", "svd"):
        _, (solved,), by_gradient = solve_all(jacobian(matrix), jnp.asarray(lam), [jnp.asarray(y)], g, solve)
        errors[solve] = error(solved.value, want)
        errors[solve + " g"] = error(by_gradient.value, want)
    direct = errors["dual" if wide else "primal"]
    assert direct > 1e-3, errors
    assert errors["qr"] < 1e-4 * direct and errors["qr"] < 2e-5 and errors["svd"] < 2e-5, errors


def test_corrected_semi_normal_equations_are_backward_stable():
    """A right-hand side without its `y`: the residual is at rounding level, though cond M = 1e12."""
    U, V = np.linalg.qr(RNG.normal(size=(20, 10)))[0], np.linalg.qr(RNG.normal(size=(10, 10)))[0]
    matrix = (U * np.logspace(0, -6, 10)) @ V.T
    x = V @ RNG.normal(size=10)
    M = matrix.T @ matrix
    g = unravel(jnp.asarray(M @ x + 1e-14 * x), TREE)
    _, _, solved = solve_all(jacobian(matrix), jnp.asarray(1e-14), [jnp.zeros(20)], g, "qr")
    assert solved.relative_residual < 1e-14


def test_orthogonal_factor():
    A, lam = ROWS[30], 0.5
    Q, R, rung = jax.jit(orthogonal_factor)(jnp.asarray(A), jnp.asarray(lam))
    np.testing.assert_allclose(Q @ R, A, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(R.T @ R, A.T @ A + lam * np.eye(10), rtol=1e-12, atol=1e-12)
    assert int(rung) == 0 and np.all(np.tril(R, -1) == 0)
    with pytest.raises(ValueError, match="as many rows"):
        orthogonal_factor(jnp.zeros((3, 4)), jnp.asarray(0.1))
    for bad in (np.nan, np.inf):
        Q, R, rung = orthogonal_factor(jnp.asarray(A).at[2, 2].set(bad), jnp.asarray(lam))
        assert not np.all(np.isfinite(R)) and int(rung) == 0
    # the fallback stays a branch, lane after lane
    text = str(jax.make_jaxpr(jax.vmap(orthogonal_factor, (0, None)))(jnp.zeros((2, 5, 3)), jnp.asarray(0.0)))
    assert "cond[" in text and "scan[" in text


def test_orthogonal_factor_is_differentiable_in_both_modes():
    A, y = jnp.asarray(ROWS[30]), jnp.asarray(RNG.normal(size=30))
    matrix = RNG.normal(size=A.shape)

    def by_qr(A, lam):
        Q, R, _ = orthogonal_factor(A, lam)
        return jnp.sum(jnp.sin(jax.scipy.linalg.solve_triangular(R, y @ Q))) + jnp.sum(jnp.diagonal(R.T @ R) ** 2)

    def textbook(A, lam):
        M = A.T @ A + lam * jnp.eye(10)
        return jnp.sum(jnp.sin(jnp.linalg.solve(M, A.T @ y))) + jnp.sum(jnp.diagonal(M) ** 2)

    at, along = (A, jnp.asarray(0.3)), (jnp.asarray(matrix), jnp.asarray(1.0))
    forward = quick_jit(lambda *at: (jax.jvp(by_qr, at, along)[1], jax.jvp(textbook, at, along)[1]))
    np.testing.assert_allclose(*forward(*at), rtol=1e-10)
    both = quick_jit(lambda *at: (jax.grad(by_qr, (0, 1))(*at), jax.grad(textbook, (0, 1))(*at)))
    for got, want in zip(*both(*at), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------------------------- Spectrum


@pytest.mark.parametrize(
    "method, count, marquardt",
    [("auto", 6, True), ("auto", 30, True), *itertools.product(["svd", "gram", "kernel"], [6, 30], [False])],
)
def test_one_spectrum_solves_for_many_dampings(method, count, marquardt):
    matrix, lams = ROWS[count], np.logspace(-3, 2, 4)
    y, g = RNG.normal(size=count), RNG.normal(size=10)

    @quick_jit
    def run(J, lams):
        spectrum = Spectrum.of(J, marquardt=marquardt, method=method)
        by_residual = jax.vmap(spectrum.from_residual, (0, None))(lams, jnp.asarray(y))
        by_gradient = jax.vmap(spectrum.from_gradient, (0, None))(lams, unravel(jnp.asarray(g), TREE))
        return by_residual, by_gradient, spectrum.coordinates(jnp.asarray(y)), spectrum.singular_values

    by_residual, by_gradient, c, sigma = run(jacobian(matrix), jnp.asarray(lams))
    squares = (matrix**2).sum(0) if marquardt else np.ones(10)
    if marquardt and (method == "kernel" or (method == "auto" and count < 10)):
        squares = np.concatenate([np.full(6, squares[:6].mean()), np.full(4, squares[6:].mean())])
    for i, lam in enumerate(lams):
        M = matrix.T @ matrix + lam * np.diag(squares)
        want = np.linalg.solve(M, matrix.T @ y)
        np.testing.assert_allclose(lane(by_residual, i), want, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(lane(by_gradient, i), np.linalg.solve(M, g), rtol=1e-8, atol=1e-11)
        length = np.sqrt(want @ (squares * want))
        np.testing.assert_allclose(np.linalg.norm(c / (sigma**2 + lam)), length, rtol=1e-8)


def test_spectrum_gives_the_pseudo_inverse_and_keeps_nan():
    matrix = ROWS[30].copy()
    matrix[:, 3] = matrix[:, 2]
    y = RNG.normal(size=30)
    for method in ("svd", "gram", "kernel"):
        spectrum = Spectrum.of(jacobian(matrix), method=method)
        got = spectrum.from_residual(jnp.asarray(0.0), jnp.asarray(y))
        np.testing.assert_allclose(flat(got), np.linalg.pinv(matrix) @ y, rtol=1e-8, atol=1e-9)
        broken = Spectrum.of(jacobian(matrix * np.nan), method=method)
        assert np.all(np.isnan(flat(broken.from_residual(jnp.asarray(0.1), jnp.asarray(y)))))
