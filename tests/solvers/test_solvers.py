"""The optimistix face: any residual function, SciPy and optimistix as references, and the structured objective."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
from small import RITZ, RITZ_BATCH, problem, relative

import sciml_opt as so

SOLVERS = {
    "LevenbergMarquardt": lambda tol=1e-10: so.LevenbergMarquardt(tol, tol),
    "LevenbergMarquardt dual": lambda tol=1e-10: so.LevenbergMarquardt(tol, tol, solve="dual", scaling="marquardt"),
    "GaussNewton": lambda tol=1e-10: so.GaussNewton(tol, tol),
}
T = np.linspace(0, 2, 12)


def rosenbrock(y, args):
    return jnp.stack([10 * (y[1] - y[0] ** 2), args - y[0]])


def exponential(y, args):
    """A fit with a residual that does not vanish, and pytree parameters."""
    return {"misfit": y["amplitude"] * jnp.exp(-y["rate"] * T) - args}


DATA = 2.5 * np.exp(-1.3 * T) + 0.1 * np.cos(7 * T)
STARTS = {"amplitude": jnp.asarray(1.0), "rate": jnp.asarray(0.3)}


@pytest.mark.parametrize("name", SOLVERS)
def test_rosenbrock(name):
    solution = optx.least_squares(rosenbrock, SOLVERS[name](), jnp.array([-1.2, 1.0]), args=jnp.asarray(1.0))
    np.testing.assert_allclose(solution.value, [1, 1], rtol=1e-8)
    assert solution.result == optx.RESULTS.successful


@pytest.mark.parametrize("name", SOLVERS)
def test_exponential_fit_against_scipy(name):
    f = lambda y: y[0] * np.exp(-y[1] * T) - DATA
    want = scipy.optimize.least_squares(f, [1.0, 0.3], method="lm", xtol=1e-14, ftol=1e-14).x
    solution = optx.least_squares(exponential, SOLVERS[name](1e-12), STARTS, args=jnp.asarray(DATA), throw=False)
    np.testing.assert_allclose([solution.value["amplitude"], solution.value["rate"]], want, rtol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_it_stops_at_rounding_level_with_success(name):
    """No step decreases the loss any more there, and the residual does not vanish."""
    A, b = (np.random.default_rng(0).normal(size=shape) for shape in ((4, 2), 4))
    fn = lambda y, args: args * (A @ y - b + 0.1 * y[0] ** 2)
    want = scipy.optimize.least_squares(lambda y: fn(y, 1.0), np.ones(2), xtol=1e-15).x
    for scale in (1.0, 1e-9, 1e9):
        solver = SOLVERS[name](1e-8)
        solution = optx.least_squares(fn, solver, jnp.ones(2), args=jnp.asarray(scale), throw=False)
        assert solution.result == optx.RESULTS.successful and int(solution.stats["num_steps"]) < 60
        np.testing.assert_allclose(solution.value, want, rtol=1e-5)
        again = optx.least_squares(fn, solver, solution.value, args=jnp.asarray(scale), throw=False)
        assert again.result == optx.RESULTS.successful


def test_implicit_derivative_of_the_solution():
    solve = lambda a: optx.least_squares(rosenbrock, SOLVERS["LevenbergMarquardt"](), jnp.zeros(2), args=a).value
    jacobian = jax.jacfwd(solve)(jnp.asarray(1.0))
    np.testing.assert_allclose(jacobian, [1, 2], rtol=1e-6)  # y = (a, a^2)
    np.testing.assert_allclose(jax.grad(lambda a: solve(a)[1])(jnp.asarray(1.5)), 3.0, rtol=1e-6)


def test_the_whole_solution_passes_jit_and_vmap():
    """Stock Gauss-Newton states hold jaxprs and cannot; ours hold arrays only."""
    solver = SOLVERS["LevenbergMarquardt"]()
    solve = lambda a: optx.least_squares(rosenbrock, solver, jnp.zeros(2), args=a, throw=False)
    targets = jnp.array([0.5, 1.0, 2.0])
    values = jax.jit(jax.vmap(lambda a: solve(a).value))(targets)
    np.testing.assert_allclose(values, jnp.stack([targets, targets**2], 1), rtol=1e-7)
    state = jax.jit(lambda a: solve(a).state)(targets[0])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    np.testing.assert_allclose(jax.vmap(lambda a: solve(a).value)(targets[:1])[0], solve(targets[0]).value, rtol=1e-9)


def test_a_new_tolerance_does_not_retrace():
    traces = []

    def counted(y, args):
        traces.append(1)
        return rosenbrock(y, args)

    for tol in (1e-6, 1e-7, 1e-8):
        optx.least_squares(counted, so.LevenbergMarquardt(tol, tol, init_damping=tol), jnp.zeros(2), jnp.asarray(1.0))
        first = len(traces) if tol == 1e-6 else first
    assert len(traces) == first


def test_float32_with_x64_on():
    y0 = jnp.array([-1.2, 1.0], jnp.float32)
    args = jnp.asarray(1.0, jnp.float32)
    solution = optx.least_squares(rosenbrock, SOLVERS["LevenbergMarquardt"](1e-6), y0, args=args)
    assert solution.value.dtype == jnp.float32
    np.testing.assert_allclose(solution.value, [1, 1], rtol=1e-4)


def test_non_finite_start_is_a_result_code_and_returns_the_input():
    y0 = jnp.array([1e200, 1.0])
    solution = optx.least_squares(rosenbrock, SOLVERS["LevenbergMarquardt"](), y0, jnp.asarray(1.0), throw=False)
    assert solution.result == optx.RESULTS.nonfinite
    np.testing.assert_array_equal(solution.value, y0)


def test_structured_objective():
    params, loss = problem()
    solver = SOLVERS["LevenbergMarquardt"](1e-6)
    solution = so.least_squares(loss, solver, params, max_steps=40, throw=False)
    plain = optx.least_squares(lambda p, args: args.residual(p), solver, params, args=loss, max_steps=40, throw=False)
    assert relative(solution.value, plain.value) < 1e-4  # the same method on a dense Jacobian
    assert float(loss(solution.value)) < 1e-2 * float(loss(params))
    assert int(solution.stats["num_steps"]) <= 40 and solution.stats["info"].rung.dtype == jnp.int32
    other = so.least_squares(loss, optx.LevenbergMarquardt(1e-6, 1e-6), params, max_steps=5, throw=False)
    assert float(loss(other.value)) <= float(loss(params))


@pytest.mark.bad_input
def test_errors():
    params, loss = problem(RITZ, RITZ_BATCH)
    with pytest.raises(ValueError, match="residual exists for least squares only"):
        so.least_squares(loss, SOLVERS["GaussNewton"](), params)
    with pytest.raises(TypeError, match="bound objective"):
        so.least_squares(lambda p: p, SOLVERS["GaussNewton"](), params)
    with pytest.raises(TypeError, match="solver must be an optimistix minimiser, got GaussNewton"):
        so.minimise(loss, SOLVERS["GaussNewton"](), params)
    with pytest.raises(ValueError, match="rtol must be at least 0"):
        so.LevenbergMarquardt(-1.0, 1e-3)
    with pytest.raises(ValueError, match="scaling must be one of"):
        so.GaussNewton(1e-3, 1e-3, scaling="none")


def test_a_non_finite_gradient_is_told():
    solver = so.NewtonKrylov(1e-8, 1e-8)
    solution = optx.minimise(lambda y, args: jnp.sum(jnp.sqrt(y)) + 1, solver, jnp.zeros(2), throw=False)
    assert solution.result == optx.RESULTS.nonfinite and int(solution.stats["num_steps"]) == 1


def test_underdetermined_systems_use_the_dual_form():
    A = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20)))
    solution = optx.least_squares(lambda y, args: A @ y - 1, so.LevenbergMarquardt(1e-12, 1e-12), jnp.zeros(20))
    want = lx.linear_solve(lx.MatrixLinearOperator(A), jnp.ones(3), lx.SVD()).value  # least norm
    np.testing.assert_allclose(solution.value, want, rtol=1e-5)
