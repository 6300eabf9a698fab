"""Every method against a dense textbook version of itself, written here with numpy and jax.jacfwd."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from small import RITZ, RITZ_BATCH, density, network, partition, problem, value_and_slope

import sciml_opt as so

STEPS = 12


def run(tx, loss, params, steps=STEPS):
    """Parameters after each step, flat, and the infos."""

    @jax.jit
    def body(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        params = optax.apply_updates(params, updates)
        return (params, state), (ravel_pytree(params)[0], so.info(state))

    return jax.lax.scan(body, (params, tx.init(params)), None, length=steps)[1]


@pytest.fixture(scope="module")
def dense():
    """Residual and Jacobian of the small Poisson problem on a flat vector."""
    params, loss = problem()
    start, unravel = ravel_pytree(params)
    r = jax.jit(lambda q: loss.residual(unravel(q)))
    J = jax.jit(jax.jacfwd(lambda q: loss.residual(unravel(q))))
    rvv = jax.jit(
        lambda q, v: jax.jvp(lambda p: jax.jvp(lambda x: loss.residual(unravel(x)), (p,), (v,))[1], (q,), (v,))[1]
    )
    return (
        params,
        loss,
        np.asarray(start),
        lambda q: np.asarray(r(q)),
        lambda q: np.asarray(J(q)),
        lambda q, v: np.asarray(rvv(q, v)),
    )


@pytest.mark.parametrize("marquardt", [False, True])
@pytest.mark.parametrize("geodesic", [False, True])
def test_levenberg_marquardt(dense, geodesic, marquardt):
    params, loss, q, r, J, rvv = dense
    lam, nu, path = None, 2.0, []
    for _ in range(STEPS):
        rq, Jq = r(q), J(q)
        G, g, f = Jq.T @ Jq, Jq.T @ rq, 0.5 * rq @ rq
        D = np.maximum(np.diag(G), 1e-6 * np.diag(G).max()) if marquardt else np.ones(len(q))
        if lam is None:
            lam = 1e-2 * (1 if marquardt else np.diag(G).max())
        M = G + lam * np.diag(D)
        v = s = -np.linalg.solve(M, g)
        if geodesic:
            a = -np.linalg.solve(M, Jq.T @ rvv(q, v))
            if np.sqrt(a @ (D * a)) <= 0.75 * np.sqrt(v @ (D * v)):
                s = v + a / 2
        new = 0.5 * np.sum(r(q + s) ** 2)
        rho = (f - new) / (0.5 * v @ (lam * D * v - g))
        if new < f:
            q, lam, nu = q + s, lam * max(1 / 3, 1 - (2 * min(rho, 1) - 1) ** 3), 2.0
        else:
            lam, nu = lam * nu, 2 * nu
        path.append(q)
    scaling = "marquardt" if marquardt else "identity"
    got, info = run(so.levenberg_marquardt(geodesic=geodesic, scaling=scaling, solve="primal"), loss, params)
    np.testing.assert_allclose(got, path, rtol=1e-6, atol=1e-8)
    assert bool(np.any(info.accelerated)) == geodesic
    if not marquardt:  # the dual form is the same method
        dual, _ = run(so.levenberg_marquardt(geodesic=geodesic, solve="dual"), loss, params)
        np.testing.assert_allclose(dual, got, rtol=1e-6, atol=1e-8)


def textbook_line_search(G_and_g, f, q, search, shrink):
    lam, path = 1e-2, []
    for _ in range(STEPS):
        G, g = G_and_g(q)
        d = -np.linalg.solve(G + lam * np.diag(G).max() * np.eye(len(q)), g)
        eta = search(lambda eta, q=q, d=d: f(q + eta * d), f(q), g @ d)
        q = q + eta * d
        lam *= 1 / shrink if eta >= 0.25 else 12 if eta == 0 else 4 if eta < 0.05 else 1
        path.append(q)
    return path


def armijo(phi, value, slope):
    for k in range(31):
        if phi(0.5**k) <= value + 1e-4 * 0.5**k * slope:
            return 0.5**k
    return 0.0


def best_of_grid(phi, value, slope):
    sizes = [0.5**k for k in range(31)]
    values = [phi(eta) for eta in sizes]
    return sizes[int(np.argmin(values))] if min(values) < value else 0.0


def test_gauss_newton_and_energy_natural_gradient_on_least_squares(dense):
    params, loss, q, r, J, _ = dense
    f = lambda q: 0.5 * np.sum(r(q) ** 2)
    for make, search, shrink in ((so.gauss_newton, armijo, 4), (so.energy_natural_gradient, best_of_grid, 10)):
        want = textbook_line_search(lambda q: ((A := J(q)).T @ A, A.T @ r(q)), f, q, search, shrink)
        for solve in ("primal", "dual"):
            got, _ = run(make(solve=solve), loss, params)
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_energy_natural_gradient_on_an_energy_is_newton_in_function_space():
    params, loss = problem(RITZ, RITZ_BATCH)
    static = partition(network())[1]
    start, unravel = ravel_pytree(params)
    X, B = jnp.asarray(RITZ_BATCH["energy"]), jnp.asarray(RITZ_BATCH["boundary"])
    model = lambda q: eqx.combine(unravel(q), static)
    z = lambda q: jax.vmap(lambda x: value_and_slope(model(q), x))(X)
    Jz = jax.jit(jax.jacfwd(z))
    Jb = jax.jit(jax.jacfwd(lambda q: jax.vmap(model(q))(B)))
    H = jax.jit(lambda q: jax.vmap(jax.hessian(density))(z(q), X))
    value, grad = jax.jit(lambda q: loss(unravel(q))), jax.jit(jax.grad(lambda q: loss(unravel(q))))

    def G_and_g(q):
        A, b = np.asarray(Jz(q)), np.asarray(Jb(q))
        return np.einsum("nip,nij,njq->pq", A, H(q), A) / len(X) + 100 * b.T @ b / len(B), np.asarray(grad(q))

    want = textbook_line_search(G_and_g, lambda q: float(value(q)), np.asarray(start), best_of_grid, 10)
    got, _ = run(so.energy_natural_gradient(), loss, params)
    np.testing.assert_allclose(got[:8], want[:8], rtol=1e-5, atol=1e-7)
