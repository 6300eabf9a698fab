"""Every model: its formula, its linearization and the path through it, dtypes, one trace, one point."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sciml_opt as so
from sciml_opt.models import (
    FBPINN,
    MLP,
    AdaptiveTanh,
    Chain,
    FourierFeatures,
    HardConstraint,
    ModifiedMLP,
    PeriodicEmbedding,
    PirateNet,
    ResNet,
    Separable,
    TimeSlabs,
    ensemble,
    siren,
)

X = np.random.default_rng(0).uniform(0, 1, (6, 2))


def distance(x):
    return x[0] * (1 - x[0])


def lift(x):
    return jnp.cos(x[1])


def features(key, dtype):
    keys = jax.random.split(key)
    first = FourierFeatures(2, 3, 0.5, trainable=True, key=keys[0], dtype=dtype)
    return Chain(first, MLP(6, layers=(4,), key=keys[1], dtype=dtype))


def pirate(key, dtype):
    keys = jax.random.split(key)
    return Chain(
        FourierFeatures(2, 2, 0.5, key=keys[0], dtype=dtype), PirateNet(4, layers=(5,), key=keys[1], dtype=dtype)
    )


def waves(key, dtype):
    embedding = PeriodicEmbedding(2, {0: 1.0}, 2, {-1: (0.0, 2.0)})
    return Chain(embedding, MLP(embedding.out_size, layers=(4,), key=key, dtype=dtype))


def slabs(key, dtype):
    return TimeSlabs([MLP(2, layers=(4,), key=k, dtype=dtype) for k in jax.random.split(key)], 0.5)


def members(key, dtype):
    return ensemble(lambda k: MLP(2, layers=(4,), key=k, dtype=dtype), jax.random.split(key))


def activations(key, dtype):
    several = [AdaptiveTanh(4, 2.0), AdaptiveTanh(), jax.nn.gelu]
    return MLP(2, layers=(4, 4, 4), activation=several, key=key, dtype=dtype)


def windows(key, dtype):
    return FBPINN(((0.0, 1.0), (-1.0, 1.0)), layers=(4,), levels=LEVELS, key=key, dtype=dtype)


LEVELS = ((1, 1), (3, 2))


MODELS = {
    "activations": activations,
    "siren": lambda key, dtype: siren(2, layers=(4,), omega=3.0, key=key, dtype=dtype),
    "modified": lambda key, dtype: ModifiedMLP(2, layers=(4, 4), key=key, dtype=dtype),
    "resnet": lambda key, dtype: ResNet(2, layers=(4,), key=key, dtype=dtype),
    "fourier": features,
    "pirate": pirate,
    "periodic": waves,
    "hard": lambda key, dtype: HardConstraint(MLP(2, layers=(4,), key=key, dtype=dtype), distance, lift),
    "separable": lambda key, dtype: Separable(2, layers=(4,), rank=3, key=key, dtype=dtype),
    "fbpinn": windows,
    "slabs": slabs,
    "ensemble": members,
}
every_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def draw(name, seed=0, dtype=None):
    """A model whose arrays are all in general position: no zero biases, alphas or equal slopes."""
    model = MODELS[name](jax.random.key(seed), dtype)
    rng = np.random.default_rng(seed)
    move = lambda a: a + jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype)
    return jax.tree.map(lambda a: move(a) if eqx.is_inexact_array(a) else a, model)


def residual(u, x):
    return so.laplacian(u)(x) + u(x) ** 2


def slope(u, x):
    return jnp.stack(jax.jvp(u, (x,), (jnp.ones_like(x),)))


def bind(model, points=X, inner=residual):
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, so.Objective(a=so.Term(inner)).bind({"a": points}, static=static)


@functools.cache
def program(name):
    """Values, `J v` by the linearization and by forward mode, in one compiled program that is traced once."""

    @jax.jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def run(model, points, seed):
        params, loss = bind(model, points)
        leaves, treedef = jax.tree.flatten(params)
        v = jax.tree.unflatten(
            treedef, [jnp.sin(seed + jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) for a in leaves]
        )
        values = jax.vmap(model)(points)
        return values, loss.linearize(params).jacobian.mv(v), jax.jvp(loss.residual, (params,), (v,))[1]

    return run


@every_model
def test_formula_and_jacobian_and_one_trace(name):
    for seed in range(2):
        model = draw(name, seed)
        values, product, expected = program(name)(model, X, jnp.float64(seed))
        np.testing.assert_allclose(values, [FORMULAS[name](numpy(model), x) for x in X], rtol=1e-12)
        np.testing.assert_allclose(product, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
        assert np.abs(expected).min() > 0


@every_model
def test_float32_with_x64_on(name):
    params, loss = bind(draw(name, dtype=jnp.float32), inner=slope)
    assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert jax.eval_shape(loss, params).dtype == jnp.float32  # and strict promotion refuses any float64 on the way


@every_model
def test_path(name):
    params, loss = bind(draw(name), inner=slope)
    for record in so.explain(loss, params).records["a"]:
        if name == "fbpinn":
            assert (record.path, record.reason) == ("dense", "it enters gather")
        elif "bias" in record.leaf:
            assert record.path == "dense" and "add" in record.reason
        elif "alphas" in record.leaf or "slope" in record.leaf:
            assert record.path.startswith("dense")
        else:
            assert "weights" in record.leaf or "frequencies" in record.leaf
            assert record.path == "factored"


@pytest.mark.bad_input
@every_model
def test_a_batch_is_refused(name):
    with pytest.raises(ValueError, match="ONE point"):
        jax.eval_shape(draw(name), jnp.zeros((5, 2)))


# --- the formulas, from the papers, in NumPy -----------------------------------------------------------------------


def numpy(model):
    return jax.tree.map(np.asarray, model)


def forward(weights, biases, h, activations):
    *hidden, last = zip(weights, biases, strict=True)
    for (W, b), act in zip(hidden, activations, strict=True):
        h = act(W @ h + b)
    return last[0] @ h + last[1]


def mlp(net, x, act=np.tanh):
    return forward(net.weights, net.biases, x, [act] * (len(net.weights) - 1))


def gelu(h):
    return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))


def adaptive(net, x):
    a, b = (act.slope for act in net.activation[:2])
    return forward(net.weights, net.biases, x, [lambda h: np.tanh(2 * a * h), lambda h: np.tanh(b * h), gelu])[0]


def modified(net, x):
    U, V = (np.tanh(W @ x + b) for W, b in zip(net.gate_weights, net.gate_biases, strict=True))
    h = x
    for W, b in zip(net.weights[:-1], net.biases[:-1], strict=True):
        Z = np.tanh(W @ h + b)
        h = (1 - Z) * U + Z * V
    return (net.weights[-1] @ h + net.biases[-1])[0]


def resnet(net, x):
    W, b = net.weights, net.biases
    h = W[0] @ x + b[0]
    h = h + np.tanh(W[2] @ np.tanh(W[1] @ h + b[1]) + b[2])
    return (W[3] @ h + b[3])[0]


def fourier(B, x):
    return np.concatenate([np.cos(2 * np.pi * B @ x), np.sin(2 * np.pi * B @ x)])


def frequencies(model):
    held = model.maps[0].frequencies
    return np.asarray(getattr(held, "value", held))  # frozen, or a parameter


def pirate_formula(model, x):
    net, x = model.maps[1], fourier(frequencies(model), x)
    U, V = (np.tanh(W @ x + b) for W, b in zip(net.gate_weights, net.gate_biases, strict=True))
    layer = lambda k, h: np.tanh(net.weights[k] @ h + net.biases[k])
    for block, alpha in enumerate(net.alphas):
        f = layer(3 * block, x)
        g = layer(3 * block + 1, f * U + (1 - f) * V)
        h = layer(3 * block + 2, g * U + (1 - g) * V)
        x = alpha * h + (1 - alpha) * x
    return (net.weights[-1] @ x + net.biases[-1])[0]


def periodic(model, x):
    a = 2 * np.pi * x[0]
    return mlp(model.maps[1], np.array([np.cos(a), np.cos(2 * a), np.sin(a), np.sin(2 * a), x[1] - 1]))[0]


def member(stacked, j):
    return jax.tree.map(lambda a: a[j], stacked)


def fbpinn(model, x):
    """All subdomains, whether they reach x or not."""
    total, start = 0.0, 0
    for level in LEVELS:
        weights, values = [], []
        for j, numbers in enumerate(itertools.product(*map(range, level))):
            window, local = 1.0, []
            for (a, b), n, k, y in zip(((0, 1), (-1, 1)), level, numbers, x, strict=True):
                h = (b - a) / (n - 1) if n > 1 else b - a
                s = (y - (a + k * h if n > 1 else (a + b) / 2)) / (1.9 * h / 2)
                window *= ((1 + np.cos(np.pi * s)) / 2) ** 2 if abs(s) < 1 else 0.0
                local.append(s)
            weights.append(window)
            values.append(mlp(member(model.networks, start + j), np.array(local))[0])
        total += np.dot(weights, values) / np.sum(weights) / len(LEVELS)
        start += len(values)
    return total


def time_slabs(model, x):
    j = int(x[1] // 0.5)
    return mlp(member(model.models, j), np.array([x[0], x[1] - 0.5 * j]))[0]


def chain(model, x):
    return mlp(model.maps[1], fourier(frequencies(model), x))[0]


FORMULAS = {
    "activations": adaptive,
    "siren": lambda net, x: mlp(net, x, lambda h: np.sin(3 * h))[0],
    "modified": modified,
    "resnet": resnet,
    "fourier": chain,
    "pirate": pirate_formula,
    "periodic": periodic,
    "hard": lambda model, x: np.cos(x[1]) + x[0] * (1 - x[0]) * mlp(model.net, x)[0],
    "separable": lambda net, x: np.sum(mlp(net.networks[0], x[:1]) * mlp(net.networks[1], x[1:])),
    "fbpinn": fbpinn,
    "slabs": time_slabs,
    "ensemble": lambda model, x: np.mean([mlp(member(model.members, j), x) for j in range(2)]),
}
