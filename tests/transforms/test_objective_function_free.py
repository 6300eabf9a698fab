"""Optimisation without function values, against its equations in NumPy, and the rate that it promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sciml_opt as so

SCALE, SIGMA, MU = 0.7, 1e-2, 0.4
KINDS = {"box": {}, "norm": {"norm": True}, "cauchy": {"curvature": True}}
KINDS["norm cauchy"] = {"norm": True, "curvature": True}
A = np.diag([1.0, -2.0, 300.0, 4.0, 5.0, 0.1, 0.5]) + 0.3


def parameters(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(2, 3)).astype(dtype), "b": np.asarray(rng.normal(), dtype)}


def flat(tree):
    return np.concatenate([np.ravel(tree["a"]), np.ravel(tree["b"])])


def loss(params):
    """Not convex."""
    x = jnp.concatenate([params["a"].reshape(-1), params["b"].reshape(1)])
    return 0.5 * x @ jnp.asarray(A, x.dtype) @ x + 0.1 * jnp.sum(x**4)


def hessian(params):
    return A + 1.2 * np.diag(flat(params) ** 2)


@jax.jit
def init(tx, params):
    return tx.init(params)


@jax.jit
def step(tx, grads, state, params):
    return tx.update(grads, state, params, value_fn=loss)


@pytest.fixture(scope="module")
def runs():
    """`kind -> grads, steps, states` of six steps, at points of their own, and along gradients that are noisy."""

    @functools.cache
    def run(kind):
        tx = so.objective_function_free(SCALE, sigma=SIGMA, mu=MU, **KINDS[kind])
        grads, steps, states = [], [], [init(tx, parameters())]
        for k in range(6):
            grads.append(jax.tree.map(lambda g, e: g + e, jax.grad(loss)(parameters(k)), parameters(k + 50)))
            found, state = step(tx, grads[-1], states[-1], parameters(k))
            steps, states = [*steps, found], [*states, state]
        return grads, steps, states

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_that_of_the_paper(kind, runs):
    total, gammas = 0.0, []
    grads, steps, states = runs(kind)
    for k, (g, got, state) in enumerate(zip(grads, steps, states[1:], strict=True)):
        g, got = flat(g), flat(got)
        total = total + (g @ g if "norm" in kind else g**2)
        w = (SIGMA + total) ** MU
        radius = SCALE * np.abs(g) / w
        want, gamma = -np.sign(g) * radius, 1.0
        if "cauchy" in kind:
            curvature = want @ hessian(parameters(k)) @ want
            gamma = min(1, abs(g @ want) / curvature) if curvature > 0 else 1.0
        gammas.append(gamma)
        np.testing.assert_allclose(got, gamma * want, rtol=1e-12)
        np.testing.assert_allclose(flat(state.radius), radius, rtol=1e-12)
        values = state.weights if "norm" in kind else flat(state.weights)
        np.testing.assert_allclose(values, w, rtol=1e-12)
    if "cauchy" in kind:
        assert min(gammas) < 1


def test_negative_curvature_takes_the_whole_box():
    tx = so.objective_function_free(curvature=True)
    params = {"a": np.array([[0.0, 1.0, 0.0], [0, 0, 0]]), "b": np.float64(0)}
    g = {"a": np.array([[0.0, -2.0, 0.0], [0, 0, 0]]), "b": np.float64(0)}
    got, state = step(tx, g, init(tx, params), params)
    assert hessian(params)[1, 1] < 0
    np.testing.assert_array_equal(np.abs(flat(got)), flat(state.radius))


def test_the_cauchy_point_minimises_the_model_along_the_step(runs):
    """And it stays in the box."""
    grads, steps, states = runs("cauchy")
    for k, (g, s, state) in enumerate(zip(grads, steps, states[1:], strict=True)):
        g, s, radius = flat(g), flat(s), flat(state.radius)
        assert np.all(np.abs(s) <= radius * (1 + 1e-15))
        line = -np.linspace(0, 1, 101)[:, None] * np.sign(g) * radius
        along = model(g, hessian(parameters(k)), line)
        assert model(g, hessian(parameters(k)), s) <= min(along) * (1 - 1e-12) < 0


def model(g, H, s):
    return s @ g + 0.5 * np.sum(s @ H * s, axis=-1)


def test_without_curvature_it_is_adagrad(runs):
    tx = so.objective_function_free(1.0, sigma=SIGMA)
    adagrad = optax.scale_by_rss(initial_accumulator_value=SIGMA, eps=0.0)
    state, other = init(tx, parameters()), adagrad.init(parameters())
    for g in runs("box")[0]:
        got, state = step(tx, g, state, parameters())
        want, other = adagrad.update(g, other)
        np.testing.assert_allclose(flat(got), -flat(want), rtol=1e-12)


EIGENVALUES = np.geomspace(1e-1, 1e3, 8)


@functools.partial(jax.jit, static_argnames=("steps",))
def gradient_norms(tx, relative, absolute, steps=20_000):
    """`|g|` along the path on an ill-conditioned quadratic function, for five seeds of start and noise."""

    def run(key):
        def body(carry, key):
            x, state = carry
            g = EIGENVALUES * x
            size = jnp.linalg.norm(g)
            e = jax.random.normal(key, g.shape) / jnp.sqrt(g.size)
            s, state = tx.update(g + (relative * size + absolute) * e, state, x)
            return (x + s, state), size

        x = jax.random.normal(key, EIGENVALUES.shape)
        return jax.lax.scan(body, (x, tx.init(x)), jax.random.split(key, steps))[1]

    return jax.vmap(run)(jax.random.split(jax.random.key(0), 5))


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("relative", [0.0, 0.5])
def test_the_least_gradient_falls_like_one_over_sqrt_k_whatever_the_scale(scale, relative):
    norms = gradient_norms(so.objective_function_free(scale, norm=True), relative, 0.0)
    least = np.minimum.accumulate(norms, axis=1)
    assert np.all(least[:, -1] < least[:, 1000] * np.sqrt(1000 / 20_000))
    if scale == 1:  # the default
        assert np.all(least[:, -1] < 1e-4 * least[:, 0])


def test_the_gradient_falls_below_noise_of_fixed_size():
    noise = 10.0
    norms = np.asarray(gradient_norms(so.objective_function_free(norm=True), 0.0, noise))
    early, late = np.median(norms[:, 100:200], axis=1), np.median(norms[:, 10_000:], axis=1)
    assert np.all(late < early) and np.all(late < noise / 3)
    assert np.all(norms.min(axis=1) < noise / 20)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_fresh_numbers_and_broken_gradients(kind):
    params = parameters(dtype=np.float32)
    tx = so.objective_function_free(**KINDS[kind])
    others = so.objective_function_free(0.1, sigma=1.0, mu=0.3, **KINDS[kind])
    run = jax.jit(lambda tx, grads, state, params: tx.update(grads, state, params, value_fn=loss))
    shape = lambda tree: [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]
    state = init(tx, params)
    first = shape(state)
    assert {str(kind) for _, kind, _ in first} == {"float32"} and not any(weak for _, _, weak in first)
    for other in (tx, others):
        updates, state = run(other, parameters(1, np.float32), state, params)
        assert shape(state) == first and {str(leaf.dtype) for leaf in jax.tree.leaves(updates)} == {"float32"}
    for broken in (np.nan, np.inf, 1e30):  # the square of the last is infinite
        updates, after = run(tx, params | {"b": np.float32(broken)}, state, params)
        assert np.all(flat(updates) == 0)
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(old, new)
    if "cauchy" in kind:  # a Hessian that is not finite
        updates, after = run(tx, params, state, params | {"b": np.float32(np.nan)})
        assert np.all(flat(updates) == 0)
        np.testing.assert_array_equal(flat(after.radius), flat(state.radius))
    assert run._cache_size() == 1


def test_what_float32_loses_of_many_small_gradients():
    """Each step at most half a unit in the last place of the sum, as documented."""
    small, steps = np.float32(1.0), 10_000

    @jax.jit
    def run(tx):
        def body(state, g):
            return tx.update(g, state, g)[1], None

        given = jnp.full(steps, small).at[0].set(1e4)
        return jax.lax.scan(body, tx.init(small), given)[0]

    got = float(run(so.objective_function_free()).squares)
    exact = 1e8 + (steps - 1) * float(small) ** 2
    assert got < exact  # it does lose them
    assert got > exact * (1 - 6e-8 * steps)


@pytest.mark.bad_input
def test_errors():
    for wrong, message in (
        ({"scale": 0.0}, "scale must be greater than 0"),
        ({"sigma": 0.0}, "sigma must be greater than 0"),
        ({"mu": 1.0}, "mu must be less than 1"),
        ({"mu": 0.0}, "mu must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            so.objective_function_free(**wrong)
    tx, params = so.objective_function_free(curvature=True), parameters()
    with pytest.raises(ValueError, match="params has no array leaves"):
        tx.init({})
    with pytest.raises(TypeError, match=r"params\['n'\] has dtype int"):
        tx.init({"n": np.arange(3)})
    with pytest.raises(TypeError, match="must be real"):
        tx.init({"z": np.ones(3, complex)})
    with pytest.raises(TypeError, match="value_fn must be a function of the parameters, got NoneType"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match=r"update\(params=...\) is needed"):
        tx.update(params, tx.init(params), value_fn=loss)
