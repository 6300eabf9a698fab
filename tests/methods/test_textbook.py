"""Every method against a dense textbook version of itself, written here with numpy and jax.jacfwd."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from small import RITZ, RITZ_BATCH, check_steps, density, network, partition, problem, runner, value_and_slope

import sciml_opt as so

STEPS = 12


@pytest.fixture(scope="module")
def dense():
    """The small Poisson problem; residual, Jacobian and second derivative along a line on a flat vector."""
    params, loss = problem()
    unravel = ravel_pytree(params)[1]
    r = jax.jit(lambda q: loss.residual(unravel(q)))
    J = jax.jit(jax.jacfwd(r))
    rvv = jax.jit(lambda q, v: jax.jvp(lambda p: jax.jvp(r, (p,), (v,))[1], (q,), (v,))[1])
    return params, loss, *(lambda *args, f=f: np.asarray(f(*args)) for f in (r, J, rvv))


@pytest.fixture(scope="module")
def energy():
    """A Ritz energy; value, Gram matrix of its second derivative in function space, and gradient."""
    params, loss = problem(RITZ, RITZ_BATCH)
    static = partition(network())[1]
    unravel = ravel_pytree(params)[1]
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

    return params, loss, lambda q: float(value(q)), G_and_g


def least_squares(r, J):
    return lambda q: 0.5 * np.sum(r(q) ** 2), lambda q: ((A := J(q)).T @ A, A.T @ r(q))


def textbook_levenberg_marquardt(path, f, G_and_g, marquardt=False, bend=None):
    """`bend(q, v) = J^T r_vv` for geodesic acceleration."""
    lam, nu, steps = None, 2.0, []
    for q in path[:-1]:
        G, g = G_and_g(q)
        D = np.maximum(np.diag(G), 1e-6 * np.diag(G).max()) if marquardt else np.ones(len(q))
        if lam is None:
            lam = 1e-2 * (1 if marquardt else np.diag(G).max())
        M = G + lam * np.diag(D)
        v = s = -np.linalg.solve(M, g)
        if bend is not None:
            a = -np.linalg.solve(M, bend(q, v))
            if np.sqrt(a @ (D * a)) <= 0.75 * np.sqrt(v @ (D * v)):
                s = v + a / 2
        rho = (f(q) - f(q + s)) / (0.5 * v @ (lam * D * v - g))
        accepted = f(q + s) < f(q)
        lam, nu = (lam * max(1 / 3, 1 - (2 * min(rho, 1) - 1) ** 3), 2.0) if accepted else (lam * nu, 2 * nu)
        steps.append(accepted * s)
    return steps


@pytest.mark.parametrize("marquardt", [False, True])
@pytest.mark.parametrize("geodesic", [False, True])
def test_levenberg_marquardt(dense, geodesic, marquardt):
    params, loss, r, J, rvv = dense
    bend = (lambda q, v: J(q).T @ rvv(q, v)) if geodesic else None
    scaling = "marquardt" if marquardt else "identity"
    for solve in ("primal",) if marquardt else ("primal", "dual"):  # the dual form is the same method
        tx = so.levenberg_marquardt(geodesic=geodesic, scaling=scaling, solve=solve)
        path, info = runner(tx, loss, STEPS)(params)
        check_steps(path, textbook_levenberg_marquardt(path, *least_squares(r, J), marquardt, bend))
        assert bool(np.any(info.accelerated)) == geodesic


def damped_direction(G, g, lam):
    return -np.linalg.solve(G + lam * np.diag(G).max() * np.eye(len(g)), g)


def follow(lam, eta, shrink):
    return lam * (1 / shrink if eta >= 0.25 else 12 if eta == 0 else 4 if eta < 0.05 else 1)


def textbook_line_search(path, f, G_and_g, search, shrink):
    lam, steps = 1e-2, []
    for q in path[:-1]:
        G, g = G_and_g(q)
        d = damped_direction(G, g, lam)
        eta = search(lambda eta, q=q, d=d: f(q + eta * d), f(q), g @ d)
        lam = follow(lam, eta, shrink)
        steps.append(eta * d)
    return steps


def armijo(phi, value, slope):
    for k in range(31):
        if phi(0.5**k) <= value + 1e-4 * 0.5**k * slope:
            return 0.5**k
    return 0.0


def best_of_grid(phi, value, slope):
    sizes = [0.5**k for k in range(31)]
    values = [phi(eta) for eta in sizes]
    return sizes[int(np.argmin(values))] if min(values) < value else 0.0


def textbook_gauss_newton(path, f, G_and_g):
    return textbook_line_search(path, f, G_and_g, armijo, 4)


def textbook_energy_natural_gradient(path, f, G_and_g):
    return textbook_line_search(path, f, G_and_g, best_of_grid, 10)


LINE_SEARCH = [
    (so.gauss_newton, textbook_gauss_newton),
    (so.energy_natural_gradient, textbook_energy_natural_gradient),
]


@pytest.mark.parametrize("make, textbook", LINE_SEARCH)
def test_least_squares_with_a_line_search(dense, make, textbook):
    params, loss, r, J, _ = dense
    for solve in ("primal", "dual"):
        path, _ = runner(make(solve=solve), loss, STEPS)(params)
        check_steps(path, textbook(path, *least_squares(r, J)))


@pytest.mark.parametrize("make, textbook", [*LINE_SEARCH, (so.levenberg_marquardt, textbook_levenberg_marquardt)])
def test_an_energy_is_newton_in_function_space(energy, make, textbook):
    params, loss, f, G_and_g = energy
    path, info = runner(make(), loss, 10)(params)
    check_steps(path, textbook(path, f, G_and_g))
    assert info.accepted.sum() > 5 and f(path[-1]) < f(path[0]) and not np.any(info.clipped)


def test_gauss_newton_takes_strong_wolfe_steps(dense):
    params, loss, r, J, _ = dense
    f, G_and_g = least_squares(r, J)
    path, info = runner(so.gauss_newton(line_search="strong_wolfe"), loss, 8)(params)
    lam, steps = 1e-2, []
    for q, eta in zip(path, info.step_size, strict=False):
        G, g = G_and_g(q)
        d, eta = damped_direction(G, g, lam), float(eta)
        new = q + eta * d
        assert eta > 0 and f(new) <= f(q) + 1e-4 * eta * (g @ d)
        assert abs(G_and_g(new)[1] @ d) <= 0.9 * abs(g @ d)
        lam = follow(lam, eta, 4)
        steps.append(eta * d)
    check_steps(path, steps)
    assert np.any(info.step_size != 1)  # the search had something to do
