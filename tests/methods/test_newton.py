"""The methods on the true Hessian: dense textbook versions, saddles, SciPy's minima, and any scalar function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree
from small import check_steps, flat, problem

import sciml_opt as so
from sciml_opt.linear import rayleigh_ritz
from sciml_opt.methods import AdaptiveCubicMethod, NewtonKrylovMethod, NewtonTrustRegionMethod, NysNewtonCGMethod
from sciml_opt.methods._adaptive_cubic import lanczos, minimise_cubic
from sciml_opt.methods._hessian import forcing_term
from sciml_opt.transforms import to_transformation

STEPS = 12
X = np.random.default_rng(0).uniform(-1, 1, (20, 2))
Y = np.sin(3 * X[:, 0]) * X[:, 1]
ONE = jnp.asarray(1.0)


def fit_loss(params, scale=1.0):
    """A small network on data: a scalar function with an indefinite Hessian, cheap to compile."""
    hidden = jnp.tanh(X.astype(params["W"].dtype) @ params["W"] + params["b"][None])
    return 0.5 * scale * jnp.sum((hidden @ params["v"] - Y.astype(params["W"].dtype)) ** 2)


def start(dtype=jnp.float64):
    rng = np.random.default_rng(1)
    shapes = {"W": (2, 6), "b": (6,), "v": (6,)}
    return {name: jnp.asarray(0.7 * rng.normal(size=shape), dtype) for name, shape in shapes.items()}


METHODS = {
    "newton_krylov": lambda: NewtonKrylovMethod(),
    "newton_krylov minres": lambda: NewtonKrylovMethod(krylov="minres"),
    "newton_trust_region": lambda: NewtonTrustRegionMethod(),
    "adaptive_cubic": lambda: AdaptiveCubicMethod(dimension=10),
    "nys_newton_cg": lambda: NysNewtonCGMethod(rank=8, refresh=4),
}


@functools.partial(jax.jit, static_argnums=0)
def steps(loss, method, params, state, *args):
    """Parameters and state after `STEPS` steps; parameters and infos after each."""

    def body(carry, _):
        params, state = carry
        update, state = method.step(lambda p: loss(p, *args), params, state)
        params = jax.tree.map(jnp.add, params, update)
        return (params, state), (params, state.info)

    return jax.lax.scan(body, (params, state), None, length=STEPS)


def poisson_loss(params, loss):
    return loss(params)


def flat_path(loss, method, params, *args):
    """The start and the point after each step, flat, and the infos."""
    path, info = steps(loss, method, params, method.init(params), *args)[1]
    return np.vstack([flat(params), jax.vmap(lambda p: ravel_pytree(p)[0])(path)]), info


def dense(loss, params):
    unravel = ravel_pytree(params)[1]
    f = jax.jit(lambda q: loss(unravel(q)))
    gH = jax.jit(lambda q: (jax.grad(f)(q), jax.hessian(f)(q)))
    return lambda q: float(f(q)), lambda q: map(np.asarray, gH(q))


def armijo(f, q, d, slope, c=1e-4):
    for k in range(31):
        if f(q + 0.5**k * d) <= f(q) + c * 0.5**k * slope:
            return 0.5**k
    return 0.0


def textbook_forcing(eta, new, old):
    if old is None:
        return 0.1
    want = 0.9 * (new / old) ** 2
    return min(0.1, max(want, 0.9 * eta**2) if 0.9 * eta**2 > 0.1 else want)


def textbook_newton_cg(f, gH, path):
    taken, eta, old = [], None, None
    for q in path[:-1]:
        g, H = gH(q)
        eta, old = textbook_forcing(eta, np.linalg.norm(g), old), np.linalg.norm(g)
        z, r, p = 0 * g, g, -g  # Nocedal and Wright, algorithm 7.1
        while np.linalg.norm(r) > eta * np.linalg.norm(g):
            if p @ H @ p <= 0:
                z = z if np.any(z) else -g * (g @ g) / abs(g @ H @ g)
                break
            alpha = r @ r / (p @ H @ p)
            z, r_new = z + alpha * p, r + alpha * H @ p
            p, r = -r_new + (r_new @ r_new) / (r @ r) * p, r_new
        taken.append(armijo(f, q, z, g @ z) * z)
    return taken


def textbook_steihaug(f, gH, path):
    taken, eta, old, accepted_eta, delta = [], None, None, None, 1.0
    for q in path[:-1]:
        g, H = gH(q)
        norm = np.linalg.norm
        eta = textbook_forcing(accepted_eta, norm(g), old)
        z, r, p, edge = 0 * g, g, -g, False  # algorithm 7.2
        while norm(r) > eta * norm(g) and not edge:
            alpha = r @ r / (p @ H @ p)
            if p @ H @ p <= 0 or norm(z + alpha * p) >= delta:
                z, edge = z + max(np.roots([p @ p, 2 * z @ p, z @ z - delta**2]).real) * p, True
                break
            z, r_new = z + alpha * p, r + alpha * H @ p
            p, r = -r_new + (r_new @ r_new) / (r @ r) * p, r_new
        rho = (f(q) - f(q + z)) / -(g @ z + z @ H @ z / 2)
        delta = norm(z) / 4 if rho < 0.25 else 2 * delta if rho > 0.75 and edge else delta
        if rho > 0.1:
            accepted_eta, old = eta, norm(g)
        taken.append((rho > 0.1) * z)
    return taken


def krylov_basis(H, g, m):
    V = [g / np.linalg.norm(g)]
    for _ in range(m - 1):
        w = H @ V[-1]
        for _ in range(2):
            w = w - np.array(V).T @ (np.array(V) @ w)
        V.append(w / np.linalg.norm(w))
    return np.array(V).T


def textbook_cubic(T, g, sigma):
    """The root of `|y(lambda)| = lambda / sigma`, by SciPy."""
    n = len(g)
    y = lambda lam: np.linalg.solve(T + lam * np.eye(n), -g)
    low = max(0, -np.linalg.eigvalsh(T)[0])
    excess = lambda lam: np.linalg.norm(y(lam)) - lam / sigma
    lam = scipy.optimize.brentq(excess, low * (1 + 1e-12) + 1e-12, low + 1e3 * (1 + sigma), xtol=1e-14, rtol=1e-14)
    return y(lam)


def textbook_arc(f, gH, path, m=10):
    taken, sigma = [], None
    for q in path[:-1]:
        g, H = gH(q)
        V = krylov_basis(H, g, m)
        T = V.T @ H @ V
        sigma = np.abs(np.triu(np.tril(T, 1), -1)).max() if sigma is None else sigma
        s = V @ textbook_cubic(T, V.T @ g, sigma)
        model = g @ s + s @ H @ s / 2 + sigma / 3 * np.linalg.norm(s) ** 3
        rho = (f(q) - f(q + s)) / -model
        sigma *= 0.5 if rho > 0.9 else 10 if rho < 0.1 else 1
        taken.append((rho > 0.1) * s)
    return taken


TEXTBOOK = {
    "newton_krylov": textbook_newton_cg,
    "newton_trust_region": textbook_steihaug,
    "adaptive_cubic": textbook_arc,
}


@pytest.fixture(scope="module")
def fit():
    return start(), ONE, dense(lambda p: fit_loss(p, ONE), start())


@pytest.mark.parametrize("name", TEXTBOOK)
def test_against_the_textbook(name, fit):
    function, (params, arg, (f, gH)) = fit_loss, fit
    if name == "newton_krylov":
        params, arg = problem()
        function, (f, gH) = poisson_loss, dense(arg, params)
    path, info = flat_path(function, METHODS[name](), params, arg)
    assert np.any(info.rung) or name == "adaptive_cubic"  # negative curvature was met on the way
    check_steps(path, TEXTBOOK[name](f, gH, path))


def test_minres_against_the_least_residual_over_the_krylov_space(fit):
    method = NewtonKrylovMethod(krylov="minres", krylov_steps=6)  # later, Lanczos vectors are no longer orthogonal
    path, info = flat_path(fit_loss, method, start(), ONE)
    f, gH = fit[2]
    taken, eta, old = [], None, None
    for step, q in enumerate(path[:-1]):
        g, H = gH(q)
        eta, old = textbook_forcing(eta, np.linalg.norm(g), old), np.linalg.norm(g)
        for m in range(1, 7):
            V = krylov_basis(H, g, m)
            d = V @ np.linalg.lstsq(H @ V, -g, rcond=None)[0]
            if np.linalg.norm(g + H @ d) <= eta * np.linalg.norm(g):
                break
        assert int(info.iterations[step]) == m
        d = d if g @ d < 0 else -d
        taken.append(armijo(f, q, d, g @ d) * d)
    check_steps(path, taken)


def test_nys_newton_cg_against_the_textbook(fit):
    method = NysNewtonCGMethod(1e-2, rank=8, refresh=4, cg_rtol=1e-3, krylov_steps=8)
    path, info = flat_path(fit_loss, method, start(), ONE)
    f, gH = fit[2]
    n, last, taken = path.shape[1], 0 * path[0], []
    for step, q in enumerate(path[:-1]):
        g, H = gH(q)
        if step % 4 == 0:
            key = jax.random.fold_in(jax.random.key(0), jnp.int32(step))
            Q = np.linalg.qr(H @ np.asarray(jax.random.normal(key, (n, 8))))[0]
            theta, W = np.linalg.eigh(Q.T @ H @ Q)
            order = np.argsort(-np.abs(theta))
            U, lam = Q @ W[:, order], np.abs(theta)[order]
        mu = 1e-2 * lam[0]
        np.testing.assert_allclose(info.damping[step], mu, rtol=1e-8)
        inverse = (lam[-1] + mu) * U @ np.diag(1 / (lam + mu)) @ U.T + np.eye(n) - U @ U.T
        d, A = last, H + mu * np.eye(n)
        r = -g - A @ d
        p = z = inverse @ r
        count, negative = 0, False
        while np.linalg.norm(r) > 1e-3 * np.linalg.norm(g) and count < 8:
            count += 1
            if negative := p @ A @ p <= 0:
                break
            alpha = r @ z / (p @ A @ p)
            d, r_new = d + alpha * p, r - alpha * A @ p
            z_new = inverse @ r_new
            p, r, z = z_new + (r_new @ z_new) / (r @ z) * p, r_new, z_new
        if g @ d >= 0 or (negative and count == 1):
            d = -inverse @ g / (lam[-1] + mu)
        assert (int(info.iterations[step]), bool(info.rung[step])) == (count, negative)
        taken.append(armijo(f, q, d, g @ d, 0.1) * d)
        last = d
    check_steps(path, taken)
    np.testing.assert_array_equal(np.asarray(info.products) - info.iterations, 2 + 16 * (np.arange(STEPS) % 4 == 0))


def test_the_sketch_of_an_indefinite_matrix_keeps_to_its_spectrum():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    eigenvalues = np.concatenate([[10, -8, 5, -3, 1, -0.5], np.zeros(44)])
    A = jnp.asarray(Q * eigenvalues @ Q.T)
    sketch = jax.jit(lambda A: rayleigh_ritz(lambda v: A @ v, 50, 10, A.dtype))(A)
    np.testing.assert_allclose(sketch.eigenvalues, np.append(np.abs(eigenvalues[:6]), np.zeros(4)), atol=1e-12)
    absolute = sketch.vectors * sketch.eigenvalues[None] @ sketch.vectors.T
    np.testing.assert_allclose(absolute, Q * np.abs(eigenvalues) @ Q.T, atol=1e-12)


@pytest.mark.parametrize("hard", [False, True])
def test_cubic_subproblem_is_solved_globally(hard):
    rng = np.random.default_rng(3)
    A = rng.normal(size=(6, 6))
    theta, Q = np.linalg.eigh(A + A.T)
    g = rng.normal(size=6)
    if hard:  # no component along the lowest eigenvector, and a small one elsewhere
        g = 1e-2 * (g - Q[:, 0] * (Q[:, 0] @ g))
    found = jax.jit(minimise_cubic)(jnp.asarray(A + A.T), jnp.asarray(g), jnp.asarray(0.7))
    y = np.asarray(found.step)
    model = lambda y: g @ y + y @ (A + A.T) @ y / 2 + 0.7 / 3 * np.linalg.norm(y) ** 3
    lam = 0.7 * np.linalg.norm(y)
    assert lam >= -theta[0] * (1 - 1e-12)
    np.testing.assert_allclose((A + A.T) @ y + lam * y, -g, atol=1e-10)
    np.testing.assert_allclose(-found.predicted, model(y), rtol=1e-10)
    trials = [scipy.optimize.minimize(model, y0, tol=1e-12).fun for y0 in rng.normal(size=(10, 6))]
    assert model(y) <= min(trials) + 1e-9
    if not hard:
        np.testing.assert_allclose(y, textbook_cubic(A + A.T, g, 0.7), rtol=1e-9)


def test_lanczos_stops_where_the_krylov_space_is_complete():
    H = jnp.diag(jnp.asarray([1.0, 1, 2, 2, 3, 3, 3]))
    space = jax.jit(lambda g: lanczos(lambda v: H @ v, g, 5))(jnp.ones(7))
    assert int(space.steps) == 3
    V, T = np.asarray(space.vectors)[:3], np.asarray(space.tridiagonal)
    np.testing.assert_allclose(V @ V.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(np.linalg.eigvalsh(T)[:3], [1, 2, 3], rtol=1e-13)
    step = jax.jit(minimise_cubic)(space.tridiagonal, jnp.zeros(5).at[0].set(7**0.5), jnp.asarray(1.0)).step
    np.testing.assert_allclose(step[3:], 0, atol=1e-14)


def test_forcing_term():
    term = lambda *args: float(forcing_term(*map(jnp.asarray, args)))
    assert term(0.5, 1.0, 0.0, 0.5) == 0.5  # first step
    np.testing.assert_allclose(term(0.1, 1e-2, 1e-1, 0.5), 0.9e-2)
    np.testing.assert_allclose(term(0.5, 1e-2, 1e-1, 0.5), 0.9 * 0.25)  # the safeguard
    assert term(0.1, 2.0, 1.0, 0.5) == 0.5


@pytest.mark.parametrize("name", METHODS)
def test_any_function_honest_scale_free_and_float32(name):
    method = METHODS[name]()
    ends = []
    for scale in (1.0, 2.0**-60, 2.0**60):
        args = (jnp.asarray(scale),)
        (params, state), (_, info) = steps(fit_loss, method, start(), method.init(start()), *args)
        assert info.loss[-1] < 0.5 * info.loss[0]
        after = np.append(info.loss[1:], fit_loss(params, scale))
        assert np.all((after < info.loss) == info.accepted) and np.all(after <= info.loss)
        np.testing.assert_allclose(after[info.accepted], info.trial_loss[info.accepted], rtol=1e-12)
        ends.append(ravel_pytree(params)[0])
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-7)
    np.testing.assert_allclose(ends[2], ends[0], rtol=1e-7)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))

    # a start that is not finite moves nothing, and the state can be used
    bad = steps(fit_loss, method, start(), method.init(start()), jnp.asarray(jnp.nan))[0]
    np.testing.assert_array_equal(ravel_pytree(bad[0])[0], ravel_pytree(start())[0])
    again = steps(fit_loss, method, *bad, ONE)[0][0]
    np.testing.assert_allclose(ravel_pytree(again)[0], ends[0], rtol=1e-12)

    small = start(jnp.float32)
    leaves = jax.eval_shape(functools.partial(steps, fit_loss), method, small, method.init(small), np.float32(1))
    assert {leaf.dtype for leaf in jax.tree.leaves(leaves)} <= {jnp.dtype(d) for d in ("float32", "int32", "bool")}


# The optimistix face.

SOLVERS = {
    "NewtonKrylov": lambda tol: so.NewtonKrylov(tol, tol),
    "NewtonKrylov minres": lambda tol: so.NewtonKrylov(tol, tol, krylov="minres", line_search="strong_wolfe"),
    "NewtonTrustRegion": lambda tol: so.NewtonTrustRegion(tol, tol),
    "AdaptiveCubic": lambda tol: so.AdaptiveCubic(tol, tol),
    "NysNewtonCG": lambda tol: so.NysNewtonCG(tol, tol),
}


def rosenbrock(y, a=1.0):
    return 100 * (y[1] - y[0] ** 2) ** 2 + (a - y[0]) ** 2


def landscape(y, args):
    """Rosenbrock's valley or a saddle, so that one program serves both."""
    valley, a = args
    return jnp.where(valley, rosenbrock(y, a), y[0] ** 4 - a * y[0] ** 2 + y[1] ** 2)


