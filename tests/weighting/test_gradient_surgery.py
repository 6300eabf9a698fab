"""Gradients of single terms, and what is made of them: PCGrad, ConFIG, dual cones, MultiAdam."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from small import (
    BATCH,
    POISSON,
    check_steps,
    exact,
    flat,
    grid,
    network,
    partition,
    problem,
    relative,
    runner,
    value,
)

import sciml_opt as so

# ---------------------------------------------------------------- objectives whose gradients are known


def slope(params, x):
    return jnp.vdot(ravel_pytree(params)[0], x)


def identity(z, x):
    return z[0]


def linear(rows):
    """A loss whose term `k` has the gradient `rows[k]`, and parameters of that size."""
    terms = {f"t{k}": so.Term(slope, outer=identity) for k in range(len(rows))}
    return so.Objective(**terms).bind({f"t{k}": row[None] for k, row in enumerate(rows)}, static=None)


def misfit(params, point):
    a, b = point
    return jnp.vdot(ravel_pytree(params)[0], a) - b


TERMS = ("a", "b", "c")
QUADRATIC = so.Objective(a=so.Term(misfit), b=so.Term(misfit, weight=30.0), c=so.Term(misfit, weight=0.01))
SHAPES = {"scalar": (), "vector": (3,), "matrix": (2, 2), "three": (1, 2, 1), "four": (1, 1, 2, 1)}  # 12 parameters


def quadratic(dtype=np.float64, broken=False):
    """Parameters of every shape, a least-squares loss on them, and its gradients in NumPy."""
    rng = np.random.default_rng(0)
    data = {name: (rng.normal(size=(5, 12)), rng.normal(size=5)) for name in TERMS}
    params = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in SHAPES.items()}
    weights = {"a": 1.0, "b": 30.0, "c": 0.01}

    def gradients(theta):
        return np.stack([weights[k] / 5 * data[k][0].T @ (data[k][0] @ theta - data[k][1]) for k in TERMS])

    batch = {name: (a, b * np.nan if broken and name == "a" else b) for name, (a, b) in data.items()}
    return params, QUADRATIC.bind(batch, static=None), gradients


def update(tx, loss, params, state):
    grad = jax.grad(loss)(params)
    return tx.update(grad, state, params, grad=grad, value_fn=loss, anything=3)


surgery = jax.jit(update)


def direction(tx, rows):
    """What the transformation makes of these gradients."""
    params = jnp.ones(rows.shape[1])
    return np.asarray(surgery(tx, linear(rows), params, tx.init(params))[0])


def cosines(rows, g):
    return rows @ g / np.linalg.norm(rows, axis=1) / np.linalg.norm(g)


# ---------------------------------------------------------------- gradients of single terms


def flops(f, *args):
    return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]


def test_all_gradients_cost_one_gradient_of_the_sum():
    params, loss = problem(so.problems.get("poisson2d").objective, so.problems.get("poisson2d").batch())
    assert flops(loss.gradients, params) <= 1.1 * flops(jax.value_and_grad(loss), params)


def branch(model, f):
    return jnp.append(model(f), 1.0)


OPERATOR = so.Objective(data=so.Term(so.Product(branch, branch), weight=2.0), value=so.Term(value, weight=3.0))
PAIRS = {"data": so.ProductBatch(grid(2), grid(3), np.ones((4, 9))), "value": grid(2)}


def test_values_and_gradients_of_single_terms():
    params, static = partition(network())
    where = jax.tree.map(lambda leaf: leaf.ndim == 2, params)  # no biases
    for loss in (OPERATOR.bind(PAIRS, static=static), OPERATOR.bind(PAIRS, static=static, where=where)):
        values, grads, sums, want = jax.jit(
            lambda p, loss=loss: (*loss.gradients(p), jax.value_and_grad(loss)(p), jax.jacrev(loss.values)(p))
        )(params)
        assert list(values) == list(grads) == list(loss.terms)
        for name in loss.terms:
            assert relative(grads[name], want[name]) < 1e-12
        np.testing.assert_allclose(sum(values.values()), sums[0], rtol=1e-12)
        assert relative(sum(flat(grad) for grad in grads.values()), sums[1]) < 1e-12
    frozen = [leaf for leaf in jax.tree.leaves(grads) if leaf.ndim < 2]
    assert np.all(flat(frozen) == 0)

    params, loss, gradients = quadratic()
    grads = loss.gradients(params)[1]
    np.testing.assert_allclose([flat(grads[name]) for name in TERMS], gradients(flat(params)), rtol=1e-12)
    assert [list(part) for part in loss.gradients(params, ["b"])] == [["b"], ["b"]]
    with pytest.raises(ValueError, match=r"no terms \['edge'\]; its terms are \['a', 'b', 'c'\]"):
        loss.gradients(params, ["edge"])


# ---------------------------------------------------------------- PCGrad

RNG = np.random.default_rng(0)


def pcgrad(rows, orders):
    out = []
    for i, order in enumerate(orders):
        g = rows[i].copy()
        for j in order:
            if g @ rows[j] < 0:
                g -= g @ rows[j] / (rows[j] @ rows[j]) * rows[j]
        out.append(g)
    return np.sum(out, 0)


def test_pcgrad_of_two_conflicting_gradients():
    rows = np.array([[1.0, 0.0, 2.0], [-3.0, 1.0, 0.5]])
    got = direction(so.pcgrad(), rows)
    np.testing.assert_allclose(got, pcgrad(rows, [[1], [0]]), rtol=1e-14)
    assert np.all(rows @ got > 0) and relative(got, rows.sum(0)) > 0.1


def test_pcgrad_projects_in_a_new_random_order_every_step():
    rows = np.array([[1.0, 0.0, 0.0], [-2.0, 1.0, 0.3], [-2.0, -1.0, 0.2]])
    others = [list(itertools.permutations([j for j in range(3) if j != i])) for i in range(3)]
    allowed = np.stack([pcgrad(rows, orders) for orders in itertools.product(*others)])
    tx, params = so.pcgrad(1), jnp.ones(3)
    state, seen = tx.init(params), set()
    for _ in range(12):
        got, state = surgery(tx, linear(rows), params, state)
        errors = np.linalg.norm(allowed - np.asarray(got), axis=1)
        assert errors.min() < 1e-14
        seen.add(errors.argmin())
    assert len(seen) > 1
    again = [surgery(so.pcgrad(seed), linear(rows), params, tx.init(params))[0] for seed in (1, 1, 2, 3, 4)]
    np.testing.assert_array_equal(again[0], again[1])
    assert any(relative(again[0], other) > 0.01 for other in again[2:])


def test_pcgrad_without_conflicts_is_the_gradient():
    rows = np.abs(RNG.normal(size=(3, 6)))
    np.testing.assert_allclose(direction(so.pcgrad(), rows), rows.sum(0), rtol=1e-15)


# ---------------------------------------------------------------- ConFIG


def config(rows):
    """By the normal equations in extended precision: independent of QR and pseudo-inverse."""
    U = (rows / np.linalg.norm(rows, axis=1)[:, None]).astype(np.longdouble)
    G, rhs = U @ U.T, np.ones(len(U), np.longdouble)
    for i in range(len(U)):  # Gauss elimination; the Gram matrix needs no pivots
        for j in range(i + 1, len(U)):
            factor = G[j, i] / G[i, i]
            G[j], rhs[j] = G[j] - factor * G[i], rhs[j] - factor * rhs[i]
    c = np.zeros_like(rhs)
    for i in reversed(range(len(U))):
        c[i] = (rhs[i] - G[i] @ c) / G[i, i]
    d = U.T @ c
    u = (d / np.sqrt(d @ d)).astype(float)
    return (rows @ u).sum() * u


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    shape=st.sampled_from([(2, 5), (3, 12), (4, 30), (5, 5)]),
    exponent=st.floats(0, 4),
    scales=st.lists(st.floats(-6, 6), min_size=5, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_config_has_the_same_positive_cosine_with_every_gradient(shape, exponent, scales, seed):
    """For rounding eps each cosine is `1 / |d|` to `C eps cond(U)`, relative; here C = 100."""
    (count, size), rng = shape, np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(count, count)))[0]
    right = np.linalg.qr(rng.normal(size=(size, count)))[0]
    rows = left * np.geomspace(1, 10.0**-exponent, count) @ right.T
    rows /= np.linalg.norm(rows, axis=1)[:, None]
    tolerance = 100 * np.finfo(float).eps * np.linalg.cond(rows)
    rows *= 10.0 ** np.array(scales[:count])[:, None]
    got = direction(so.conflict_free_gradient(), rows)
    cos = cosines(rows, got)
    assert np.all(cos > 0)
    assert np.ptp(cos) <= tolerance * cos.max()
    assert relative(got, config(rows)) <= tolerance


def test_config_of_dependent_zero_and_opposite_gradients():
    tx = so.conflict_free_gradient()
    a, b = RNG.normal(size=(2, 8))
    np.testing.assert_allclose(direction(tx, a[None]), a, rtol=1e-14)  # one term: its gradient
    with_zero = np.stack([a, 0 * a, b])
    np.testing.assert_allclose(direction(tx, with_zero), config(np.stack([a, b])), rtol=1e-12)
    assert np.all(direction(tx, np.zeros((3, 8))) == 0)
    np.testing.assert_allclose(direction(tx, np.stack([a, 3 * a])), 4 * a, rtol=1e-13)
    assert np.all(direction(tx, np.stack([a, -7 * a])) == 0)  # no direction lowers both
    for rows in (np.stack([a, b, a + b]), np.stack([a, b, a - b, -2 * a + b]), RNG.normal(size=(5, 3))):
        U = rows / np.linalg.norm(rows, axis=1)[:, None]
        u = np.linalg.lstsq(U, np.ones(len(U)), rcond=1e-12)[0]
        u /= np.linalg.norm(u)
        np.testing.assert_allclose(direction(tx, rows), (rows @ u).sum() * u, rtol=1e-11)


def mconfig(gradients, path, b1=0.9, b2=0.999, eps=1e-8):
    """Directions of M-ConFIG along a path, as in the paper's algorithm, with a counter for every term."""
    K, P = gradients(path[0]).shape
    m, n, M, v = np.zeros((K, P)), np.zeros(K, int), np.zeros(P), np.zeros(P)
    for t, theta in enumerate(path, 1):
        i = (t - 1) % K
        m[i], n[i] = b1 * m[i] + (1 - b1) * gradients(theta)[i], n[i] + 1
        known = n > 0
        G = config(m[known] / (1 - b1 ** n[known])[:, None])
        M_old, M = M, G * (1 - b1**t)
        v = b2 * v + (1 - b2) * ((M - b1 * M_old) / (1 - b1)) ** 2
        yield G / (np.sqrt(v / (1 - b2**t)) + eps)


