"""The multilayer perceptron: formula, Glorot start, dtypes, pytree contract, errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sciml_opt.models import MLP

KEY = jax.random.key(0)


def test_formula():
    model = MLP(3, 2, (4, 5), jnp.sin, key=KEY)
    model = eqx.tree_at(lambda m: m.biases, model, (jnp.arange(4.0), jnp.ones(5), jnp.array([1.0, -1.0])))
    x = jnp.array([0.1, -0.2, 0.3])
    h = np.asarray(x)
    for W, b in list(zip(model.weights, model.biases, strict=True))[:-1]:
        h = np.sin(np.asarray(W) @ h + np.asarray(b))
    np.testing.assert_allclose(model(x), np.asarray(model.weights[-1]) @ h + np.asarray(model.biases[-1]), rtol=1e-14)


@pytest.mark.parametrize("out_size, shape", [("scalar", ()), (1, (1,)), (3, (3,))])
def test_output_shape(out_size, shape):
    model = MLP(2, out_size, (4,), key=KEY)
    assert model(jnp.zeros(2)).shape == shape
    assert [W.shape for W in model.weights] == [(4, 2), (max(1, *shape, 1), 4)]


def test_glorot_normal_weights_and_zero_biases():
    model = MLP(50, 30, (400, 200), key=KEY)
    for W, b in zip(map(np.asarray, model.weights), map(np.asarray, model.biases), strict=True):
        std = np.sqrt(2 / sum(W.shape))
        # five standard errors of the mean, the standard deviation and the kurtosis of so many normal numbers
        assert abs(W.mean()) < 5 * std / np.sqrt(W.size)
        assert abs(W.std() / std - 1) < 5 / np.sqrt(2 * W.size)
        assert abs(np.mean((W / std) ** 4) - 3) < 5 * np.sqrt(96 / W.size)
        assert not b.any()
    again, other = MLP(50, 30, (400, 200), key=KEY), MLP(50, 30, (400, 200), key=jax.random.key(1))
    assert eqx.tree_equal(model, again)
    assert not any(np.array_equal(a, b) for a, b in zip(model.weights, other.weights, strict=True))


@pytest.mark.parametrize("dtype, expected", [(None, jnp.float64), (jnp.float32, jnp.float32), ("float32", jnp.float32)])
def test_dtype(dtype, expected):
    model = MLP(2, layers=(4,), key=KEY, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype(expected)}
    assert model(jnp.zeros(2, expected)).dtype == expected


def test_default_dtype_follows_jax():
    with jax.enable_x64(False):
        assert MLP(2, layers=(4,), key=KEY).weights[0].dtype == jnp.float32


def test_is_a_plain_jit_argument_without_retrace():
    @jax.jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def at_half(model):
        return model(jnp.full(2, 0.5))

    for seed in range(3):
        model = MLP(2, layers=(4,), key=jax.random.key(seed))
        np.testing.assert_allclose(at_half(model), model(jnp.full(2, 0.5)), rtol=1e-14)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"layers": ()}, ValueError, "at least one hidden width"),
        ({"layers": 32}, ValueError, "at least one hidden width"),
        ({"layers": (8, 0)}, ValueError, "layers=.*positive"),
        ({"layers": (8, 2.5)}, TypeError, "layers=.*integers"),
        ({"in_size": -1}, ValueError, "in_size=.*positive"),
        ({"in_size": "scalar"}, TypeError, "in_size=.*integers"),
        ({"out_size": 0}, ValueError, "out_size=.*positive"),
        ({"out_size": "vector"}, TypeError, "out_size=.*integers"),
        ({"dtype": int}, TypeError, "floating dtype"),
        ({"dtype": complex}, TypeError, "floating dtype"),
    ],
)
def test_errors(arguments, error, words):
    with pytest.raises(error, match=words):
        MLP(**{"in_size": 2, "key": KEY} | arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize("x", [jnp.zeros(3), jnp.zeros((5, 2)), jnp.zeros(())])
def test_a_batch_is_refused(x):
    with pytest.raises(ValueError, match=r"ONE point, of shape \(2,\)"):
        MLP(2, layers=(4,), key=KEY)(x)