def solve(solver, y0, args):
    return optx.minimise(landscape, solver, y0, args, max_steps=500, throw=False)


@pytest.mark.parametrize("name", SOLVERS)
def test_rosenbrock_as_scipy_a_saddle_and_a_bad_start(name):
    starts = jnp.array([[-1.2, 1.0], [1e-3, 1.0], [1e-3, 1.0], [1e200, 1.0]])
    args = jnp.array([True, False, False, True]), jnp.array([1.0, 1.0, 2.0, 1.0])
    solution = jax.jit(jax.vmap(functools.partial(solve, SOLVERS[name](1e-9))))(starts, args)
    assert list(solution.result == optx.RESULTS.successful) == [True, True, True, False]

    f, g, H = (jax.jit(d(rosenbrock)) for d in (lambda f: f, jax.grad, jax.hessian))
    for method in ("trust-ncg", "Newton-CG"):
        want = scipy.optimize.minimize(f, starts[0], jac=g, hess=H, method=method, tol=1e-10)
        assert float(f(solution.value[0])) <= want.fun + 1e-16
        np.testing.assert_allclose(solution.value[0], want.x, rtol=1e-6)

    np.testing.assert_allclose(jnp.abs(solution.value[1:3, 0]), np.sqrt([0.5, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(solution.value[1:3, 1], 0, atol=1e-6)

    assert bool((solution.result == optx.RESULTS.nonfinite)[3])
    np.testing.assert_array_equal(solution.value[3], starts[3])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(solution.state))


@pytest.mark.parametrize(
    "method",
    [
        NewtonKrylovMethod(max_forcing=1e-12),
        NewtonKrylovMethod(max_forcing=1e-12, krylov="minres", line_search="strong_wolfe"),
        NewtonTrustRegionMethod(1e3, max_forcing=1e-12),
    ],
)
def test_one_tight_step_solves_a_quadratic(method):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(12, 8))
    b = rng.normal(size=8)
    f = lambda y: 0.5 * jnp.sum((A @ y) ** 2) - jnp.dot(b, y)
    update, state = jax.jit(lambda y: method.step(f, y, method.init(y)))(jnp.ones(8))
    np.testing.assert_allclose(1 + update, np.linalg.solve(A.T @ A, b), rtol=1e-9)
    np.testing.assert_allclose(state.info.gain_ratio, 1, rtol=1e-10)
    assert state.info.linear_residual < 1e-11


def test_implicit_derivative_and_float32():
    valley = jnp.array(True)
    end = lambda a: solve(SOLVERS["NewtonTrustRegion"](1e-10), jnp.zeros(2), (valley, a)).value
    np.testing.assert_allclose(jax.jacfwd(end)(jnp.asarray(1.5)), [1, 3], rtol=1e-6)  # y = (a, a^2)
    y0, a = jnp.zeros(2, jnp.float32), ONE.astype(jnp.float32)
    single = solve(SOLVERS["NewtonTrustRegion"](1e-5), y0, (valley, a))
    assert single.value.dtype == jnp.float32
    np.testing.assert_allclose(single.value, [1, 1], rtol=1e-3)


@pytest.mark.bad_input
def test_errors_and_the_optax_face():
    for make, message in (
        (lambda: so.newton_krylov(krylov="gmres"), "krylov must be one of"),
        (lambda: so.newton_krylov(line_search="wolfe"), "line_search must be one of"),
        (lambda: so.newton_trust_region(0.0), "init_radius must be greater than 0"),
        (lambda: so.adaptive_cubic(dimension=0), "dimension must be a positive integer"),
        (lambda: so.nys_newton_cg(rank=0), "rank must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    params = start()
    tx = to_transformation(METHODS["newton_krylov"]())
    grad = jax.grad(fit_loss)(params)
    with pytest.raises(TypeError, match="value_fn must be a function of the parameters"):
        tx.update(grad, tx.init(params), params, grad=grad, value_fn=None)