def test_momentum_config_step_by_step():
    params, loss, gradients = quadratic()
    scale = so.momentum_conflict_free_gradient(QUADRATIC, b1=0.8, b2=0.95, eps=1e-3)
    tx = optax.chain(scale, optax.scale_by_learning_rate(0.05))
    path, steps = runner(tx, loss, 11, lambda state: state[0].steps)(params)
    check_steps(path, [-0.05 * d for d in mconfig(gradients, path[:-1], 0.8, 0.95, 1e-3)])
    np.testing.assert_array_equal(steps, np.arange(1, 12))


def twin(u, x):
    return jax.jvp(u, (x,), (jnp.ones_like(x),))[1] - exact(x)


def test_a_step_of_momentum_config_costs_one_term():
    """Of three equal ones; that the caller asks for the whole gradient does not matter."""
    terms = {name: so.Term(twin) for name in TERMS}
    params, loss = problem(
        so.Objective(**terms), {name: s * grid(15) for name, s in zip(TERMS, (1.0, 0.9, 0.8), strict=True)}
    )
    tx = so.momentum_conflict_free_gradient(TERMS)
    step = flops(lambda p, state: surgery(tx, loss, p, state), params, tx.init(params))
    one = flops(lambda p: loss.gradients(p, ["a"]), params)
    assert flops(lambda p: loss.gradients(p), params) > 2.9 * one
    assert step < 1.2 * one


