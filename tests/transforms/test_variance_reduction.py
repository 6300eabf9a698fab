"""SVRG, SAGA and SARAH against their textbooks, and against SGD on photographs; averaged iterates."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_sample_images
from small import flat, relative

import sciml_opt as so

RATE, EVERY, COUNT, STEPS = 0.05, 4, 6, 14
RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(21, 14)), RNG.normal(size=21)
START = {  # leaves of every shape
    "scalar": jnp.array(0.3, float),
    "vector": jnp.arange(3.0),
    "matrix": jnp.ones((2, 2)),
    "field": jnp.full((1, 3, 1, 2), -0.2, float),
}
OBJECTIVE = so.Objective(data=so.Term(lambda theta, point: jnp.dot(ravel_pytree(theta)[0], point[0]) - point[1]))
BATCH = {"data": (INPUTS, TARGETS)}
BLOCKS = so.Blocks(BATCH, COUNT)
LOSS = OBJECTIVE.bind(BATCH)
INDICES = np.random.default_rng(1).integers(0, COUNT, STEPS)
ESTIMATORS = {
    "svrg": lambda: so.scale_by_svrg(LOSS, EVERY),
    "saga": lambda: so.scale_by_saga(COUNT),
    "sarah": lambda: so.scale_by_sarah(LOSS, EVERY),
}
METHODS = {
    "svrg": lambda rate=RATE: so.svrg(rate, LOSS, EVERY),
    "saga": lambda rate=RATE: so.saga(rate, COUNT),
    "sarah": lambda rate=RATE: so.sarah(rate, LOSS, EVERY),
}


def one_step(tx, params, state, loss):
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
    return optax.apply_updates(params, updates), state


@functools.cache
def compiled():
    return jax.jit(lambda tx, params, state, blocks, j: one_step(tx, params, state, OBJECTIVE.bind(blocks.block(j))))


def path(tx, params=START, indices=INDICES, blocks=BLOCKS):
    state, points = tx.init(params), [params]
    for j in indices:
        params, state = compiled()(tx, params, state, blocks, jnp.int32(j))
        points.append(params)
    return points, state


def textbook(name):
    """The algorithms of the papers in NumPy, on a quadratic whose gradients are written out."""
    (points, weights), theta = BLOCKS._cut["data"], flat(START)
    inputs, targets = map(np.asarray, points)

    def block(theta, j):
        return inputs[j].T @ (np.asarray(weights[j]) * (inputs[j] @ theta - targets[j]))

    def full(theta):
        return INPUTS.T @ (INPUTS @ theta - TARGETS) / len(TARGETS)

    table, thetas = np.zeros((COUNT, len(theta))), [theta]
    for t, j in enumerate(INDICES):
        if name == "svrg":
            if t % EVERY == 0:
                snapshot, mu = theta, full(theta)
            v = block(theta, j) - block(snapshot, j) + mu
        elif name == "saga":
            v = block(theta, j) - table[j] + table.mean(axis=0)
            table[j] = block(theta, j)
        else:
            v = full(theta) if t % EVERY == 0 else block(theta, j) - block(thetas[-2], j) + v
        theta = theta - RATE * v
        thetas.append(theta)
    return np.stack(thetas)


def dtypes(tree):
    return {(str(leaf.dtype), leaf.weak_type) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("name", METHODS)
def test_steps_are_those_of_the_paper_and_do_not_retrace(name):
    traces = compiled()._cache_size()
    points, state = path(METHODS[name]())
    np.testing.assert_allclose([flat(point) for point in points], textbook(name), rtol=1e-10, atol=1e-12)
    assert dtypes(state) <= {("float64", False), ("int32", False)}
    path(METHODS[name](2 * RATE), indices=[0, 1])
    assert compiled()._cache_size() == traces + 1


@pytest.mark.parametrize("name", METHODS)
def test_a_chain_with_a_schedule_scan_and_vmap_take_the_same_steps(name):
    rates = lambda step: RATE / (1 + step.astype(float))
    chain = optax.chain(ESTIMATORS[name](), optax.scale_by_learning_rate(rates))

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def run(tx, indices):
        body = lambda carry, j: (one_step(tx, *carry, OBJECTIVE.bind(BLOCKS.block(j))), None)
        return jax.lax.scan(body, (START, tx.init(START)), indices)[0][0]

    lanes = run(METHODS[name](rates), np.stack([INDICES, INDICES[::-1]]))
    want, _ = path_by_step(chain)
    assert relative(jax.tree.map(lambda leaf: leaf[0], lanes), want) < 1e-12
    assert relative(jax.tree.map(lambda leaf: leaf[1], lanes), want) > 1e-6


def path_by_step(tx):
    step = jax.jit(lambda params, state, j: one_step(tx, params, state, OBJECTIVE.bind(BLOCKS.block(j))))
    params, state = START, tx.init(START)
    for j in INDICES:
        params, state = step(params, state, jnp.int32(j))
    return params, state


def test_under_vmap_the_whole_gradient_is_still_a_branch():
    """Or every step of every lane would cost a gradient on all data."""
    for name in ("svrg", "sarah"):
        tx = METHODS[name]()

        def run(params, tx=tx):
            body = lambda carry, j: (one_step(tx, *carry, OBJECTIVE.bind(BLOCKS.block(j))), None)
            return jax.lax.scan(body, (params, tx.init(params)), INDICES)[0]

        lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), START)
        (scan,) = [e for e in jax.make_jaxpr(jax.vmap(run))(lanes).eqns if e.primitive.name == "scan"]
        assert "cond" in {e.primitive.name for e in scan.params["jaxpr"].eqns}


@pytest.mark.parametrize("name", METHODS)
def test_float32_and_a_broken_minibatch(name):
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), START)
    points, state = path(METHODS[name](), start)
    assert dtypes((points[-1], state)) <= {("float32", False), ("int32", False)}
    assert relative(points[-1], textbook(name)[-1]) < 1e-4

    broken = eqx.tree_at(lambda blocks: blocks._cut["data"].points[0], BLOCKS, replace_fn=lambda x: x * jnp.nan)
    tx = METHODS[name]()
    _, before = path(tx)
    after, state = compiled()(tx, START, before, broken, jnp.int32(0))
    assert relative(after, START) == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    after, _ = compiled()(tx, START, state, BLOCKS, jnp.int32(0))
    assert 0 < relative(after, START) < 1


@pytest.mark.parametrize("name", ["svrg", "sarah"])
def test_a_broken_whole_gradient_moves_nothing_until_the_next(name):
    make = getattr(so, name)

    def whole(theta, factor):
        return jnp.sum((flat_sum(theta) - 1) ** 2) * factor

    tx = make(RATE, jax.tree_util.Partial(whole, factor=jnp.nan), EVERY)
    params, state = START, tx.init(START)
    for j in range(EVERY):
        params, state = compiled()(tx, params, state, BLOCKS, jnp.int32(j))
    assert relative(params, START) == 0
    tx = make(RATE, jax.tree_util.Partial(whole, factor=jnp.ones(())), EVERY)
    params, state = compiled()(tx, params, state, BLOCKS, jnp.int32(0))
    assert relative(params, START) > 0 and np.all(np.isfinite(flat(params)))


def flat_sum(theta):
    return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(theta)), start=jnp.zeros(()))


def test_saga_remembers_the_block_that_it_saw():
    tx = so.scale_by_saga(COUNT)
    loss = OBJECTIVE.bind(BLOCKS.block(4))
    grad = jax.jit(jax.grad(loss))(START)
    _, state = tx.update(grad, tx.init(START), START, grad=grad, value_fn=loss)
    for table, mean, g in zip(*map(jax.tree.leaves, (state.table, state.mean, grad)), strict=True):
        assert table.shape == (COUNT, *g.shape)
        np.testing.assert_array_equal(table[4], g)
        assert not np.any(np.delete(table, 4, axis=0))
        np.testing.assert_allclose(mean, g / COUNT, rtol=1e-14)


@pytest.mark.bad_input
def test_errors():
    grad, loss = START | {}, OBJECTIVE.bind(BLOCKS.block(0))  # the errors come before any value matters
    saga = so.scale_by_saga(COUNT)
    for value_fn, what in ((LOSS, "one of the whole batch"), (lambda theta: 0.0, "function"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"knows which block of the data it is on, got {what}"):
            saga.update(grad, saga.init(START), START, value_fn=value_fn)
    with pytest.raises(ValueError, match="SAGA was made for 6 blocks, but the data have 3"):
        saga.update(grad, saga.init(START), START, value_fn=OBJECTIVE.bind(so.Blocks(BATCH, 3).block(0)))
    for name in METHODS:
        tx = METHODS[name]()
        with pytest.raises(ValueError, match="`updates` must be the gradient itself"):
            tx.update(jax.tree.map(jnp.copy, START), tx.init(START), START, grad=grad, value_fn=loss)
        with pytest.raises(ValueError, match="nothing to optimise"):
            tx.init({})
        with pytest.raises(TypeError, match=r"params\['a'\] has dtype int"):
            tx.init({"a": jnp.arange(3)})
        with pytest.raises(ValueError, match="learning_rate must be greater than 0"):
            METHODS[name](0.0)
    for name in ("svrg", "sarah"):
        with pytest.raises(TypeError, match=r"loss must be a function of the parameters, .* got dict"):
            getattr(so, name)(RATE, BATCH, EVERY)
        with pytest.raises(ValueError, match="every must be a positive integer, got 0"):
            getattr(so, name)(RATE, LOSS, 0)
        with pytest.raises(TypeError, match="value_fn must be a function of the parameters"):
            METHODS[name]().update(grad, METHODS[name]().init(START), START)
    with pytest.raises(ValueError, match="blocks must be a positive integer"):
        so.saga(RATE, 0)


@pytest.mark.parametrize("name", ["saga", "sarah"])
def test_fit_draws_blocks_and_training_converges(name):
    result = so.fit(START, OBJECTIVE, METHODS[name](0.1), data=BLOCKS, steps=300, key=jax.random.key(0))
    theta = np.linalg.lstsq(INPUTS, TARGETS)[0]
    least = 0.5 * np.mean((INPUTS @ theta - TARGETS) ** 2)
    assert result.steps == 300 and len(set(result.history["loss"][:20])) > 10  # minibatches differ
    assert float(LOSS(result.model)) - least < 1e-2 * (float(LOSS(START)) - least)


def test_averaged_iterates():
    rate, start = 0.1, 5
    tx = optax.chain(so.averaged(optax.sgd(rate), start=start), optax.identity())
    points, state = [START], tx.init(START)
    step = jax.jit(lambda params, state: one_step(optax.with_extra_args_support(tx), params, state, LOSS))
    for k in range(9):
        params, state = step(points[-1], state)
        points.append(params)
        if k < start:
            # the same sum, made twice: XLA may fuse one with the product before it
            assert relative(so.average(state), params) < 1e-15
    want = np.mean([flat(point) for point in points[start + 1 :]], axis=0)
    np.testing.assert_allclose(flat(so.average(state)), want, rtol=1e-13)
    assert step._cache_size() == 1 and dtypes(state) <= {("float64", False), ("int32", False)}
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, START)
    _, after = step(broken, state)
    np.testing.assert_array_equal(flat(so.average(after)), flat(so.average(state)))


@pytest.mark.bad_input
def test_errors_of_averaging():
    with pytest.raises(ValueError, match=r"needs a state of so.averaged.*found 0"):
        so.average(optax.sgd(0.1).init(START))
    with pytest.raises(ValueError, match="start must be at least 0"):
        so.averaged(optax.sgd(0.1), start=-1)
    tx = so.averaged(optax.sgd(0.1))
    with pytest.raises(ValueError, match="averaged needs the parameters"):
        tx.update(START, tx.init(START))


def photographs(n=10_000, side=8):
    """Which of two photographs is a patch from: means and deviations of its colours, and a label of -1 or 1."""
    rng, features = np.random.default_rng(0), []
    for image in load_sample_images().images:
        height, width, _ = image.shape
        corners = rng.choice((height - side) * (width - side), n // 2, replace=False)
        rows, columns = (corner[:, None, None] for corner in np.divmod(corners, width - side))
        patches = image[rows + np.arange(side)[:, None], columns + np.arange(side)] / 255
        features.append(np.concatenate([patches.mean((1, 2)), patches.std((1, 2))], axis=1))
    x = np.concatenate(features)
    x = np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((n, 1))], axis=1)
    return x, np.repeat([-1.0, 1.0], n // 2)


def logistic(x, y):
    """Regularised logistic regression as an objective; the least value by Newton's method."""
    n = len(y)
    margin = lambda w, point: jnp.append(point[1] * jnp.dot(point[0], w), w)
    density = lambda z, _: jax.nn.softplus(-z[0]) + jnp.sum(z[1:] ** 2) / (2 * n)
    w = np.zeros(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(y * (x @ w)))
        grad = -x.T @ (y * p) / n + w / n
        w = w - np.linalg.solve((x.T * (p * (1 - p))) @ x / n + np.eye(len(w)) / n, grad)
    least = np.mean(np.logaddexp(0, -y * (x @ w))) + w @ w / (2 * n)
    return so.Objective(data=so.Term(margin, outer=density)), least


