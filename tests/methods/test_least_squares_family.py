"""Relatives of Gauss-Newton and Levenberg-Marquardt, each against a dense textbook version of itself."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import products
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree
from small import POISSON, check_steps, edges, grid, network, partition, problem, runner

import sciml_opt as so
from sciml_opt.methods._variable_projection import CUT, TINY, last_layer

STEPS = 10
STATIC = partition(network())[1]
FEW = {"interior": grid(4), "boundary": edges(2)}  # 24 residuals of 33 parameters


class Dense:
    """A problem on a flat vector: residual, Jacobian, second derivative along a line."""

    def __init__(self, batch=None):
        self.params, self.loss = problem() if batch is None else problem(batch=batch)
        self.unravel = ravel_pytree(self.params)[1]
        self.any_r = jax.jit(lambda q, loss: loss.residual(self.unravel(q)))
        self.any_J = jax.jit(jax.jacfwd(lambda q, loss: loss.residual(self.unravel(q))))
        line = lambda q, v: jax.jvp(lambda x: self.loss.residual(self.unravel(x)), (q,), (v,))[1]
        self._rvv = jax.jit(lambda q, v: jax.jvp(lambda p: line(p, v), (q,), (v,))[1])

    def r(self, q):
        return np.asarray(self.any_r(q, self.loss))

    def J(self, q):
        return np.asarray(self.any_J(q, self.loss))

    def rvv(self, q, v):
        return np.asarray(self._rvv(q, v))

    def f(self, q):
        return 0.5 * np.sum(self.r(q) ** 2)


@pytest.fixture(scope="module")
def dense():
    return Dense()


def armijo(phi, value, slope):
    for k in range(31):
        if phi(0.5**k) <= value + 1e-4 * 0.5**k * slope:
            return 0.5**k
    return 0.0


def follow(lam, eta):
    return lam * (1 / 4 if eta >= 0.25 else 12 if eta == 0 else 4 if eta < 0.05 else 1)


def nielsen(lam, nu, rho):
    return (lam * max(1 / 3, 1 - (2 * min(rho, 1) - 1) ** 3), 2.0) if rho > 0 else (lam * nu, 2 * nu)


def conjugate_gradients(A, b, x, rtol, steps):
    """Hestenes and Stiefel; also the number of iterations, and whether `p^T A p <= 0` ended it."""
    r = b - A @ x
    p, k = r, 0
    while k < steps and np.linalg.norm(r) > rtol * np.linalg.norm(b):
        Ap, k = A @ p, k + 1
        if p @ Ap <= 0:
            return x, k, True
        alpha = (r @ r) / (p @ Ap)
        x, new = x + alpha * p, r - alpha * Ap
        p, r = new + (new @ new) / (r @ r) * p, new
    return x, k, False


SCHEDULE = optax.exponential_decay(1.0, 1, 0.5)
RULES = {
    "delayed_gratification": lambda lam, accepted: lam / 3 if accepted else 2 * lam,
    "fixed": lambda lam, accepted: lam,
    "schedule": lambda lam, accepted: lam / 2,
}


@pytest.mark.parametrize("rule", RULES)
def test_damping_rules(dense, rule):
    tx = so.levenberg_marquardt(10.0, geodesic=False, damping_rule=SCHEDULE if rule == "schedule" else rule)
    path, info = runner(tx, dense.loss, STEPS)(dense.params)
    lam, steps = None, []
    for q in path[:-1]:
        J, r = dense.J(q), dense.r(q)
        lam = 10 * np.max(np.diag(J.T @ J)) if lam is None else lam
        v = -np.linalg.solve(J.T @ J + lam * np.eye(len(q)), J.T @ r)
        accepted = dense.f(q + v) < dense.f(q)
        lam = RULES[rule](lam, accepted)
        steps.append(accepted * v)
    check_steps(path, steps)
    assert info.accepted.sum() > 5


def test_a_schedule_is_a_number_of_a_jit_argument():
    """Another schedule of the same function, with its own numbers, does not retrace."""

    @jax.jit
    def step(tx, loss, params):
        grad = jax.grad(loss)(params)
        return so.info(tx.update(grad, tx.init(params), params, grad=grad, value_fn=loss)[1]).damping

    params, loss = problem()
    decay = lambda rate, count: rate * 0.5 ** count.astype(rate.dtype)
    dampings = [
        step(so.levenberg_marquardt(damping_rule=jax.tree_util.Partial(decay, jnp.asarray(rate))), loss, params)
        for rate in (1.0, 3.0)
    ]
    assert step._cache_size() == 1
    np.testing.assert_allclose(dampings[1], 3 * dampings[0], rtol=1e-12)


@pytest.mark.parametrize("solve", ["primal", "dual"])
def test_minpack_scaling(dense, solve):
    tx = so.levenberg_marquardt(geodesic=False, scaling="minpack", solve=solve)
    path, _ = runner(tx, dense.loss, STEPS)(dense.params)
    lam, nu, columns, steps = 1e-2, 2.0, 0.0, []
    for q in path[:-1]:
        J, r = dense.J(q), dense.r(q)
        columns = np.maximum(columns, np.sum(J**2, axis=0))
        D = np.maximum(columns, 1e-6 * columns.max())
        if solve == "dual":
            D = np.concatenate([np.full(leaf.size, leaf.mean()) for leaf in jax.tree.leaves(dense.unravel(D))])
        v = -np.linalg.solve(J.T @ J + lam * np.diag(D), J.T @ r)
        predicted = 0.5 * v @ (lam * D * v - J.T @ r)
        rho = (dense.f(q) - dense.f(q + v)) / predicted
        lam, nu = nielsen(lam, nu, rho)
        steps.append((rho > 0) * v)
    check_steps(path, steps)


def test_jacobi_scaling_of_the_smaller_matrix(dense):
    few = Dense(FEW)
    for case, solve in ((few, "dual"), (dense, "primal")):
        path, _ = runner(so.gauss_newton(scaling="jacobi", solve=solve), case.loss, STEPS)(case.params)
        lam, steps = 1e-2, []
        for q in path[:-1]:
            J, r = case.J(q), case.r(q)
            if len(r) < len(q):
                W = np.diag(1 / np.linalg.norm(J, axis=1))
                d = -J.T @ W @ np.linalg.solve(W @ J @ J.T @ W + lam * np.eye(len(r)), W @ r)
            else:
                G = J.T @ J
                d = -np.linalg.solve(G + lam * np.diag(np.maximum(np.diag(G), 1e-6 * np.diag(G).max())), J.T @ r)
            eta = armijo(lambda eta, q=q, d=d, f=case.f: f(q + eta * d), case.f(q), (J.T @ r) @ d)
            lam = follow(lam, eta)
            steps.append(eta * d)
        check_steps(path, steps)


def test_hessian_free(dense):
    path, info = runner(so.hessian_free(cg_rtol=1e-2), dense.loss, STEPS)(dense.params)
    lam, d, steps, counts = None, np.zeros(path.shape[1]), [], []
    for q in path[:-1]:
        J, r = dense.J(q), dense.r(q)
        g, G = J.T @ r, J.T @ J
        lam = 0.1 * np.diag(G).max() if lam is None else lam
        A, guess = G + lam * np.eye(len(q)), 0.95 * d
        guess = guess if g @ guess + 0.5 * guess @ A @ guess < 0 else 0 * guess
        d, count, _ = conjugate_gradients(A, -g, guess, 1e-2, 250)
        new = dense.f(q + d)
        rho = (dense.f(q) - new) / (-g @ d - 0.5 * np.sum((J @ d) ** 2))
        lam *= 3 / 2 if rho < 1 / 4 else 2 / 3 if rho > 3 / 4 else 1
        steps.append((new < dense.f(q)) * d)
        counts.append(count)
    check_steps(path, steps)
    assert list(info.iterations) == counts and list(info.products) == [n + 3 for n in counts]


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_subsampled_newton(dense, curvature):
    sample = jax.jit(lambda step: dense.loss.subsample(jax.random.fold_in(jax.random.key(3), step), 0.5))
    hessian = jax.jit(jax.hessian(lambda q, loss: loss(dense.unravel(q))))
    path, info = runner(so.subsampled_newton(0.5, curvature=curvature, seed=3), dense.loss, STEPS)(dense.params)
    lam, steps, negative = 1e-2, [], []
    for k, q in enumerate(path[:-1]):
        part = sample(k)
        g = dense.J(q).T @ dense.r(q)
        if curvature == "gauss_newton":
            J = np.asarray(dense.any_J(q, part))
            d = -np.linalg.solve(J.T @ J + lam * np.max(np.sum(J**2, 0)) * np.eye(len(q)), g)
        else:
            H = np.asarray(hessian(q, part))
            size = np.linalg.norm(H @ g) / np.linalg.norm(g)
            A = H + lam * size * np.eye(len(q))
            d, count, flag = conjugate_gradients(A, -g, 0 * g, 1e-2, 100)
            d = -g / (size + lam * size) if flag and count == 1 else d
            negative.append(flag)
        eta = armijo(lambda eta, q=q, d=d: dense.f(q + eta * d), dense.f(q), g @ d)
        lam = follow(lam, eta)
        steps.append(eta * d)
    check_steps(path, steps)
    np.testing.assert_array_equal(info.rung, np.array(negative or [False] * STEPS, np.int32))


@pytest.fixture(scope="module")
def projected():
    return runner(so.variable_projection(), problem()[1], 40)


def test_variable_projection(dense, projected):
    path, info = projected(dense.params)
    n = path.shape[1]
    linear = np.asarray(
        ravel_pytree(jax.tree.map(lambda p, m: jnp.full(p.shape, m), dense.params, last_layer(dense.params)))[0]
    )
    assert linear.sum() == 9  # eight weights and a bias
    D = np.where(linear, TINY, 1.0)
    lam, nu, steps = None, 2.0, []
    for q in path[:STEPS]:
        J, r = dense.J(q), dense.r(q)
        lam = 1e-2 * np.max(np.sum(J**2, 0)) if lam is None else lam
        solve = lambda y, J=J, lam=lam: np.linalg.lstsq(
            np.vstack([J, np.diag(np.sqrt(lam * D))]), np.append(y, np.zeros(n)), rcond=None
        )[0]
        v = -solve(r)
        w = -solve(dense.rvv(q, v))
        s = v + w / 2 if w @ (D * w) <= 0.75**2 * v @ (D * v) else v.copy()
        Jc, rc = dense.J(q + s)[:, linear], dense.r(q + s)
        cut = np.sqrt(CUT * np.max(np.sum(Jc**2, 0))) * np.eye(linear.sum())
        s[linear] -= np.linalg.lstsq(np.vstack([Jc, cut]), np.append(rc, np.zeros(linear.sum())), rcond=None)[0]
        rho = (dense.f(q) - dense.f(q + s)) / (0.5 * v @ (lam * D * v - J.T @ r))
        lam, nu = nielsen(lam, nu, rho)
        steps.append((rho > 0) * s)
        if rho > 0:
            best = q + s
            best[linear] += np.linalg.lstsq(dense.J(best)[:, linear], -dense.r(best), rcond=None)[0]
            np.testing.assert_allclose(dense.f(q + s), dense.f(best), rtol=1e-8)  # the layer is at its optimum
    check_steps(path[: STEPS + 1], steps)
    assert np.all(info.linearizations == 2) and np.any(info.accelerated)


def test_variable_projection_needs_fewer_steps_than_levenberg_marquardt(projected):
    damped = runner(so.levenberg_marquardt(), problem()[1], 40)
    ends = []
    for seed in range(5):
        params = partition(network(seed))[0]
        ends.append([run(params)[1].loss for run in (projected, damped)])
    ends = np.array(ends)  # seed, method, step
    steps = np.sum(ends > 1e-3 * ends[:, :, :1], axis=2)
    assert np.sum(steps[:, 0]) < np.sum(steps[:, 1])


def test_the_last_branch_layer_of_a_deeponet_is_solved_for_at_once():
    params, loss, _ = products.problem("DeepONet", left=8, right=7, width=6)
    linear = lambda m: m["branch"].layers[-1]
    got = runner(so.variable_projection(linear), loss, 8)(params)
    after = ravel_pytree(params)[1](got[0][-1])
    c, unravel = ravel_pytree(linear(after))
    residual = lambda c: loss.residual(eqx.tree_at(linear, after, unravel(c)))
    A, r = map(np.asarray, jax.jit(lambda c: (jax.jacfwd(residual)(c), residual(c)))(c))
    best = r - A @ np.linalg.lstsq(A, r, rcond=None)[0]
    assert bool(np.any(got[1].accepted))
    np.testing.assert_allclose(r @ r, best @ best, rtol=1e-9)


def test_the_last_layer_is_found():
    names = lambda tree: {jax.tree_util.keystr(path) for path, on in jax.tree_util.tree_leaves_with_path(tree) if on}
    model = so.models.MLP(2, layers=(3, 3), key=jax.random.key(0))
    assert names(last_layer(partition(model)[0])) == {".weights[2]", ".biases[2]"}
    assert names(last_layer(partition(network())[0])) == {".layers[1].weight", ".layers[1].bias"}
    deep = partition(products.model())[0]
    assert names(last_layer(deep)) == {"['trunk'].layers[1].weight", "['trunk'].layers[1].bias"}
    assert names(last_layer([(jnp.ones(2), jnp.ones(1)), (jnp.ones(1), jnp.ones(1))])) == {"[1][0]", "[1][1]"}
    with pytest.raises(ValueError, match="say which leaves enter linearly"):
        last_layer({"amplitude": jnp.ones(()), "rate": jnp.ones(())})


T = np.linspace(0, 2, 12)
DATA = 2.5 * np.exp(-1.3 * T) + 0.1 * np.cos(7 * T)


def exponential(y, args):
    return {"misfit": y["amplitude"] * jnp.exp(-y["rate"] * T) - args}


def test_plain_functions_against_scipy():
    want = scipy.optimize.least_squares(lambda y: y[0] * np.exp(-y[1] * T) - DATA, [1.0, 0.3], xtol=1e-14).x
    start = {"amplitude": jnp.asarray(1.0), "rate": jnp.asarray(0.3)}
    for solver in (
        so.VariableProjection(1e-10, 1e-10, linear=lambda y: y["amplitude"]),
        so.HessianFree(1e-10, 1e-10),
    ):
        solution = optx.least_squares(exponential, solver, start, args=jnp.asarray(DATA), throw=False)
        assert solution.result == optx.RESULTS.successful
        np.testing.assert_allclose([solution.value["amplitude"], solution.value["rate"]], want, rtol=1e-6)


def test_where_the_elimination_is_a_gauss_newton_step_only():
    cubic = so.Term(lambda u, x: so.laplacian(u)(x) - u(x) ** 3 + 1.0)
    params, loss = problem(so.Objective(interior=cubic, boundary=POISSON.terms["boundary"]))
    _, info = runner(so.variable_projection(), loss, STEPS)(params)
    assert np.all(np.diff(info.loss) <= 0) and info.accepted.sum() > 5