# ---------------------------------------------------------------- dual cones


def dual_cone(g_r, g_b, variant):
    g, u_r, u_b = g_r + g_b, g_r / np.linalg.norm(g_r), g_b / np.linalg.norm(g_b)
    if variant == "center":
        c = u_r + u_b
        return c @ g / (c @ c) * c
    without_r, without_b = g - g @ u_r * u_r, g - g @ u_b * u_b
    if g @ g_r >= 0 and g @ g_b >= 0:
        return g
    if variant == "average":
        return (without_r + without_b) / 2
    return without_r if g @ g_r < 0 else without_b


@pytest.mark.parametrize("variant", ["center", "projection", "average"])
def test_dual_cone(variant):
    conflicts, tx = 0, so.dual_cone_gradient(["t0", "t2"], variant=variant)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(3, 6)) * 10 ** rng.uniform(-2, 2, size=(3, 1))
        rows[1] -= seed % 3 * rows[0]  # so that many conflict
        groups = np.stack([rows[0] + rows[2], rows[1]])
        got = direction(tx, rows)
        np.testing.assert_allclose(got, dual_cone(*groups, variant), rtol=1e-9)
        assert np.all(cosines(groups, got) > -1e-13)
        conflicts += np.any(groups @ groups.sum(0) < 0)
    assert 5 < conflicts < 35


