"""Weights, shifts and values of single points: self-adaptive, residual attention, causal, augmented Lagrangian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import BATCH, RITZ, RITZ_BATCH, flat, network, partition, problem, relative

import sciml_opt as so

# ---------------------------------------------------------------- other losses: factors and shifts of single points


def pair(u, x):
    return jnp.stack([u(x), jnp.sum(x) * u(x) ** 2])


BOTH = so.Objective(interior=so.Term(pair, weight=3.0), boundary=so.Term(lambda u, x: u(x) - x[0]))
RNG = np.random.default_rng(1)
FACTORS = {"interior": RNG.uniform(0.1, 3, 36), "boundary": RNG.uniform(0.1, 3, 16)}
SHIFTS = {"interior": RNG.normal(size=(36, 2)), "boundary": RNG.normal(size=16)}


def changed(params, loss):
    other = loss.reweighted(FACTORS).shifted(SHIFTS)
    lin = other.linearize(params)
    return {
        "z": loss.outputs(params),
        "ell": loss.point_values(params),
        "value": other(params),
        "grad": jax.grad(other)(params),
        "residual": other.residual(params),
        "lin": (lin.value, lin.grad, lin.residual, lin.jacobian.as_matrix()),
        "plain": loss.linearize(params).jacobian.as_matrix(),
        "ell of other": other.point_values(params, ["boundary"]),
    }


@functools.cache
def computed():
    params, loss = problem(BOTH, BATCH)
    return jax.jit(changed)(params, loss)


def test_factors_and_shifts_of_single_points():
    """In value, gradient, whitened residual and Jacobian, with weights of the points and of the term kept."""
    got = computed()
    z = {name: np.asarray(leaf) for name, leaf in got["z"].items()}
    assert z["interior"].shape == (36, 2) and z["boundary"].shape == (16, 1)
    for name in z:
        np.testing.assert_allclose(got["ell"][name], 0.5 * np.sum(z[name] ** 2, 1), rtol=1e-12)
    shifted = {"interior": z["interior"] + SHIFTS["interior"], "boundary": z["boundary"] + SHIFTS["boundary"][:, None]}
    scale = {"boundary": np.sqrt(FACTORS["boundary"] / 16), "interior": np.sqrt(3 * FACTORS["interior"] / 36)}
    rho = np.concatenate([(scale[name][:, None] * shifted[name]).reshape(-1) for name in ("boundary", "interior")])
    np.testing.assert_allclose(got["residual"], rho, rtol=1e-12)
    np.testing.assert_allclose(got["value"], 0.5 * rho @ rho, rtol=1e-12)
    np.testing.assert_allclose(got["ell of other"]["boundary"], 0.5 * np.sum(shifted["boundary"] ** 2, 1), rtol=1e-12)
    rows = np.sqrt(np.concatenate([FACTORS["boundary"], np.repeat(FACTORS["interior"], 2)]))
    J = rows[:, None] * np.asarray(got["plain"])
    np.testing.assert_allclose(got["lin"][3], J, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(flat(got["grad"]), J.T @ rho, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got["lin"][0], got["value"], rtol=1e-12)
    assert relative(got["lin"][1], got["grad"]) < 1e-11 and relative(got["lin"][2], rho) < 1e-12


def test_they_survive_chunks_parts_and_float32():
    params, loss = problem(BOTH, BATCH)
    whole, static = computed(), partition(network())[1]
    chunked = BOTH.bind(BATCH, static=static, chunk=7).reweighted(FACTORS).shifted(SHIFTS)
    np.testing.assert_allclose(jax.jit(lambda p: chunked(p))(params), whole["value"], rtol=1e-12)
    other = loss.reweighted(FACTORS).shifted(SHIFTS)
    parts = jax.jit(jax.vmap(lambda i: other.part(i, 4).outputs(params)["interior"]))(jnp.arange(4))
    want = np.asarray(whole["z"]["interior"]) + SHIFTS["interior"]
    np.testing.assert_allclose(np.sort(flat(parts)), np.sort(want.reshape(-1)), rtol=1e-12)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    value = jax.jit(lambda p: other(p))(single)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, whole["value"], rtol=1e-4)


def test_of_energies_and_products():
    params, loss = problem(RITZ, RITZ_BATCH)
    weights = np.linspace(0, 2, 36)
    values, other = jax.jit(lambda p: (loss.point_values(p), loss.reweighted({"energy": weights}).values(p)))(params)
    np.testing.assert_allclose(other["energy"], np.mean(weights * values["energy"]), rtol=1e-12)
    assert loss.squares == ("boundary",) and not loss.least_squares

    product = so.Product(lambda p, x: p * x, lambda p, y: p + y, lambda b, t, pair: b * t - pair)
    batch = so.ProductBatch(np.arange(1.0, 4.0), np.array([1.0, 5.0]), RNG.normal(size=(3, 2)))
    loss = so.Objective(a=so.Term(product)).bind({"a": batch})
    factors = RNG.uniform(size=(3, 2))
    p = jnp.asarray(0.7)
    values = np.asarray(loss.point_values(p)["a"])
    z = 0.7 * np.arange(1.0, 4.0)[:, None] * (0.7 + np.array([1.0, 5.0])) - batch.pair
    np.testing.assert_allclose(values, 0.5 * z**2, rtol=1e-12)
    np.testing.assert_allclose(loss.reweighted({"a": factors})(p), np.mean(factors * values), rtol=1e-12)
    with pytest.raises(ValueError, match="shifted needs terms of single points and least squares; 'a' is none"):
        loss.shifted({"a": np.zeros((3, 2))})


@pytest.mark.bad_input
def test_errors_of_other_losses():
    params, loss = problem(BOTH, BATCH)
    with pytest.raises(ValueError, match=r"reweighted needs of term 'interior' .* shape \(36,\); got \(35,\)"):
        loss.reweighted({"interior": np.ones(35)})
    with pytest.raises(ValueError, match=r"shifted needs of term 'boundary' .* N = 16; got \(15,\)"):
        loss.shifted({"boundary": np.ones(15)})
    with pytest.raises(ValueError, match=r"no terms \['inside'\]"):
        loss.shifted({"inside": np.ones(15)})
    with pytest.raises(ValueError, match="term 'interior' has 1 components a point, but its inner map has 2"):
        loss.shifted({"interior": np.ones(36)})(params)
    with pytest.raises(ValueError, match="shifted needs terms of single points and least squares; 'energy' is none"):
        problem(RITZ, RITZ_BATCH)[1].shifted({"energy": np.ones(36)})


# ---------------------------------------------------------------- the rules, around gradient descent


def misfit(params, point):
    return jnp.dot(params, point[:-1]) - point[-1]


DATA = {name: RNG.normal(size=(count, 7)) for name, count in (("a", 6), ("b", 2))}
QUADRATIC = so.Objective(a=so.Term(misfit), b=so.Term(misfit, weight=0.5))
START = RNG.normal(size=6)
WEIGHT = {"a": 1 / 6, "b": 0.5 / 2}


def residual(name, theta):
    return DATA[name][:, :-1] @ theta - DATA[name][:, -1]


def gradient(name, theta, weights):
    """Of `0.5 mean(weights z^2)` times the weight of the term."""
    return WEIGHT[name] * DATA[name][:, :-1].T @ (weights * residual(name, theta))


def follow(tx, steps):
    """The points before each step and after the last, and what the rule remembers in each step."""
    loss = QUADRATIC.bind(DATA)

    def body(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, updates), state), (params, state.rule)

    params = jnp.asarray(START)
    (last, _), (path, rules) = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), None, length=steps))(params)
    return np.vstack([path, last[None]]), rules


def check(path, a, b, rate=0.1):
    """Gradient descent with these weights of the points."""
    for theta, after, w_a, w_b in zip(path[:-1], path[1:], a, b, strict=True):
        step = -rate * (gradient("a", theta, w_a) + gradient("b", theta, w_b))
        np.testing.assert_allclose(after - theta, step, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("mask", ["square", "softplus"])
def test_self_adaptive(mask):
    tx = so.self_adaptive(optax.sgd(0.1), {"a": DATA["a"]}, learning_rate=0.3, mask=mask)
    path, rule = follow(tx, 5)
    m = np.square if mask == "square" else lambda x: np.log1p(np.exp(x))
    slope_of_m = (lambda x: 2 * x) if mask == "square" else lambda x: 1 / (1 + np.exp(-x))
    x, first, second = np.full(6, 1.0 if mask == "square" else np.log(np.e - 1)), np.zeros(6), np.zeros(6)
    for t, theta in enumerate(path[:-1], 1):
        slope = slope_of_m(x) * residual("a", theta) ** 2 / 2
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        x = x + 0.3 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(rule.weights["a"][t - 1], m(x), rtol=1e-10)
    check(path, rule.weights["a"], np.ones((5, 2)))
    assert np.all(np.diff(rule.weights["a"], axis=0) > 0)


def test_residual_attention():
    tx = so.residual_attention(optax.sgd(0.1), {"a": 6, "b": so.Weighted(DATA["b"], np.ones(2))}, decay=0.8, rate=0.5)
    path, rule = follow(tx, 5)
    x = {"a": np.ones(6), "b": np.ones(2)}
    for t, theta in enumerate(path[:-1]):
        for name in x:
            z = np.abs(residual(name, theta))
            x[name] = 0.8 * x[name] + 0.5 * z / z.max()
            np.testing.assert_allclose(rule.weights[name][t], x[name] ** 2, rtol=1e-10)
    check(path, rule.weights["a"], rule.weights["b"])


def test_augmented_lagrangian_step_by_step():
    tx = so.augmented_lagrangian(optax.sgd(0.1), {"b": DATA["b"]}, penalty=3.0, every=2)
    path, rule = follow(tx, 6)
    multipliers = np.zeros(2)
    for t, theta in enumerate(path[:-1]):
        z = residual("b", theta)
        if t in (2, 4):
            multipliers = multipliers + 3 * z
        np.testing.assert_allclose(rule.multipliers["b"][t, :, 0], multipliers, rtol=1e-10, atol=1e-15)
        of_b = WEIGHT["b"] * DATA["b"][:, :-1].T @ (multipliers + 3 * z)
        step = -0.1 * (gradient("a", theta, np.ones(6)) + of_b)
        np.testing.assert_allclose(path[t + 1] - theta, step, rtol=1e-9, atol=1e-14)


@jax.jit
def constrained(tx):
    result = so.train(jnp.asarray(START), QUADRATIC, tx, DATA, steps=60)
    return result.params, result.state.optimizer.rule.multipliers["b"]


def test_augmented_lagrangian_reaches_the_karush_kuhn_tucker_point():
    """Least squares with two linear constraints; a penalty alone stays a few hundredths off."""
    A, a, B, b = (part for name in ("a", "b") for part in (DATA[name][:, :-1], DATA[name][:, -1]))
    matrix = np.block([[A.T @ A / 6, B.T], [B, np.zeros((2, 2))]])
    solution = np.linalg.solve(matrix, np.concatenate([A.T @ a / 6, b]))
    theta, multipliers = solution[:6], solution[6:]

    got, found = constrained(so.augmented_lagrangian(so.levenberg_marquardt(), {"b": 2}, penalty=50.0, every=2))
    assert np.max(np.abs(residual("b", np.asarray(got)))) < 1e-10
    np.testing.assert_allclose(got, theta, rtol=1e-8)
    np.testing.assert_allclose(WEIGHT["b"] * found[:, 0], multipliers, rtol=1e-7, atol=1e-8)
    penalty = so.augmented_lagrangian(so.levenberg_marquardt(), {"b": 2}, penalty=50.0, every=10**6)
    assert np.max(np.abs(residual("b", np.asarray(constrained(penalty)[0])))) > 1e-4


def test_constraints_of_an_energy_and_of_several_outputs():
    """min 0.5 |p|^2 - c.p as an energy, subject to linear equations of which an inner map returns two a point."""
    rng = np.random.default_rng(3)  # of its own: the others' draws depend on which tests ran before
    c, equations = rng.normal(size=6), rng.normal(size=(2, 2, 6))
    objective = so.Objective(
        energy=so.Term(lambda p, x: p, outer=lambda z, x: 0.5 * jnp.vdot(z, z) - jnp.vdot(x, z)),
        constraint=so.Term(lambda p, rows: rows @ p - 1),
    )
    batch = {"energy": c[None], "constraint": equations}
    # L-BFGS, which goes on by slopes where others drown in the rounding of the energy, and the multipliers drift
    tx = so.augmented_lagrangian(so.lbfgs(), {"constraint": (2, 2)}, penalty=30.0, every=1)
    result = jax.jit(lambda p: so.train(p, objective, tx, batch, steps=100))(jnp.zeros(6))
    E = equations.reshape(4, 6)
    multipliers = np.linalg.solve(E @ E.T, E @ c - 1)
    np.testing.assert_allclose(result.params, c - E.T @ multipliers, rtol=1e-11)
    got = result.state.optimizer.rule.multipliers["constraint"].reshape(4) / 2  # a mean over two points
    np.testing.assert_allclose(got, multipliers, rtol=1e-11)


@pytest.mark.bad_input
def test_a_constraint_of_several_outputs_needs_its_shape():
    objective = so.Objective(a=so.Term(lambda p, x: jnp.stack([p[0], x * p[1]])))
    loss, params = objective.bind({"a": np.ones(4)}), jnp.ones(2)
    tx = so.augmented_lagrangian(optax.sgd(0.1), {"a": 4}, every=1)
    with pytest.raises(ValueError, match=r"'a' has 2 outputs, its multipliers 1: give constraints={'a': \(4, 2\)}"):
        tx.update(params, tx.init(params), params, value_fn=loss)
    with pytest.raises(TypeError, match=r"constraints must be a dict .* got Objective"):
        so.augmented_lagrangian(optax.sgd(0.1), objective)


# ---------------------------------------------------------------- causal


def scaled(params, point):
    return params * point[1]


CAUSAL = so.Objective(pde=so.Term(scaled), other=so.Term(lambda p, x: p - x))
TIMES = np.array([0.0, 0.3, 0.9, 0.55, 0.5, 1.0, 0.1])  # of four chunks: 0 0.3 | - | ...
SIZES = np.array([0.1, 2.0, 3.0, 0.5, 0.7, 1.0, 0.4])
CAUSAL_BATCH = {"pde": np.stack([TIMES, SIZES], 1), "other": np.array([0.2, 0.4])}


def time_of(point):
    return point[0]


def test_causal_weights_of_a_hand_made_residual():
    """Chunks [0, 0.25), [0.25, 0.5), [0.5, 0.75), [0.75, 1]; the end belongs to the last one."""
    loss, p = CAUSAL.bind(CAUSAL_BATCH), jnp.asarray(1.0)
    tx = so.causal(optax.sgd(0.1), "pde", time_of, (0.0, 1.0), tolerance=2.0, chunks=4)
    updates, state = jax.jit(lambda p: tx.update(p, tx.init(p), p, value_fn=loss))(p)
    means = np.array([(0.1**2 + 0.4**2) / 2, 2.0**2, (0.5**2 + 0.7**2) / 2, (3.0**2 + 1.0) / 2]) / 2
    want = np.exp(-2 * np.array([0, means[0], means[:2].sum(), means[:3].sum()]))
    np.testing.assert_allclose(state.weights, want, rtol=1e-12)
    chunk = np.array([0, 1, 3, 2, 2, 3, 0])
    slope = np.mean(want[chunk] * SIZES**2) + np.mean(1 - CAUSAL_BATCH["other"])
    np.testing.assert_allclose(updates, -0.1 * slope, rtol=1e-12)


def test_an_empty_chunk_and_the_ladder():
    loss = CAUSAL.bind(CAUSAL_BATCH)
    tx = so.causal(optax.sgd(0.0), "pde", time_of, (0.0, 2.0), tolerance=[1e-3, 1.0, 1e3], chunks=10)
    step = jax.jit(lambda p, state: tx.update(p, state, p, value_fn=loss)[1])

    def weights(p, tolerance):
        means = [np.mean((p * SIZES[c == k]) ** 2) / 2 if np.any(c == k) else 0.0 for k in range(10)]
        return np.exp(-tolerance * (np.cumsum(means) - means))

    c = np.floor(TIMES / 0.2 + 1e-9).astype(int)
    p = jnp.asarray(1e-2)
    state, rungs = tx.init(p), []
    for tolerance in (1e-3, 1.0, 1e3, 1e3):
        state = step(p, state)
        np.testing.assert_allclose(state.weights, weights(1e-2, tolerance), rtol=1e-10)
        rungs.append(int(state.rule.rung))
    assert rungs == [1, 2, 2, 2] and np.min(state.weights) < 0.9  # the last rung is not yet solved
    state = step(jnp.asarray(1e-5), state)
    assert np.min(state.weights) > 0.99


def test_causal_with_fresh_points_inside_fit():
    """Transport u_t + u_x = 0 with u(x, 0) = sin(pi x): the second step sees other points than the first."""

    def sampler(key):
        x = jax.random.uniform(key, (24, 2))
        return {"interior": x, "initial": x.at[:, 1].set(0)}

    def pde(u, x):
        return jnp.sum(jax.grad(u)(x))

    objective = so.Objective(interior=so.Term(pde), initial=so.Term(lambda u, x: u(x) - jnp.sin(jnp.pi * x[0])))
    tx = so.causal(so.gauss_newton(), "interior", lambda x: x[1], (0.0, 1.0), chunks=8, tolerance=5.0)
    result = so.fit(network(), objective, tx, sampler, steps=30, key=jax.random.key(0))
    assert result.loss < 0.1 * result.history["loss"][0]
    weights = np.asarray(result.optimizer_state.weights)
    assert weights.shape == (8,) and np.all(np.diff(weights) <= 0) and 0 < weights[-1] < 1


@pytest.mark.bad_input
def test_errors_of_causal():
    loss, p = CAUSAL.bind(CAUSAL_BATCH), jnp.asarray(1.0)
    sgd = optax.sgd(0.1)
    for tx, message in (
        (so.causal(sgd, "interior", time_of, (0.0, 1.0)), r"term must be one of .*'pde'\], got 'interior'"),
        (so.causal(sgd, "pde", lambda x: x, (0.0, 1.0)), r"time must return one number .* returned shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tx.update(p, tx.init(p), p, value_fn=loss)
    with pytest.raises(ValueError, match="chunks must be a positive integer"):
        so.causal(sgd, "pde", time_of, (0.0, 1.0), chunks=0)
    with pytest.raises(ValueError, match="tolerance must be at least 0"):
        so.causal(sgd, "pde", time_of, (0.0, 1.0), tolerance=[1.0, -1.0])
    with pytest.raises(ValueError, match=r"interval must be .* start < end"):
        so.causal(sgd, "pde", time_of, (1.0, 1.0))
