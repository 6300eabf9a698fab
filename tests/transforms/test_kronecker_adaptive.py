"""SOAP and Shampoo against the equations of their papers, leaf by leaf in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg
from jax.extend import core
from small import edges, exact, grid, network, partition, value

import sciml_opt as so

SHAPES = {"scalar": (), "bias": (5,), "W": (3, 4), "V": (3, 4), "wide": (3, 6), "kernel": (2, 2, 1, 3)}
FACTORS = {"scalar": "", "bias": "0", "W": "11", "V": "11", "wide": "10", "kernel": "1101"}  # which axes have one
MAX_DIM = 4
SCALE_BY = {"soap": so.scale_by_soap, "shampoo": so.scale_by_shampoo}
METHODS = {"soap": so.soap, "shampoo": so.shampoo}
B1, B2, EPS, DAMPING, REFRESH = 0.8, 0.9, 1e-6, 1e-3, 2
STEPS = 9


def gradients(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}


@jax.jit
def update(tx, grads, state, params):
    return tx.update(grads, state, params)


@jax.jit
def init(tx, params):
    return tx.init(params)


def run(tx, given, params):
    """The updates, and the states, the first one included."""
    states, found = [init(tx, params)], []
    for grads in given:
        one, state = update(tx, grads, states[-1], params)
        found, states = [*found, one], [*states, state]
    return found, states


def build(name, **changes):
    numbers = {"b1": B1, "b2": B2, "eps": EPS, "refresh": REFRESH, "max_dim": MAX_DIM}
    return SCALE_BY[name](**numbers | ({"damping": DAMPING} if name == "shampoo" else {}) | changes)


@pytest.fixture(scope="module")
def runs():
    given = [gradients(seed) for seed in range(STEPS)]
    return given, {name: run(build(name), given, gradients(0)) for name in SCALE_BY}


def carried(state):
    """Leaf name -> momentum, moments, factors, bases: what the stacks hold."""
    stacks = {stack.momentum.shape[1:]: stack for stack in state.stacks}
    rows, leaves = dict.fromkeys(stacks, 0), {}
    for name in sorted(SHAPES):  # the order of the leaves of a dict
        shape, row = SHAPES[name], rows[SHAPES[name]]
        leaves[name] = jax.tree.map(lambda x, row=row: np.asarray(x[row]), tuple(stacks[shape]))
        rows[shape] += 1
    return leaves


def unfolded(x, axis):
    return np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)


def along(matrices, x):
    """Every axis multiplied by its matrix."""
    for axis, A in enumerate(matrices):
        if A is not None:
            rest = np.moveaxis(x, axis, 0).shape[1:]
            x = np.moveaxis((A @ unfolded(x, axis)).reshape(len(A), *rest), 0, axis)
    return x


def transposed(matrices):
    return [None if A is None else A.T for A in matrices]


def mean(decay, old, new):
    return decay * old + (1 - decay) * new


def adam(M, V, t):
    return M / (1 - B1**t) / (np.sqrt(V / (1 - B2**t)) + EPS)


def new_factors(G, factors):
    grams = (unfolded(G, axis) @ unfolded(G, axis).T for axis in range(G.ndim))
    return [None if C is None else mean(B2, C, gram) for C, gram in zip(factors, grams, strict=True)]


def new_bases(factors, bases, moments, t):
    """After `t` earlier gradients; the moments follow their columns."""
    found = list(bases)
    for axis, (C, Q) in enumerate(zip(factors, bases, strict=True)):
        if C is None:
            continue
        if t == 0:
            found[axis] = np.linalg.eigh(C)[1][:, ::-1]
        elif t % REFRESH == 0:
            order = np.argsort(-np.diag(Q.T @ C @ Q))
            found[axis] = np.linalg.qr(C @ Q[:, order])[0]
            moments = np.take(moments, order, axis)
    return found, moments


def soap_leaf(G, leaf, t):
    M, V, factors, Q = leaf
    factors_after, direction = new_factors(G, factors), np.zeros_like(G)
    if t > 0:  # the first gradient makes the bases only
        M = mean(B1, M, G)
        V = mean(B2, V, along(transposed(Q), G) ** 2)
        direction = along(Q, adam(along(transposed(Q), M), V, t))
    Q, V = new_bases(factors_after, Q, V, t)
    return direction, (M, V, factors_after, Q)


def shampoo_leaf(G, leaf, t):
    M, V, factors, Q = leaf
    M, V, factors = mean(B1, M, G), mean(B2, V, G**2), new_factors(G, factors)
    Q, _ = new_bases(factors, Q, V, t)
    A = adam(M, V, t + 1)
    k = sum(C is not None for C in factors)
    if k == 0:
        return A, (M, V, factors, Q)
    roots = []
    for C, columns in zip(factors, Q, strict=True):
        if C is None:
            roots.append(None)
            continue
        spectrum = np.maximum(np.diag(columns.T @ C @ columns), 0)
        roots.append(columns @ np.diag((spectrum + DAMPING * spectrum.max()) ** (-1 / (2 * k))) @ columns.T)
    S = along(roots, M)
    return np.linalg.norm(A) / np.linalg.norm(S) * S, (M, V, factors, Q)


REFERENCE = {"soap": soap_leaf, "shampoo": shampoo_leaf}


@pytest.mark.parametrize("name", SCALE_BY)
def test_every_step_is_that_of_the_paper(name, runs):
    given, found = runs
    updates, states = found[name]
    assert [int(state.steps) for state in states] == list(range(STEPS + 1))
    for t in range(STEPS):
        before, after = carried(states[t]), carried(states[t + 1])
        for leaf in SHAPES:
            want, (M, V, factors, Q) = REFERENCE[name](given[t][leaf], before[leaf], t)
            np.testing.assert_allclose(updates[t][leaf], want, rtol=1e-8, atol=1e-10)
            assert "".join("01"[C is not None] for C in factors) == FACTORS[leaf]
            got = after[leaf]
            for one, other in ((got[0], M), (got[1], V), *zip(got[2], factors, strict=True)):
                if other is not None:
                    np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
            for one, other in zip(got[3], Q, strict=True):
                if other is None:
                    assert one is None
                else:  # up to the sign of a column
                    np.testing.assert_allclose(np.abs(one.T @ other), np.eye(len(one)), atol=1e-7)


def test_the_first_shampoo_step_has_the_dense_roots(runs):
    given, found = runs
    G, got = given[0]["W"], found["shampoo"][0][0]["W"]
    L, R = (1 - B2) * G @ G.T, (1 - B2) * G.T @ G
    left, right = (
        scipy.linalg.fractional_matrix_power(C + DAMPING * np.linalg.norm(C, 2) * np.eye(len(C)), -1 / 4)
        for C in (L, R)
    )
    S = left @ G @ right
    A = np.sign(G)  # Adam's first step
    np.testing.assert_allclose(got, np.linalg.norm(A) / np.linalg.norm(S) * S, rtol=1e-5)  # eps


@jax.numpy_dtype_promotion("standard")  # optax mixes dtypes
def test_vectors_and_scalars_are_adams(runs):
    given, found = runs
    tx = optax.scale_by_adam(B1, B2, EPS)
    for name, skipped in (("soap", 1), ("shampoo", 0)):
        state = tx.init(given[0])
        for t in range(skipped, STEPS):
            want, state = tx.update(given[t], state)
            for leaf in ("scalar", "bias"):
                np.testing.assert_allclose(found[name][0][t][leaf], want[leaf], rtol=1e-12)
    assert not np.allclose(found["soap"][0][-1]["W"], want["W"], rtol=0.1)


def test_soap_turns_with_the_coordinates():
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (3, 4))
    plain = [rng.normal(size=(3, 4)) for _ in range(6)]
    last = lambda given: np.asarray(run(build("soap"), [{"W": G} for G in given], {"W": given[0]})[0][-1]["W"])
    got, want = last([left @ G @ right.T for G in plain]), left @ last(plain) @ right.T
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)


def counted(jaxpr, primitive):
    inner = (sub for eqn in jaxpr.eqns for sub in core.jaxprs_in_params(eqn.params))
    return sum(eqn.primitive.name == primitive for eqn in jaxpr.eqns) + sum(counted(sub, primitive) for sub in inner)


@pytest.mark.parametrize("name", SCALE_BY)
def test_leaves_of_one_shape_share_their_decompositions(name):
    """Three hidden layers: one eigh and one QR for each of the two sides."""
    params = {key: np.ones((3, 4)) for key in "abc"}
    state = build(name).init(params)
    program = jax.make_jaxpr(build(name).update)(params, state, params)
    assert counted(program.jaxpr, "eigh") == counted(program.jaxpr, "qr") == 2
    assert jax.tree.map(jnp.shape, state.stacks[0].bases) == ((3, 3, 3), (3, 4, 4))


def shape(tree):
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", METHODS)
def test_float32_fresh_numbers_zeros_and_broken_gradients(name):
    given = [{key: gradients(t, np.float32)[key] for key in ("scalar", "bias", "W", "V")} for t in range(5)]
    given = [grads | {"V": np.zeros((3, 4), np.float32)} for grads in given]
    params = given[0]
    step = jax.jit(lambda tx, grads, state, params: tx.update(grads, state, params))
    tx, others = METHODS[name](1e-3), METHODS[name](2e-3, 0.8, 0.99, 1e-6, refresh=3, weight_decay=0.1)
    state = init(tx, params)
    first = shape(state)
    assert {str(kind) for _, kind, _ in first} == {"float32", "int32"} and not any(weak for _, _, weak in first)
    for grads in given:
        updates, state = step(tx, grads, state, params)
        assert shape(state) == first and {str(leaf.dtype) for leaf in jax.tree.leaves(updates)} == {"float32"}
    assert np.all(updates["V"] == 0) and np.all(updates["W"] != 0)  # no gradient, no step
    huge = {key: np.full_like(leaf, 1e30) for key, leaf in params.items()}  # its square is infinite
    for broken in (huge, params | {"bias": np.full(5, np.nan, np.float32)}):
        updates, after = step(others, broken, state, params)
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates))
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(old, new)
    updates, _ = step(others, given[0], after, params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates)) and np.all(updates["W"] != 0)
    assert step._cache_size() == 1


def test_schedule_and_weight_decay_make_optaxs_chain():
    rate = optax.linear_schedule(1e-2, 1e-3, 3)
    chain = optax.chain(so.scale_by_soap(), optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(rate))
    params = {"W": gradients(7)["W"]}

    @jax.jit
    def ends(given):
        def three(tx):
            def body(carry, grads):
                updates, state = tx.update(grads, carry[1], carry[0])
                return (optax.apply_updates(carry[0], updates), state), None

            return jax.lax.scan(body, (params, tx.init(params)), given)[0][0]

        return three(so.soap(rate, weight_decay=0.1)), three(chain)

    got, want = ends({"W": jnp.stack([gradients(t)["W"] for t in range(3)])})
    np.testing.assert_allclose(got["W"], want["W"], rtol=1e-12)


STATIC = partition(network())[1]
ADVECTION = jnp.array([1.0, 0.5])
OBJECTIVE = so.Objective(
    interior=so.Term(lambda u, x: jax.jvp(u, (x,), (ADVECTION.astype(x.dtype),))[1] - exact(x)),
    boundary=so.Term(value, weight=4.0),
)


@jax.jit
@jax.vmap
def trained(params):
    """The losses after 300 steps of Adam, SOAP and Shampoo."""
    loss = OBJECTIVE.bind({"interior": grid(6), "boundary": edges(4)}, static=STATIC)

    def train(tx):
        def body(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return loss(jax.lax.scan(body, (params, tx.init(params)), None, length=300)[0][0])

    return train(optax.adam(1e-2)), train(so.soap(1e-2)), train(so.shampoo(1e-2))


@jax.numpy_dtype_promotion("standard")  # optax mixes dtypes
def test_a_pinn_in_float32_trains_better_than_with_adam():
    starts = [partition(network(seed, dtype=jnp.float32))[0] for seed in range(5)]
    adam, soap, shampoo = trained(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts))
    assert adam.dtype == soap.dtype == shampoo.dtype == jnp.float32
    assert np.all(soap < adam) and np.median(shampoo) < np.median(adam)


@pytest.mark.bad_input
@pytest.mark.parametrize("method", METHODS.values())
def test_errors(method):
    for wrong, message in (
        ({"b1": 1.0}, "b1 must be less than 1"),
        ({"b2": -0.1}, "b2 must be at least 0"),
        ({"eps": 0.0}, "eps must be greater than 0"),
        ({"refresh": 0}, "refresh must be a positive integer, got 0"),
        ({"max_dim": 2.5}, "max_dim must be a positive integer, got 2.5"),
        ({"learning_rate": -1.0}, "learning_rate must be at least 0"),
        ({"weight_decay": np.nan}, "weight_decay must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            method(**wrong)
    with pytest.raises(ValueError, match="damping must be greater than 0"):
        so.shampoo(damping=0.0)
    tx, params = method(), {"a": np.ones((2, 3)), "b": np.ones(3)}
    for empty in ({}, {"a": None}):
        with pytest.raises(ValueError, match="params has no array leaves"):
            tx.init(empty)
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int"):
        tx.init({"n": np.arange(3)})
    with pytest.raises(TypeError, match="must be real"):
        tx.init({"z": np.ones(3, complex)})
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"update\(params=...\) is needed"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="updates must have the shapes and dtypes of the parameters"):
        tx.update({"a": np.ones((3, 2)), "b": np.ones(3)}, state, params)