def test_dual_cone_of_zero_and_opposite_gradients_and_of_two_terms():
    a, b = RNG.normal(size=(2, 6))
    for variant in ("center", "projection", "average"):
        tx = so.dual_cone_gradient("t0", variant=variant)
        for rows in (np.stack([a, 0 * a]), np.stack([0 * a, a])):
            np.testing.assert_allclose(direction(tx, rows), a, rtol=1e-14)
        assert np.all(direction(tx, np.zeros((2, 6))) == 0)
    center = so.dual_cone_gradient("t0")
    assert np.all(direction(center, np.stack([a, -7 * a])) == 0)
    rows = np.stack([a, b])  # for two terms the center is ConFIG
    np.testing.assert_allclose(direction(center, rows), direction(so.conflict_free_gradient(), rows), rtol=1e-12)


# ---------------------------------------------------------------- MultiAdam


def test_multi_adam_step_by_step():
    params, loss, gradients = quadratic()
    b1, b2, eps, n = 0.8, 0.95, 1e-3, 2
    tx = so.multi_adam(lambda step: 0.1 / (step + 1).astype(float), ["b", ["a", "c"]], b1=b1, b2=b2, eps=eps)
    path, count = runner(tx, loss, 8, lambda state: state.steps)(params)
    m, v, steps = np.zeros((n, 12)), np.zeros((n, 12)), []
    for t, theta in enumerate(path[:-1], 1):
        rows = gradients(theta)
        g = np.stack([rows[1], rows[0] + rows[2]])
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        steps.append(-0.1 / t * np.mean(m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps), axis=0))
    check_steps(path, steps)
    assert count[-1] == 8


