"""Equalised loss terms around any optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import POISSON, problem

import sciml_opt as so


def run(tx, loss, params, steps):
    @jax.jit
    def body(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state.weights)

    return jax.lax.scan(body, (params, tx.init(params)), None, length=steps)[1]


def test_the_rule_and_the_weighted_step():
    """With plain gradient descent inside, everything can be written down."""
    params, loss = problem()
    got, weights = run(so.equalised(optax.sgd(1e-3), POISSON, exponent=0.3, floor=0.2), loss, params, 6)
    w, want = {"boundary": 1.0, "interior": 1.0}, params
    for step in range(6):
        grad = jax.grad(lambda p, w=w: sum(w[name] * value for name, value in loss.values(p).items()))(want)
        want = jax.tree.map(lambda p, g: p - 1e-3 * g, want, grad)
        shares = {name: w[name] * float(value) for name, value in loss.values(want).items()}
        mean = np.mean(list(shares.values()))
        v = {name: w[name] * (mean / shares[name]) ** 0.3 for name in w}
        w = {name: max(v[name] / np.mean(list(v.values())), 0.2) for name in w}
        for name in w:
            np.testing.assert_allclose(weights[name][step], w[name], rtol=1e-10)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a[-1], b, rtol=1e-10, atol=1e-14)


def test_nan_and_float32():
    params, loss = problem(dtype=jnp.float32)
    tx = so.equalised(so.gauss_newton(), ["interior", "boundary"])
    _, weights = run(tx, loss, params, 5)
    assert all(w.dtype == jnp.float32 and np.all(w > 0) for w in weights.values())
    _, broken = problem(batch={"interior": np.full((36, 2), np.nan), "boundary": np.zeros((16, 2))}, dtype=jnp.float32)
    after, weights = run(tx, broken, params, 2)
    assert all(np.all(w == 1) for w in weights.values())
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a[-1], b)


@pytest.mark.bad_input
def test_errors():
    params, loss = problem()
    tx = so.equalised(so.gauss_newton(), ["inside", "boundary"])
    grad = jax.grad(loss)(params)
    with pytest.raises(ValueError, match=r"terms must be all the terms .* got \['boundary', 'inside'\]"):
        tx.update(grad, tx.init(params), params, grad=grad, value_fn=loss)
    with pytest.raises(TypeError, match="must be a bound objective"):
        tx.update(grad, tx.init(params), params, grad=grad, value_fn=lambda p: loss(p))
    with pytest.raises(TypeError, match="got the string 'interior'"):
        so.equalised(so.gauss_newton(), "interior")
    with pytest.raises(ValueError, match="floor must be greater than 0"):
        so.equalised(so.gauss_newton(), POISSON, floor=0.0)
