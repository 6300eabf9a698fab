"""Blocks of the data, and the noise of a minibatch's gradient."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import products
import pytest

import sciml_opt as so
from sciml_opt.sampling import Block

RNG = np.random.default_rng(0)
INPUTS, TARGETS, WEIGHTS = RNG.normal(size=(37, 3)), RNG.normal(size=37), RNG.uniform(size=23)
THETA = jnp.array([0.5, -1.0, 2.0])
OBJECTIVE = so.Objective(
    data=so.Term(lambda theta, point: jnp.dot(theta, point[0]) - point[1]),
    quadrature=so.Term(lambda theta, x: jnp.sin(jnp.dot(theta, x)), weight=3.0),
    regulariser=so.Term(lambda theta, _: theta, weight=0.1),
)
BATCH = {
    "data": (INPUTS, TARGETS),
    "quadrature": so.Weighted(INPUTS[:23], WEIGHTS),
    "regulariser": np.zeros(1),
}


def same(a, b):
    return eqx.tree_equal(a, b, typematch=True)


@jax.jit
def losses_of_blocks(blocks, theta):
    """Value and gradient on every block."""
    indices = jnp.arange(blocks.count)
    return jax.vmap(lambda j: jax.value_and_grad(OBJECTIVE.bind(blocks.block(j)))(theta))(indices)


def test_the_mean_of_the_blocks_is_the_loss_also_with_a_remainder_weights_and_one_point():
    value, grad = jax.jit(jax.value_and_grad(OBJECTIVE.bind(BATCH)))(THETA)
    for count in (1, 5, 23):
        values, grads = losses_of_blocks(so.Blocks(BATCH, count), THETA)
        np.testing.assert_allclose(jnp.mean(values), value, rtol=1e-13)
        np.testing.assert_allclose(jnp.mean(grads, 0), grad, rtol=1e-12)


def test_every_point_is_in_one_block_and_blocks_differ_by_one_point():
    numbers = {"data": np.arange(37)}
    blocks = so.Blocks(numbers, 5)
    seen = [blocks.block(j).batch["data"] for j in range(5)]
    hands = [np.asarray(points)[np.asarray(weights) > 0] for points, weights in seen]
    np.testing.assert_array_equal(np.sort(np.concatenate(hands)), np.arange(37))
    assert sorted(map(len, hands)) == [7, 7, 7, 8, 8]
    for points, weights in seen:
        assert points.shape == weights.shape == (8,) and points.dtype == numbers["data"].dtype
    assert any(np.any(np.diff(hand) < 0) for hand in hands)  # dealt out, not cut in order
    assert same(so.Blocks(numbers, 5).block(2), blocks.block(2))
    assert not same(so.Blocks(numbers, 5, seed=1).block(2), blocks.block(2))


def test_a_draw_is_uniform_and_knows_its_index():
    blocks = so.Blocks(BATCH, 5)
    draws = jax.jit(jax.vmap(blocks))(jax.random.split(jax.random.key(0), 1000))
    assert isinstance(draws, Block) and draws.count == 5 and draws.index.dtype == jnp.int32
    counts = np.bincount(draws.index, minlength=5)
    assert len(counts) == 5 and np.all(np.abs(counts - 200) < 5 * np.sqrt(160))  # five standard deviations
    for row in range(5):
        want = blocks.block(int(draws.index[row])).batch["data"]
        assert same(jax.tree.map(lambda leaf, row=row: leaf[row], draws.batch["data"]), want)


def test_a_bound_objective_remembers_its_block():
    loss = OBJECTIVE.bind(so.Blocks(BATCH, 5).block(3))
    others = loss.reweighted({"data": 2.0}), loss.part(0, 2), loss.freeze(jnp.zeros(3))
    for other in (loss, *others):
        assert int(other.index) == 3 and other.blocks == 5
    whole = OBJECTIVE.bind(BATCH)
    assert whole.index is None and whole.blocks is None


@pytest.fixture(scope="module")
def noise():
    return jax.jit(so.gradient_noise, static_argnums=2)


def test_data_of_a_product_are_kept_whole(noise):
    objective = so.Objective(data=OBJECTIVE.terms["data"], field=so.Term(so.Product(left, lambda theta, y: theta * y)))
    field = so.ProductBatch(RNG.normal(size=(4, 3)), RNG.normal(size=6))
    batch = {"data": (INPUTS, TARGETS), "field": field}
    blocks = so.Blocks(batch, 7)
    assert same(blocks.block(2).batch["field"], jax.tree.map(jnp.asarray, field))
    loss = objective.bind(batch)
    mixed = noise(loss, THETA, 7)
    alone = noise(so.Objective(data=objective.terms["data"]).bind({"data": batch["data"]}), THETA, 7)
    np.testing.assert_allclose(mixed.variance, alone.variance, rtol=1e-12)
    np.testing.assert_allclose(mixed.squared_norm, jnp.sum(jax.jit(jax.grad(loss))(THETA) ** 2), rtol=1e-12)


def left(theta, f):
    return theta * f


@pytest.fixture(scope="module")
def regression():
    return so.Objective(data=OBJECTIVE.terms["data"]).bind({"data": (INPUTS, TARGETS)})


def test_groups_of_one_point_give_the_sample_variance_of_the_paper(noise, regression):
    rows = (INPUTS @ THETA - TARGETS)[:, None] * INPUTS
    variance = np.sum(np.var(rows, axis=0, ddof=1)) / 37
    squared_norm = np.sum(np.mean(rows, axis=0) ** 2)
    got = noise(regression, THETA, 37)
    np.testing.assert_allclose(got, [variance, squared_norm, variance / squared_norm], rtol=1e-11)


def test_the_estimate_is_the_variance_of_the_gradient_of_a_random_batch(noise):
    """Of batches of 48 points from a distribution: the variance over batches, and its estimate from one batch each."""

    def loss(key):
        inputs, targets = jax.random.normal(key, (48, 3)), jax.random.exponential(key, (48,))
        return so.Objective(data=OBJECTIVE.terms["data"]).bind({"data": (inputs, targets)})

    keys = jax.random.split(jax.random.key(1), 2000)
    gradients = jax.jit(jax.vmap(lambda key: jax.grad(loss(key))(THETA)))(keys)
    want = np.sum(np.var(gradients, axis=0))
    estimates = jax.vmap(lambda key: noise(loss(key), THETA, 16).variance)(keys)
    np.testing.assert_allclose(np.mean(estimates), want, rtol=0.1)
    assert np.quantile(np.asarray(estimates) / want, 0.9) < 2


def test_norm_test_is_the_inequality_and_takes_any_parameters(noise):
    model = products.model()
    objective = so.Objective(trunk=so.Term(lambda m, y: products.trunk(m, y)[0] - 1))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    loss = objective.bind({"trunk": INPUTS[:, :2]}, static=static)
    limit = float(jnp.sqrt(noise(loss, params, 16).ratio))
    test = jax.jit(lambda theta: so.norm_test(loss, params, theta))
    assert test(1.001 * limit) and not test(0.999 * limit)
    assert test._cache_size() == 1


def test_float32_nan_and_nothing_that_varies(noise, regression):
    for field in noise(regression, THETA.astype(jnp.float32), 8):
        assert field.dtype == jnp.float32 and np.isfinite(field)
    test = jax.jit(so.norm_test)
    assert not test(regression, THETA * jnp.nan)
    equal = so.Objective(data=OBJECTIVE.terms["data"]).bind({"data": (np.ones((32, 3)), np.full(32, 1.5))})
    got = noise(equal, THETA, 16)  # every residual is zero
    assert got.variance == 0 and got.ratio == 0 and test(equal, THETA)


@pytest.mark.bad_input
def test_errors(regression):
    with pytest.raises(ValueError, match=r"Blocks\(count=40\) cannot cut the data"):
        so.Blocks(BATCH, 40)
    with pytest.raises(ValueError, match="count must be a positive integer, got 0"):
        so.Blocks(BATCH, 0)
    with pytest.raises(TypeError, match="must be a dict with one entry a term, got ndarray"):
        so.Blocks(INPUTS, 4)
    with pytest.raises(ValueError, match="different leading axes"):
        so.Blocks({"data": (INPUTS, TARGETS[:5])}, 4)
    with pytest.raises(ValueError, match=r"lacks the entries \['quadrature', 'regulariser'\]"):
        OBJECTIVE.bind(so.Blocks({"data": (INPUTS, TARGETS)}, 4).block(0))
    with pytest.raises(TypeError, match=r"loss must be a bound objective, .* got function"):
        so.gradient_noise(lambda theta: 0.0, THETA)
    for groups in (1, 38):
        with pytest.raises(ValueError, match=f"groups must be at least 2 and at most .* got {groups}"):
            so.gradient_noise(regression, THETA, groups=groups)
    with pytest.raises(ValueError, match="theta must be greater than 0, got 0"):
        so.norm_test(regression, THETA, theta=0.0)
    with pytest.raises(ValueError, match="nothing to optimise"):
        so.gradient_noise(regression, {})
