"""Kronecker factors against hand-made taps for four operators, and the inverse of a sum of two Kronecker products."""

import hand_made
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import DIRECTIONS, draw, network
from jax.experimental.jet import jet
from small import BATCH, dense_jacobian, edges, grid, partition, relative
from small import network as small_network

import sciml_opt as so
from sciml_opt.curvature import KroneckerSum, kronecker_factors
from sciml_opt.linearization._contributions import Factored

POINTS, EDGES = grid(4) + 0.05, edges(2)
NU = 0.1
ALL = ([0, 1, 2], [0, 1, 2, 3])


def scalar(p):
    return lambda x: network(p, x)[0]


def burgers(u, x):
    d = so.bundle(u, (0, 0))(x)
    return d.gradient[1] + d.value * d.gradient[0] - NU * d.second[0]


def biharmonic(p, x):
    zero = jnp.zeros(2)
    along = lambda v: jet(lambda x: network(p, x)[0], (x,), ((v, zero, zero, zero),))[1][3]
    return hand_made.BIHARMONIC @ jax.vmap(along)(jnp.asarray(DIRECTIONS))


def system(p, x):
    u = so.forward_laplacian(lambda x: network(p, x))(x)
    return jnp.stack([u.second[0] + u.value[1] ** 2, u.first[0, 0] + u.value[0] * u.first[1, 1]])


def tapped_laplacian(p, x, e1, e2):
    (_, _, second), inputs = hand_made.second_order(p, x, e1, e2, (1, 1))
    return second, inputs


def tapped_burgers(p, x, e1, e2):
    (u, du, second), inputs = hand_made.second_order(p, x, e1, e2, (1, 0))
    return du[1] + u * du[0] - NU * second, inputs


def tapped_system(p, x, e1, e2):
    (u, du, second), inputs = hand_made.second_order(p, x, e1, e2, (1, 1))
    return jnp.stack([second[0] + u[1] ** 2, du[0][0] + u[0] * du[1][1]]), inputs


def tapped_value(p, x, e1, e2):
    (u, _, _), inputs = hand_made.second_order(p, x, e1, e2, (0, 0))
    return u, inputs