@jax.numpy_dtype_promotion("standard")  # for optax.adam
def test_with_one_term_they_are_the_gradient_or_adam():
    params, _, _ = quadratic()
    loss = so.Objective(a=so.Term(misfit)).bind({"a": (RNG.normal(size=(5, 12)), np.ones(5))}, static=None)
    rate = optax.scale_by_learning_rate(0.1)
    alone = {
        "gradient": optax.sgd(0.1),
        "pcgrad": optax.chain(so.pcgrad(), rate),
        "config": optax.chain(so.conflict_free_gradient(), rate),
        "adam": optax.adam(0.1, b1=0.9, b2=0.99),
        "m-config": optax.chain(so.momentum_conflict_free_gradient(["a"], b1=0.9, b2=0.99), rate),
        "multi_adam": so.multi_adam(0.1, ["a"], b1=0.9),
        "scale_by_multi_adam": optax.chain(so.scale_by_multi_adam(["a"], b1=0.9), rate),
    }
    paths = {name: runner(tx, loss, 5, lambda state: 0)(params)[0] for name, tx in alone.items()}
    for name in ("pcgrad", "config"):
        np.testing.assert_allclose(paths[name], paths["gradient"], rtol=1e-12)
    for name in ("m-config", "multi_adam", "scale_by_multi_adam"):
        np.testing.assert_allclose(paths[name], paths["adam"], rtol=1e-8)


# ---------------------------------------------------------------- the contract of all

MOMENTUM = functools.partial(so.momentum_conflict_free_gradient, QUADRATIC)
ALL = {
    "pcgrad": (so.pcgrad, {"seed": 3}),
    "conflict_free_gradient": (so.conflict_free_gradient, {}),
    "momentum_conflict_free_gradient": (MOMENTUM, {"b1": 0.7, "b2": 0.8, "eps": 1e-4}),
    "dual_cone_gradient": (functools.partial(so.dual_cone_gradient, "a"), {}),
    "multi_adam": (functools.partial(so.multi_adam, groups=QUADRATIC), {"b1": 0.7, "b2": 0.8, "eps": 1e-4}),
}


def make(name, **numbers):
    if name == "multi_adam":
        numbers = {"learning_rate": 0.01} | numbers
    return ALL[name][0](**numbers)


def kinds(tree):
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ALL)
def test_jit_scan_vmap_dtypes_and_traces(name, dtype):
    params, loss, _ = quadratic(dtype)
    tx = make(name)
    step = jax.jit(eqx.debug.assert_max_traces(max_traces=1)(update))
    first = tx.init(params)
    updates, second = step(tx, loss, params, first)
    assert kinds(updates) == kinds(params) and jax.tree.structure(updates) == jax.tree.structure(params)
    assert kinds(second) == kinds(first)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(second)} <= {np.dtype(dtype).name, "int32"}
    last, third = step(tx, loss, params, second)
    numbers = ALL[name][1] | ({"learning_rate": 0.5} if name == "multi_adam" else {})
    other, _ = step(make(name, **numbers), loss, params, second)  # other numbers do not retrace
    assert not numbers or name == "pcgrad" or relative(other, last) > 0.01

    def two(params):
        def body(state, _):
            updates, state = surgery(tx, loss, params, state)
            return state, updates

        return jax.lax.scan(body, tx.init(params), None, length=2)

    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    state, path = jax.jit(jax.vmap(two))(lanes)
    tolerance = 1e-3 if dtype == np.float32 else 1e-9
    assert relative(jax.tree.map(lambda leaf: leaf[0, 1], path), last) < tolerance
    assert relative([*(leaf[0] for leaf in jax.tree.leaves(state)), 1.0], [*jax.tree.leaves(third), 1.0]) < tolerance


