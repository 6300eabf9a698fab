"""KFAC, KFAC* and block-diagonal Gauss-Newton against dense textbook versions of themselves."""

import equinox as eqx
import hand_made
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import draw, network
from jax.flatten_util import ravel_pytree
from small import check_steps, edges, exact, grid, problem, runner

import sciml_opt as so
from sciml_opt.methods._block_diagonal import blocks_of

STEPS = 10
INTERIOR, BOUNDARY = grid(6), edges(4)


def interior(p, x):
    return so.laplacian(lambda x: network(p, x)[0])(x) + 2 * jnp.pi**2 * exact(x)


LOSS = so.Objective(interior=so.Term(interior), boundary=so.Term(network, weight=4.0)).bind(
    {"interior": INTERIOR, "boundary": BOUNDARY}
)
START, UNRAVEL = ravel_pytree(draw())
LAYERS = [  # the entries of [W, b] in the flat vector W1 (6, 2), W2 (1, 6), b1 (6,), b2 (1,)
    np.column_stack([np.arange(12).reshape(6, 2), np.arange(18, 24)]),
    np.column_stack([np.arange(12, 18)[None], [24]]),
]


@pytest.fixture(scope="module")
def dense():
    r = jax.jit(lambda q: LOSS.residual(UNRAVEL(q)))
    J = jax.jit(jax.jacfwd(lambda q: LOSS.residual(UNRAVEL(q))))
    return lambda q: np.asarray(r(q)), lambda q: np.asarray(J(q))


def laplacian(p, x, e1, e2):
    (_, _, second), inputs = hand_made.second_order(p, x, e1, e2, (1, 1))
    return second, inputs


def value(p, x, e1, e2):
    (u, _, _), inputs = hand_made.second_order(p, x, e1, e2, (0, 0))
    return u, inputs


def kronecker_pairs(q):
    """`[(L, R) of the boundary, of the interior]` of both layers, from hand-made taps."""
    p = UNRAVEL(q)
    terms = (
        hand_made.factors(value, ([0], [0]), p, BOUNDARY, 4.0),
        hand_made.factors(laplacian, ([0, 1, 2], [3]), p, INTERIOR, 1.0),
    )
    return [[term[k] for term in terms] for k in range(2)]


def averaged(old, new, ema):
    if old is None:
        return new
    return jax.tree.map(lambda a, b: ema * a + (1 - ema) * b, old, new)


def preconditioned(pairs, lam, g):
    d = np.zeros_like(g)
    for layer, entries in zip(pairs, LAYERS, strict=True):
        M = sum(np.kron(*(A + lam * np.trace(A) / len(A) * np.eye(len(A)) for A in pair)) for pair in layer)
        d[entries.reshape(-1)] = -np.linalg.solve(M, g[entries.reshape(-1)])
    return d


def best_of_grid(phi, value):
    sizes = [0.5**k for k in range(31)]
    values = [phi(eta) for eta in sizes]
    return sizes[int(np.argmin(values))] if min(values) < value else 0.0


def next_damping(lam, eta):
    return min(1e2, lam * (0.1 if eta >= 0.25 else 12 if eta == 0 else 4 if eta < 0.05 else 1))


def test_kfac(dense):
    r, J = dense
    f = lambda q: 0.5 * np.sum(r(q) ** 2)
    path, info = runner(so.kfac(ema=0.8, momentum=0.5), LOSS, STEPS)(UNRAVEL(START))
    pairs, previous, lam, steps = None, 0.0, 1e-2, []
    for q in path[:-1]:
        pairs = averaged(pairs, kronecker_pairs(q), 0.8)
        d = preconditioned(pairs, lam, J(q).T @ r(q)) + 0.5 * previous
        eta = best_of_grid(lambda eta, q=q, d=d: f(q + eta * d), f(q))
        previous, lam = d if eta else 0.0, next_damping(lam, eta)
        steps.append(eta * d)
    check_steps(path, steps)
    assert np.all(np.diff(info.loss) <= 0) and np.all(info.linear_residual < 1e-9)


def test_kfac_star(dense):
    r, J = dense
    path, info = runner(so.kfac_star(ema=0.8), LOSS, STEPS)(UNRAVEL(START))
    pairs, previous, lam, nu, steps = None, np.zeros(len(START)), 1e-2, 2.0, []
    for q in path[:-1]:
        rq, Jq = r(q), J(q)
        G, g, f = Jq.T @ Jq, Jq.T @ rq, 0.5 * rq @ rq
        pairs = averaged(pairs, kronecker_pairs(q), 0.8)
        V = np.stack([preconditioned(pairs, lam, g), previous], axis=1)
        V = V[:, :1] if not previous.any() else V
        model = V.T @ (G + lam * np.diag(G).max() * np.eye(len(g))) @ V
        s = -V @ np.linalg.solve(model, V.T @ g)
        new = 0.5 * np.sum(r(q + s) ** 2)
        rho = (f - new) / (-g @ s - 0.5 * s @ G @ s)
        previous = (new < f) * s
        lam, nu = (lam * max(1 / 3, 1 - (2 * min(rho, 1) - 1) ** 3), 2.0) if new < f else (lam * nu, 2 * nu)
        steps.append(previous)
    check_steps(path, steps)
    assert np.any(info.accepted)


@pytest.mark.parametrize("blocks", ["layer", "leaf"])
def test_block_gauss_newton(dense, blocks):
    r, J = dense
    f = lambda q: 0.5 * np.sum(r(q) ** 2)
    # the leaves of a flat dict have no layers: they are one block
    parts = [np.arange(25)] if blocks == "layer" else np.split(np.arange(25), [12, 18, 24])
    path, _ = runner(so.block_gauss_newton(blocks=blocks, line_search="grid"), LOSS, STEPS)(UNRAVEL(START))
    lam, steps = 1e-2, []
    for q in path[:-1]:
        rq, Jq, d = r(q), J(q), np.zeros(25)
        for b in parts:
            G = Jq[:, b].T @ Jq[:, b]
            d[b] = -np.linalg.solve(G + lam * np.diag(G).max() * np.eye(len(b)), Jq[:, b].T @ rq)
        eta = best_of_grid(lambda eta, q=q, d=d: f(q + eta * d), f(q))
        lam = next_damping(lam, eta)
        steps.append(eta * d)
    check_steps(path, steps)


def test_layers_are_what_differs_in_the_last_name():
    models = {
        "equinox": eqx.filter(problem()[0], eqx.is_array),
        "weights and biases": eqx.filter(so.models.MLP(2, layers=(8,), key=jax.random.key(0)), eqx.is_array),
        "nested": [(jnp.zeros((8, 2)), jnp.zeros(8)), (jnp.zeros((1, 8)), jnp.zeros(1))],
        "named": {
            "first": {"w": jnp.zeros((8, 2)), "b": jnp.zeros(8)},
            "second": {"w": jnp.zeros((1, 8)), "b": jnp.zeros(1)},
        },
    }
    for params in models.values():
        assert [len(block) for block in blocks_of(params, "layer")] == [24, 9]
        entries = np.sort(np.concatenate(blocks_of(params, "layer")))
        np.testing.assert_array_equal(entries, np.arange(33))
        assert len(blocks_of(params, "leaf")) == 4