CASES = {  # residual, the same with taps, the products of both layers that it sees, outputs of the network
    "laplacian": (lambda p, x: so.laplacian(scalar(p))(x), tapped_laplacian, ([0, 1, 2], [3]), 1),
    "burgers": (lambda p, x: burgers(scalar(p), x), tapped_burgers, ALL, 1),
    "biharmonic": (biharmonic, hand_made.fourth_order, ([0, 1, 2, 3, 4], [0, 1, 2, 3]), 1),
    "system": (system, tapped_system, ALL, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_factors_are_those_of_hand_made_taps(name):
    residual, tapped, used, outputs = CASES[name]
    p = draw(outputs)
    objective = so.Objective(boundary=so.Term(network, weight=5.0), interior=so.Term(residual, weight=3.0))
    loss = objective.bind({"interior": POINTS, "boundary": EDGES})
    lin, got = jax.jit(lambda p: ((lin := loss.linearize(p, layers=True)), kronecker_factors(lin.jacobian)))(p)

    # the reference is one: its products add up to the derivative of the residual
    rows = jax.jit(jax.vmap(jax.jacrev(residual), (None, 0)))(p, POINTS)
    gs, zs = hand_made.cotangents_and_inputs(tapped, p, POINTS)
    for layer, (g, z, seen) in enumerate(zip(gs, zs, used, strict=True), start=1):
        outer = np.einsum("nmti,ntj->nmij", np.asarray(g)[:, :, seen], np.asarray(z)[:, seen])
        W, b = (np.reshape(rows[f"{kind}{layer}"], (*outer.shape[:3], -1)) for kind in "Wb")
        np.testing.assert_allclose(outer, np.concatenate([W, b], axis=3), rtol=1e-9, atol=1e-9)

    want = hand_made.factors(tapped, used, p, POINTS, 3.0), hand_made.factors(tapped_value, ([0], [0]), p, EDGES, 5.0)
    assert got.rest.size == 0 and [layer.leaf for layer in got.layers] == [0, 1]
    for k, layer in enumerate(got.layers):
        for term, place in ((0, 1), (1, 0)):  # terms are sorted by name
            L, R = want[term][k]
            np.testing.assert_allclose(layer.lefts[place], L, rtol=1e-9, atol=1e-9 * np.abs(L).max())
            np.testing.assert_allclose(layer.rights[place], R, rtol=1e-9, atol=1e-9 * np.abs(R).max())
    assert relative(lin.jacobian.as_matrix(), dense_jacobian(loss.residual, p)) < 1e-12


def column_network(p, x):
    return p["W2"] @ jnp.tanh(p["W1"] @ x[:1] + p["b1"]) + p["b2"]


def row_network(p, x):
    return jnp.tanh(x @ p["W1"].T + p["b1"]) @ p["W2"].T + p["b2"]


def right_network(p, x):
    return jnp.tanh(x @ p["W1"] + p["b1"]) @ p["W2"] + p["b2"]


def reverse(u):
    return lambda p, x: jax.grad(lambda x: u(p, x)[0])(x)[0] + u(p, x)[0]


def pair(u):
    return lambda p, x: u(p, x) - u(p, x + 0.5)


SHAPED = {
    "one coordinate": (column_network, {"W1": (6, 1), "W2": (1, 6)}),
    "from the right, transposed": (row_network, {"W1": (6, 2), "W2": (1, 6)}),
    "from the right": (right_network, {"W1": (2, 6), "W2": (6, 1)}),
}


@pytest.mark.parametrize("name", SHAPED)
def test_biases_are_found_however_the_layer_is_written(name):
    u, shapes = SHAPED[name]
    p = draw() | {key: jnp.asarray(np.random.default_rng(1).normal(size=shape)) for key, shape in shapes.items()}
    terms = {"a": so.Term(u), "b": so.Term(reverse(u)), "c": so.Term(pair(u))}
    loss = so.Objective(**terms).bind(dict.fromkeys(terms, EDGES))
    lin, got = jax.jit(lambda p: ((lin := loss.linearize(p, layers=True)), kronecker_factors(lin.jacobian)))(p)
    assert got.rest.size == 0 and all(isinstance(part, Factored) for rows in lin.jacobian.rows for part in rows.parts)
    assert relative(lin.jacobian.as_matrix(), dense_jacobian(loss.residual, p)) < 1e-12
    # one product a row: the block of the last layer in the first term is exact for a linear output
    J = np.asarray(lin.jacobian.rows[0].explicit())
    layer = got.layers[1]
    entries = layer.view.indices.reshape(-1)
    np.testing.assert_allclose(
        np.kron(layer.lefts[0], layer.rights[0]), J[:, entries].T @ J[:, entries], rtol=1e-9, atol=1e-12
    )


def test_what_is_no_layer_gets_the_diagonal():
    """A scaled weight has its bias apart, a number and a matrix used entry by entry are no layers."""
    p = draw() | {"nu": jnp.asarray(0.3), "free": jnp.ones((2, 2))}

    def residual(p, x):
        u = lambda x: (p["W2"] @ jnp.tanh(p["W1"] @ x / 2 + p["b1"]) + p["b2"])[0]
        return p["nu"] * so.laplacian(u)(x) + u(x) + jnp.sum(p["free"] * jnp.outer(x, x))

    loss = so.Objective(interior=so.Term(residual)).bind({"interior": POINTS})
    plain, got = jax.jit(
        lambda p: (loss.linearize(p).jacobian, kronecker_factors(loss.linearize(p, layers=True).jacobian))
    )(p)
    squares = np.sum(np.asarray(plain.as_matrix()) ** 2, axis=0)
    names = np.concatenate([np.full(leaf.size, key) for key, leaf in sorted(p.items())])
    assert {*names[got.rest.indices]} == {"b1", "free", "nu"} and len(got.layers) == 2
    np.testing.assert_allclose(got.diagonal[got.rest.indices], squares[got.rest.indices], rtol=1e-10)


def test_two_pairs_for_three_terms():
    params, static = partition(small_network())
    terms = {"boundary": so.Term(lambda u, x: u(x), weight=9.0), "data": so.Term(lambda u, x: u(x) - 1)}
    objective = so.Objective(interior=so.Term(lambda u, x: so.laplacian(u)(x)), **terms)
    loss = objective.bind(BATCH | {"data": EDGES}, static=static)
    got = jax.jit(lambda p: kronecker_factors(loss.linearize(p, layers=True).jacobian))(params)
    assert got.first == (False, False, True) and got.rest.size == 0
    for layer in got.layers:
        L, R = np.asarray(layer.lefts), np.asarray(layer.rights)
        lefts, rights = layer.paired(got.first)
        np.testing.assert_allclose(np.kron(lefts[0], rights[0]), np.kron(L[2], R[2]), rtol=1e-12)
        traces = np.trace(L, axis1=1, axis2=2)
        np.testing.assert_allclose(lefts[1], L[0] + L[1], rtol=1e-12)
        np.testing.assert_allclose(rights[1] * (traces[0] + traces[1]), traces[0] * R[0] + traces[1] * R[1], rtol=1e-12)


@pytest.mark.parametrize("rank", [2, 9])
def test_a_sum_of_two_kronecker_products(rank):
    rng = np.random.default_rng(rank)
    of = jax.jit(lambda lefts, rights, damping, X: ((M := KroneckerSum(lefts, rights, damping)).solve(X), M.mv(X)))

    def factor(n, size):
        A = rng.normal(size=(2, n, rank))
        return size * A @ A.transpose(0, 2, 1)

    for size in (1e-12, 1.0, 1e12):
        scale = np.array([1.0, 1e-3])[:, None, None]
        lefts, rights, X = size * scale * factor(5, 1.0), factor(4, 1.0), rng.normal(size=(5, 4))
        damped = [[A + 1e-3 * np.trace(A) / len(A) * np.eye(len(A)) for A in factors] for factors in (lefts, rights)]
        dense = sum(np.kron(L, R) for L, R in zip(*damped, strict=True))
        solution, product = of(lefts, rights, 1e-3, X)
        np.testing.assert_allclose(product.reshape(-1), dense @ X.reshape(-1), rtol=1e-10, atol=1e-10 * size)
        want = np.linalg.solve(dense, X.reshape(-1))
        np.testing.assert_allclose(solution.reshape(-1), want, rtol=1e-8, atol=1e-8 * np.abs(want).max())
        alone, _ = of(lefts * np.array([1.0, 0.0])[:, None, None], rights, 1e-3, X)  # a pair that is zero
        want = np.linalg.solve(np.kron(damped[0][0], damped[1][0]), X.reshape(-1))
        np.testing.assert_allclose(alone.reshape(-1), want, rtol=1e-8, atol=1e-8 * np.abs(want).max())
        for damping in (1e-3, 1e-9, 0.0):  # positive, however singular
            columns = np.stack([of(lefts, rights, damping, E.reshape(5, 4))[0].reshape(-1) for E in np.eye(20)])
            np.testing.assert_allclose(columns, columns.T, atol=1e-9 * np.abs(columns).max())
            assert np.all(np.isfinite(columns)) and all(V @ columns @ V > 0 for V in rng.normal(size=(20, 20)))
    nothing, _ = of(0 * lefts, rights, 1e-3, X)
    np.testing.assert_array_equal(nothing, 0)
