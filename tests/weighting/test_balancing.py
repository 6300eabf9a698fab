"""Weights of terms that follow the training, and what all weighted optimizers have in common."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import BATCH, POISSON, exact, flat, grid, network, partition

import sciml_opt as so

# ---------------------------------------------------------------- three linear terms on the same 6 parameters


def misfit(params, point):
    a, b = point[:-1], point[-1]
    return jnp.dot(params, a) - b


TERMS = ("a", "b", "c")
SCALE = {"a": 1.0, "b": 30.0, "c": 0.01}
RNG = np.random.default_rng(0)
DATA = {name: RNG.normal(size=(5, 7)) for name in TERMS}  # rows (a, b)
START = RNG.normal(size=6)
QUADRATIC = so.Objective(**{name: so.Term(misfit, weight=SCALE[name]) for name in TERMS})


def residual(name, theta):
    return DATA[name][:, :-1] @ theta - DATA[name][:, -1]


def losses(theta):
    return np.array([SCALE[k] / 10 * np.sum(residual(k, theta) ** 2) for k in TERMS])


def gradients(theta):
    return np.stack([SCALE[k] / 5 * DATA[k][:, :-1].T @ residual(k, theta) for k in TERMS])


def update(tx, loss, params, state):
    value, grad = jax.value_and_grad(loss)(params)
    return tx.update(grad, state, params, value=value, grad=grad, value_fn=loss, anything=3)


def follow(tx, steps, params=START, loss=None):
    """The points before each step, and the weights in each."""
    loss = QUADRATIC.bind(DATA) if loss is None else loss

    def body(carry, _):
        params, state = carry
        updates, state = update(tx, loss, params, state)
        return (optax.apply_updates(params, updates), state), (params, state.weights)

    params = jnp.asarray(params)
    (last, _), (path, weights) = jax.jit(
        lambda p: jax.lax.scan(body, (p, tx.init(p)), None, length=steps),
    )(params)
    return np.vstack([path, last[None]]), np.stack([weights[k] for k in loss.terms], axis=1)


def check(path, weights, want, rate):
    """The weights, and that each step is the one of gradient descent on the weighted loss."""
    np.testing.assert_allclose(weights, want, rtol=1e-10)
    for theta, after, w in zip(path[:-1], path[1:], weights, strict=True):
        np.testing.assert_allclose(after - theta, -rate * w @ gradients(theta), rtol=1e-9, atol=1e-14)


def balanced(measure, w, decay):
    s = np.asarray(measure)
    return decay * w + (1 - decay) * s.mean() / (s + 1e-5 * s.mean())


def test_grad_norm_balance():
    tx = so.grad_norm_balance(optax.sgd(1e-2), QUADRATIC, decay=0.7, every=2)
    path, weights = follow(tx, 5)
    w, want = np.ones(3), []
    for step, theta in enumerate(path[:-1]):
        if step % 2 == 0:
            w = balanced(np.linalg.norm(gradients(theta), axis=1), w, 0.7)
        want.append(w)
    check(path, weights, want, 1e-2)
    assert np.ptp(weights[-1]) > 10


def test_ntk_balance():
    tx = so.ntk_balance(optax.sgd(1e-2), TERMS, decay=0.7, every=2)
    path, weights = follow(tx, 5)
    traces = [SCALE[k] * np.trace(DATA[k][:, :-1] @ DATA[k][:, :-1].T) / 5 for k in TERMS]
    w, want = np.ones(3), []
    for step in range(5):
        if step % 2 == 0:
            w = balanced(traces, w, 0.7)
        want.append(w)
    check(path, weights, want, 1e-2)


def test_the_traces_of_a_network_are_those_of_the_kernels():
    """Including terms of a different number of points and of second order."""
    params, static = partition(network())
    loss = POISSON.bind(BATCH, static=static)
    tx = so.ntk_balance(optax.sgd(1e-3), POISSON, decay=0.0)
    weights = jax.jit(lambda p: update(tx, loss, p, tx.init(p))[1].weights)(params)
    jacobian = np.asarray(jax.jit(lambda p: loss.linearize(p).jacobian.as_matrix())(params))
    rows = np.sum(jacobian**2, axis=1)
    traces = {"boundary": rows[:16].sum(), "interior": rows[16:].sum()}
    mean = np.mean(list(traces.values()))
    for name, trace in traces.items():
        np.testing.assert_allclose(weights[name], mean / (trace + 1e-5 * mean), rtol=1e-9)


def test_grad_norm():
    def rate(step):
        return 0.1 / (step + 1).astype(float)

    path, weights = follow(so.grad_norm(optax.sgd(1e-2), QUADRATIC, exponent=1.2, learning_rate=rate), 6)
    log_w, m, v, want = np.zeros(3), np.zeros(3), np.zeros(3), []
    for t, theta in enumerate(path[:-1], 1):
        G = np.exp(log_w) * np.linalg.norm(gradients(theta), axis=1)
        ratios = losses(theta) / losses(path[0])
        slope = np.sign(G - G.mean() * (ratios / ratios.mean()) ** 1.2) * G / G.mean()
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        log_w = log_w - 0.1 / t * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        log_w -= np.log(np.mean(np.exp(log_w)))
        want.append(np.exp(log_w))
    check(path, weights, want, 1e-2)
    np.testing.assert_allclose(weights.sum(1), 3, rtol=1e-12)


def test_relobralo():
    options = dict(temperature=0.4, decay=0.8, saudade=0.6)
    path, weights = follow(so.relobralo(optax.sgd(1e-2), QUADRATIC, **options, seed=5), 8)
    rhos = [bool(jax.random.bernoulli(jax.random.fold_in(jax.random.key(5), t), 0.6)) for t in range(8)]
    assert 2 <= sum(rhos[1:]) <= 6

    def balance(now, reference):
        e = np.exp(losses(now) / losses(reference) / 0.4)
        return 3 * e / e.sum()

    w, want = np.ones(3), []
    for t, theta in enumerate(path[:-1]):
        past = w if rhos[t] else balance(theta, path[0])
        w = 0.8 * past + 0.2 * balance(theta, path[max(t - 1, 0)])
        want.append(w)
    check(path, weights, want, 1e-2)
    np.testing.assert_allclose(weights[0], 1, rtol=1e-14)
    # a term that begins at zero, and leaves it
    fitted = DATA["a"].copy()
    fitted[:, -1] = 0
    loss = QUADRATIC.bind(DATA | {"a": fitted})
    tx = so.relobralo(optax.sgd(1e-2), QUADRATIC, decay=0.5, temperature=0.1)
    _, weights = follow(tx, 2, params=np.zeros(6), loss=loss)
    np.testing.assert_allclose(weights[:, 0], [0.5, 1.75], rtol=1e-3)  # nothing, and then all, of the softmax


# ---------------------------------------------------------------- the contract of all

POINTS = {"a": 5, "c": DATA["c"]}
WRAPPERS = {
    "equalised": (lambda tx, **numbers: so.equalised(tx, QUADRATIC, **numbers), {"exponent": 0.4}),
    "grad_norm": (lambda tx, **numbers: so.grad_norm(tx, QUADRATIC, **numbers), {"learning_rate": 0.3}),
    "grad_norm_balance": (lambda tx, **n: so.grad_norm_balance(tx, QUADRATIC, **n), {"decay": 0.1, "every": 1}),
    "ntk_balance": (lambda tx, **n: so.ntk_balance(tx, QUADRATIC, **n), {"decay": 0.1, "every": 1}),
    "relobralo": (lambda tx, **n: so.relobralo(tx, QUADRATIC, **n), {"temperature": 0.1, "decay": 0.1, "seed": 4}),
    "self_adaptive": (lambda tx, **n: so.self_adaptive(tx, POINTS, **n), {"learning_rate": 0.4}),
    "residual_attention": (lambda tx, **n: so.residual_attention(tx, POINTS, **n), {"decay": 0.3, "rate": 0.2}),
    "augmented_lagrangian": (lambda tx, **n: so.augmented_lagrangian(tx, POINTS, **n), {"penalty": 3.0, "every": 1}),
    "causal": (lambda tx, **n: so.causal(tx, "a", first, (-3.0, 3.0), chunks=4, **n), {"tolerance": 0.1}),
}


def first(x):
    return x[0]


def rule_of(state):
    return state.weights if hasattr(state, "weights") and not hasattr(state, "rule") else state.rule


def kinds(tree):
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", WRAPPERS)
def test_around_a_second_order_method_in_float32(name):
    """State dtypes, one trace for all numbers, and a NaN in the data."""
    make, numbers = WRAPPERS[name]
    tx, other = make(so.levenberg_marquardt()), make(so.levenberg_marquardt(), **numbers)
    params = jnp.asarray(START, jnp.float32)
    loss, broken = QUADRATIC.bind(DATA), QUADRATIC.bind(DATA | {"a": DATA["a"] * np.nan})
    step = jax.jit(eqx.debug.assert_max_traces(max_traces=1)(update))
    start = tx.init(params)
    updates, state = step(tx, loss, params, start)
    assert kinds(updates) == kinds(params) and kinds(state) == kinds(start)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} <= {"float32", "int32", "bool"}
    after = optax.apply_updates(params, updates)
    assert np.any(flat(updates) != 0) and float(so.info(state).loss) > 0

    for tried in (start, state):  # the first step too, which some rules remember
        updates, stopped = step(tx, broken, params, tried)
        assert np.all(flat(updates) == 0)
        np.testing.assert_array_equal(flat(rule_of(stopped)), flat(rule_of(tried)))
        assert tried is state or getattr(stopped, "steps", 0) == 0
        assert np.all(np.isfinite(flat(step(tx, loss, params, stopped)[0])))

    ours, theirs = (step(wrapper, loss, after, state)[1] for wrapper in (tx, other))
    assert np.any(flat(rule_of(ours)) != flat(rule_of(theirs)))  # other numbers mean something, and did not retrace


@jax.numpy_dtype_promotion("standard")  # for optax.adam
@pytest.mark.parametrize("name", WRAPPERS)
def test_around_adam_under_scan_and_vmap(name):
    """Each lane has its own weights, and 30 steps lower what it minimises."""
    make, numbers = WRAPPERS[name]
    tx, loss = make(optax.adam(0.05), **numbers), QUADRATIC.bind(DATA)

    def train(params):
        def body(carry, _):
            params, state = carry
            updates, state = update(tx, loss, params, state)
            return (optax.apply_updates(params, updates), state), rule_of(state)

        (params, _), rules = jax.lax.scan(body, (params, tx.init(params)), None, length=30)
        return params, rules

    starts = np.stack([START, 3 * START, START])
    lanes, rules = jax.jit(jax.vmap(train))(jnp.asarray(starts))
    np.testing.assert_allclose(lanes[0], lanes[2], rtol=1e-9)
    rules = rules if name == "equalised" else rules[0]  # the weights, or the multipliers
    first, second, third = (flat(jax.tree.map(lambda leaf, k=k: leaf[k], rules)) for k in range(3))
    np.testing.assert_allclose(first, third, rtol=1e-7, atol=1e-12)
    assert np.any(first != second) or name == "ntk_balance"  # of a linear model the traces are constant
    weights = rules if name != "augmented_lagrangian" else {"a": np.ones((3, 1)), "c": np.ones((3, 1))}
    for theta, start, lane in zip(lanes, starts, range(2), strict=False):
        w = {k: np.asarray(weights[k][lane][-1]) if k in weights else 1.0 for k in TERMS} if name != "causal" else {}
        value = [sum(np.mean(w.get(k, 1.0) * SCALE[k] * residual(k, p) ** 2) for k in TERMS) for p in (theta, start)]
        assert value[0] < value[1]


@pytest.mark.parametrize("name", ["grad_norm", "grad_norm_balance", "ntk_balance", "relobralo", "equalised"])
def test_of_one_term_the_weight_stays_1(name):
    one = so.Objective(a=so.Term(misfit))
    path, weights = follow(getattr(so, name)(optax.sgd(1e-2), one), 3, loss=one.bind({"a": DATA["a"]}))
    np.testing.assert_allclose(weights, 1, rtol=1e-4)  # 1e-5 keeps the targets of the balances finite
    assert np.all(np.isfinite(path))


@pytest.mark.parametrize(("name", "inner"), [("grad_norm_balance", so.lbfgs), ("self_adaptive", so.ss_broyden)])
def test_inside_train_with_methods_that_carry_value_and_gradient(name, inner):
    """They minimise the weighted loss although it changes under them."""
    make, numbers = WRAPPERS[name]
    tx = make(inner(), **({"every": 5} if name == "grad_norm_balance" else {"learning_rate": 0.01}))
    result = jax.jit(lambda p: so.train(p, QUADRATIC, tx, DATA, steps=40))(jnp.asarray(START))
    weights, theta = result.state.optimizer.weights, np.asarray(result.params)
    g = sum(SCALE[k] / 5 * DATA[k][:, :-1].T @ (np.asarray(weights.get(k, 1.0)) * residual(k, theta)) for k in TERMS)
    size = sum(
        np.asarray(weights.get(k, 1.0)).mean() * np.linalg.norm(g) for k, g in zip(TERMS, gradients(START), strict=True)
    )
    assert np.linalg.norm(g) < 1e-2 * size
    assert np.ptp(flat(weights)) > 0.01 and np.all(np.isfinite(result.history["loss"]))


@pytest.mark.bad_input
def test_errors():
    params = jnp.asarray(START)
    loss = QUADRATIC.bind(DATA)
    energy = so.Objective(**{k: so.Term(misfit, outer=lambda z, x: jnp.sum(jnp.exp(z))) for k in TERMS}).bind(DATA)

    grad = 2 * params

    def attempt(tx, loss=loss, **given):
        return tx.update(grad, tx.init(params), params, **({"grad": grad, "value_fn": loss} | given))

    for name, (make, _) in WRAPPERS.items():
        tx = make(optax.sgd(1e-2))
        with pytest.raises(TypeError, match="must be a bound objective"):
            attempt(tx, value_fn=lambda p: jnp.sum(p))
        with pytest.raises(ValueError, match="must be the gradient itself"):
            attempt(tx, grad=params)
        with pytest.raises(ValueError, match="no array leaves"):
            tx.init({})
        with pytest.raises(TypeError, match="has dtype int"):
            tx.init(jnp.arange(3))
        if "balance" not in name:
            with pytest.raises(ValueError, match="needs terms that cannot be negative, least squares, but"):
                attempt(tx, energy)
    for wrapper in (so.grad_norm, so.grad_norm_balance, so.ntk_balance, so.relobralo):
        with pytest.raises(ValueError, match=r"terms must be all the terms .* got \['a', 'x'\]"):
            attempt(wrapper(optax.sgd(1e-2), ["a", "x"]))
        with pytest.raises(TypeError, match="got the string 'a'"):
            wrapper(optax.sgd(1e-2), "a")
    for wrapper in (so.self_adaptive, so.residual_attention, so.augmented_lagrangian):
        with pytest.raises(ValueError, match="points has 4 points of term 'a', but the loss has 5"):
            attempt(wrapper(optax.sgd(1e-2), {"a": 4}))
        with pytest.raises(ValueError, match="points has 4 points of term 'x', but the loss has none"):
            attempt(wrapper(optax.sgd(1e-2), {"x": 4}))
        with pytest.raises(ValueError, match=r"points\['a'\] must be a positive integer, got 0"):
            wrapper(optax.sgd(1e-2), {"a": 0})
        with pytest.raises(ValueError, match="the same points in every step, not Blocks"):
            attempt(wrapper(optax.sgd(1e-2), {"a": 1}), QUADRATIC.bind(so.Blocks(DATA, 5).block(0)))
    for wrapper in (so.self_adaptive, so.residual_attention):
        with pytest.raises(TypeError, match=r"points must be a dict from names of terms .* got Objective"):
            wrapper(optax.sgd(1e-2), QUADRATIC)
    for make, message in (
        (lambda: so.grad_norm_balance(optax.sgd(1.0), TERMS, decay=1.0), "decay must be less than 1"),
        (lambda: so.ntk_balance(optax.sgd(1.0), TERMS, every=0), "every must be a positive integer"),
        (lambda: so.grad_norm(optax.sgd(1.0), TERMS, learning_rate=-1.0), "learning_rate must be at least 0"),
        (lambda: so.relobralo(optax.sgd(1.0), TERMS, temperature=0.0), "temperature must be greater than 0"),
        (lambda: so.relobralo(optax.sgd(1.0), TERMS, decay=1.5), "decay must be at most 1"),
        (lambda: so.self_adaptive(optax.sgd(1.0), POINTS, mask="sqare"), "Did you mean 'square'"),
        (lambda: so.augmented_lagrangian(optax.sgd(1.0), POINTS, penalty=0.0), "penalty must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


# ---------------------------------------------------------------- what it is good for


@jax.numpy_dtype_promotion("standard")  # for optax.adam
def test_grad_norm_helps_where_a_weight_is_badly_chosen():
    """Poisson's equation with a boundary that counts 1e-4 times as much as it should, five starts."""
    static, points = partition(network())[1], grid(15)
    loss = POISSON.bind(BATCH, static=static).reweighted({"boundary": 1e-4})
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[partition(network(seed))[0] for seed in range(5)])

    @jax.jit
    def predictions(rate):
        tx = so.grad_norm(optax.adam(0.01), POISSON, learning_rate=rate)

        def train(params):
            def body(carry, _):
                params, state = carry
                updates, state = update(tx, loss, params, state)
                return (optax.apply_updates(params, updates), state), None

            params, _ = jax.lax.scan(body, (params, tx.init(params)), None, length=2000)[0]
            return jax.vmap(eqx.combine(params, static))(points)

        return jax.vmap(train)(starts)

    want = np.asarray(jax.vmap(exact)(points))
    # with a rate of 0 the weights stay as they are
    plain, balanced = (np.linalg.norm(np.asarray(predictions(rate)) - want, axis=1) for rate in (0.0, 1e-3))
    assert np.median(balanced / plain) < 0.7 and np.sum(balanced < plain) >= 4