def test_variance_reduction_converges_linearly_on_photographs_where_sgd_stalls():
    """Ten thousand patches in 100 blocks, 40 passes, five seeds; each method at the better of the same two rates."""
    x, y = photographs()
    objective, least = logistic(x, y)
    batch, passes = {"data": (x, y)}, 40
    blocks, loss = so.Blocks(batch, 100), objective.bind(batch)
    keys = jax.random.split(jax.random.key(0), 5)

    def gaps(make, rate):
        """Loss above the least after each pass, `(5, passes)`."""
        tx = optax.with_extra_args_support(make(rate))

        def step(carry, key):
            return one_step(tx, *carry, objective.bind(blocks(key))), None

        def epoch(carry, key):
            carry, _ = jax.lax.scan(step, carry, jax.random.split(key, blocks.count))
            return carry, loss(carry[0]) - least

        def run(key):
            start = jnp.zeros(x.shape[1])
            return jax.lax.scan(epoch, (start, tx.init(start)), jax.random.split(key, passes))[1]

        return jax.vmap(run)(keys)

    makes = {"sgd": optax.sgd, "svrg": lambda rate: so.svrg(rate, loss, 200), "saga": lambda rate: so.saga(rate, 100)}
    best = {}
    for name, make in makes.items():
        found = jax.jit(jax.vmap(functools.partial(gaps, make)))(jnp.array([0.5, 2.0]))
        best[name] = min(map(np.asarray, found), key=lambda gap: np.median(gap[:, -1]))
    for name in ("svrg", "saga"):
        assert np.max(best[name][:, -1]) < 1e-8
        logs = np.log10(best[name][:, 5:30])  # before rounding: a straight line, at least a decade in ten passes
        for log in logs:
            line = np.polyfit(np.arange(25), log, 1)
            assert line[0] < -0.1 and np.max(np.abs(np.polyval(line, np.arange(25)) - log)) < 0.7
        assert np.min(best["sgd"][:, -10:]) > 1e3 * np.max(best[name][:, -1])
    assert np.median(best["sgd"][:, -1]) > 0.1 * np.median(best["sgd"][:, -20])  # it no longer descends


def test_batches_that_grow_by_the_norm_test_reach_the_least_loss_on_photographs():
    """L-BFGS on blocks until their gradient drowns in noise, then on all patches, with the pairs that it has."""
    x, y = photographs()
    objective, least = logistic(x, y)
    whole, tx = {"data": (x, y)}, so.lbfgs(10)
    for seed in range(2):
        phases = [
            so.Phase(tx, 20, until=so.Stop(noise=0.9), data=so.Blocks(whole, 50, seed)),
            so.Phase(tx, 40),
        ]
        start = jnp.zeros(x.shape[1])
        result = so.fit(start, objective, phases, whole, key=jax.random.key(seed), metric=lambda _: 0.0, metric_every=1)
        steps = np.bincount(result.history["phase"])
        assert 1 <= steps[0] < 20 and steps[1] == 40
        assert abs(result.loss - least) < 1e-12