@pytest.mark.parametrize("name", ALL)
def test_nan_moves_nothing_and_leaves_the_state_usable(name):
    (params, loss, _), (_, broken, _) = quadratic(), quadratic(broken=True)
    tx = make(name)
    first = tx.init(params)
    updates, state = surgery(tx, broken, params, first)
    assert relative(jax.tree.map(lambda u: 1 + u, updates), jax.tree.map(jnp.ones_like, updates)) == 0
    for old, new in zip(jax.tree.leaves(first), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(old, new)
    got, want = surgery(tx, loss, params, state)[0], surgery(tx, loss, params, first)[0]
    assert np.all(np.isfinite(flat(got))) and np.any(flat(got) != 0)
    np.testing.assert_array_equal(flat(got), flat(want))


def test_gradients_whose_squares_are_out_of_range():
    """In float32 1e-25 squared is 0 and 1e25 squared is infinite."""
    rows = np.array([[1.0, 0.0, 2.0], [-3.0, 1.0, 0.5]])
    params = jnp.ones(3, jnp.float32)
    for tx in (so.pcgrad(), so.conflict_free_gradient(), so.dual_cone_gradient("t0")):
        want = direction(tx, rows)
        for factor in (1e-25, 1e25):
            got = surgery(tx, linear((factor * rows).astype(np.float32)), params, tx.init(params))[0]
            assert relative(np.asarray(got, float) / factor, want) < 1e-5


@pytest.mark.bad_input
def test_errors():
    params, loss, _ = quadratic()

    def attempt(tx, **given):
        grad = jax.grad(loss)(params)
        return tx.update(grad, tx.init(params), params, **({"grad": grad, "value_fn": loss} | given))

    for name in ALL:
        with pytest.raises(TypeError, match="must be a bound objective"):
            attempt(make(name), value_fn=lambda p: loss(p))
        with pytest.raises(ValueError, match="must be the gradient itself"):
            attempt(make(name), grad=params)
        with pytest.raises(TypeError, match="has dtype int"):
            make(name).init(jnp.arange(3))
        with pytest.raises(ValueError, match="no array leaves"):
            make(name).init({})
    with pytest.raises(ValueError, match=r"terms must be all the terms .* got \['a', 'b'\]"):
        attempt(so.momentum_conflict_free_gradient(["a", "b"]))
    with pytest.raises(TypeError, match="got the string 'a'"):
        so.momentum_conflict_free_gradient("a")
    with pytest.raises(ValueError, match=r"groups must be all the terms .* got \['a', 'a', 'b', 'c'\]"):
        attempt(so.multi_adam(0.1, ["a", ["a", "b"], "c"]))
    with pytest.raises(TypeError, match="got the string 'a'"):
        so.multi_adam(0.1, "a")
    for names in ("d", ["a", "b", "c"], []):
        with pytest.raises(ValueError, match="residual must name some of the terms"):
            attempt(so.dual_cone_gradient(names))
    with pytest.raises(ValueError, match=r"variant must be one of .* Did you mean 'center'"):
        so.dual_cone_gradient("a", variant="centre")
    for numbers, message in (({"b1": 1.0}, "b1 must be less than 1"), ({"eps": -1.0}, "eps must be at least 0")):
        with pytest.raises(ValueError, match=message):
            so.momentum_conflict_free_gradient(TERMS, **numbers)
        with pytest.raises(ValueError, match=message):
            so.scale_by_multi_adam(TERMS, **numbers)
    with pytest.raises(ValueError, match="learning_rate must be at least 0"):
        so.multi_adam(-0.1, TERMS)


# ---------------------------------------------------------------- what it is good for


@jax.numpy_dtype_promotion("standard")  # for optax.adam
def test_config_trains_where_a_weight_is_badly_chosen():
    """Poisson's equation with a boundary that counts 1e-4 times as much as it should, five starts."""
    static, points = partition(network())[1], grid(15)
    loss = POISSON.bind(BATCH, static=static).reweighted({"boundary": 1e-4})
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[partition(network(seed))[0] for seed in range(5)])

    def errors(tx):
        def train(params):
            def body(carry, _):
                params, state = carry
                grad = jax.grad(loss)(params)
                updates, state = tx.update(grad, state, params, grad=grad, value_fn=loss)
                return (optax.apply_updates(params, updates), state), None

            params, _ = jax.lax.scan(body, (params, tx.init(params)), None, length=500)[0]
            return jax.vmap(eqx.combine(params, static))(points)

        want = np.asarray(jax.vmap(exact)(points))
        return np.linalg.norm(np.asarray(jax.jit(jax.vmap(train))(starts)) - want, axis=1) / np.linalg.norm(want)

    plain, surgical = errors(optax.adam(0.01)), errors(optax.chain(so.conflict_free_gradient(), optax.adam(0.01)))
    assert np.median(surgical) < np.median(plain) / 2
