"""The regularised gradient against its equations, and what it does on minibatches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import flat

import sciml_opt as so
from sciml_opt.methods import RegularisedGradientMethod

START = {"a": jnp.array([-1.2, 0.7]), "b": jnp.full((1, 2, 1), 0.5, float), "c": jnp.array(1.0, float)}


def rosenbrock(theta):
    y = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(theta)])
    return 0.5 * jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (1 - y[:-1]) ** 2)


@functools.partial(jax.jit, static_argnums=2)
def run(tx, start, steps, factor):
    """Points after each step, flat, and infos."""
    loss = lambda theta: factor * rosenbrock(theta)

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        params = optax.apply_updates(params, updates)
        return (params, state), (jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(params)]), state.info)

    (_, state), records = jax.lax.scan(step, (start, tx.init(start)), None, length=steps)
    return *records, state


def textbook(steps, init_weight, least, eta, gamma):
    """The equations in NumPy, with a gradient written out."""

    def f(y):
        return 0.5 * np.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (1 - y[:-1]) ** 2)

    def gradient(y):
        d, g = y[1:] - y[:-1] ** 2, np.zeros(len(y))
        g[1:] += 100 * d
        g[:-1] += -200 * y[:-1] * d - (1 - y[:-1])
        return g

    y = flat(START)
    unit = np.linalg.norm(gradient(y))
    damping, records = max(init_weight, least) * unit, []
    for _ in range(steps):
        g = gradient(y)
        s = -g / damping
        model = f(y) + g @ s + damping / 2 * s @ s
        rho = (f(y) - f(y + s)) / (f(y) - model)
        accepted, used = rho >= eta, damping
        damping = max(damping / gamma, least * unit) if accepted else gamma * damping
        y = y + s if accepted else y
        records.append((y, used, accepted, rho))
    return [np.array(column) for column in zip(*records, strict=True)]


def test_steps_are_those_of_the_equations():
    options = {"min_weight": 1.2, "acceptance": 0.3, "factor": 1.7}
    points, info, _ = run(so.regularised_gradient(2.0, **options), START, 40, 1.0)
    y, damping, accepted, rho = textbook(40, 2.0, 1.2, 0.3, 1.7)
    np.testing.assert_array_equal(info.accepted, accepted)
    assert 5 < np.sum(accepted) < 35  # both branches
    assert np.sum(damping[2:] == np.min(damping[2:])) > 1  # and the least lambda
    np.testing.assert_allclose(points, y, rtol=1e-8)
    np.testing.assert_allclose(info.damping, damping, rtol=1e-12)
    np.testing.assert_allclose(info.gain_ratio, rho, rtol=1e-6)


def test_numbers_do_not_retrace_and_scaling_the_loss_changes_nothing():
    base = run._cache_size()
    points, info, state = run(so.regularised_gradient(), START, 30, 1.0)
    assert {leaf.weak_type for leaf in jax.tree.leaves(state)} == {False}
    assert np.all(np.diff(info.loss) <= 0) and info.loss[-1] < 0.1 * info.loss[0]
    for factor in (2.0**-60, 2.0**60):
        other, *_ = run(so.regularised_gradient(), START, 30, factor)
        np.testing.assert_allclose(other, points, rtol=1e-12)
    run(so.regularised_gradient(2.0, min_weight=1e-3, acceptance=0.5, factor=3.0), START, 30, 1.0)
    assert run._cache_size() == base + 1


def test_float32_at_the_minimum_and_vmap():
    start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), START)
    points, _, state = run(so.regularised_gradient(), start, 30, 1.0)
    assert points.dtype == jnp.float32
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} <= {"float32", "int32", "bool"}
    minimum = jax.tree.map(jnp.ones_like, start)
    points, info, state = run(so.regularised_gradient(), minimum, 30, 1.0)
    np.testing.assert_array_equal(points, 1)
    assert state.weight == 10 and not np.any(info.accepted)  # a zero gradient is no reason to raise lambda
    lanes = jax.tree.map(lambda *leaves: jnp.stack(leaves), START, jax.tree.map(jnp.ones_like, START))
    both, *_ = jax.vmap(lambda start: run(so.regularised_gradient(), start, 30, 1.0))(lanes)
    np.testing.assert_allclose(both[0], run(so.regularised_gradient(), START, 30, 1.0)[0], rtol=1e-8)
    np.testing.assert_array_equal(both[1], 1)


def test_where_rounding_hides_every_decrease_lambda_stays():
    offset = lambda theta: 1e12 + 1e-9 * rosenbrock(theta)
    method = RegularisedGradientMethod(1e3)
    state = method.init(START)
    for _ in range(3):
        update, state = method.step(offset, START, state)
        assert not state.info.accepted and not np.any(flat(update)) and state.weight == 1e3


def test_nan_moves_nothing_and_a_trial_outside_of_the_domain_is_rejected():
    method = RegularisedGradientMethod(1e-3)
    state = method.init(START)
    update, after = method.step(lambda theta: jnp.nan * rosenbrock(theta), START, state)
    assert not np.any(flat(update)) and not after.info.accepted
    assert after.weight == state.weight and after.scale == state.scale
    wall = lambda theta: rosenbrock(theta) + jnp.log(2 - theta["c"])  # the first trial is far beyond
    update, after = method.step(wall, START, state)
    assert not np.any(flat(update)) and after.weight == 2 * state.weight and after.scale > 0
    for _ in range(40):
        update, after = method.step(wall, START, after)
        if after.info.accepted:
            break
    assert after.info.accepted and wall(optax.apply_updates(START, update)) < wall(START)


@pytest.mark.bad_input
def test_errors():
    for name, value, what in (
        ("init_weight", 0.0, "greater than 0"),
        ("min_weight", 0.0, "greater than 0"),
        ("acceptance", 1.0, "less than 1"),
        ("factor", 1.0, "greater than 1"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be {what}, got {value}"):
            so.regularised_gradient(**{name: value})
    tx = so.regularised_gradient()
    with pytest.raises(TypeError, match="value_fn must be a function of the parameters"):
        tx.update(START, tx.init(START), START)
    with pytest.raises(ValueError, match="nothing to optimise"):
        tx.init({})


def test_it_trains_on_minibatches_without_a_learning_rate():
    """Regression with noise: down to near the noise of the data, from five seeds, whatever the scale of the inputs."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(240, 4))
    targets = inputs @ [1.0, -2.0, 0.5, 3.0] + 0.1 * rng.normal(size=240)
    objective = so.Objective(data=so.Term(lambda theta, point: jnp.dot(theta, point[0]) - point[1]))

    @jax.jit
    def train(blocks, key):
        result = so.train(jnp.zeros(4), objective, so.regularised_gradient(), blocks, steps=200, key=key)
        return result.params

    keys = jax.random.split(jax.random.key(0), 5)
    for scale in (1e-3, 1e3):
        batch = {"data": (scale * inputs, targets)}
        least = 0.5 * np.mean((inputs @ np.linalg.lstsq(inputs, targets)[0] - targets) ** 2)
        for key in keys:
            loss = float(objective.bind(batch)(train(so.Blocks(batch, 6), key)))
            assert loss < 4 * least, loss / least
