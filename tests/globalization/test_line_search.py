"""Strong Wolfe search and the trust-region rule."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from sciml_opt.globalization import (
    LineSearch,
    armijo_search,
    line_search,
    strong_wolfe_gradient_search,
    strong_wolfe_search,
    trust_region_update,
)

C1, C2 = 1e-4, 0.9
X = jnp.array([-1.2, 1.0])
FUNCTIONS = {
    "rosenbrock": lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2,
    "quadratic": lambda x: 0.5 * (x[0] ** 2 + 50 * x[1] ** 2),
    "barrier": lambda x: -jnp.sum(jnp.log(2 - x**2)) + 0.2 * x[0],  # NaN outside
    "exponential": lambda x: jnp.sum(jnp.exp(x)) - 3 * jnp.sum(x),  # overflows far away
    "wavy": lambda x: jnp.sum(x**2) + jnp.sum(jnp.sin(8 * x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_strong_wolfe_conditions_as_scipy(name):
    f, grad = FUNCTIONS[name], jax.jit(jax.grad(FUNCTIONS[name]))

    @functools.partial(jax.jit, static_argnums=1)
    def search(d, c2):
        return strong_wolfe_search(f, X, d, f(X), jax.grad(f)(X) @ d, curvature=c2)

    def slope(eta, d):
        return float(grad(X + eta * d) @ d)

    for scale in (1e-4, 1e-2, 1.0, 30.0):
        d = -scale * grad(X)
        for c2 in (C2, 0.1):
            found = search(d, c2)
            eta = float(found.step_size)
            assert eta > 0
            np.testing.assert_allclose(found.value, f(X + eta * d), rtol=1e-13)
            assert found.value <= f(X) + C1 * eta * slope(0, d)
            assert abs(slope(eta, d)) <= -c2 * slope(0, d)
            assert int(found.evaluations) <= 40 and int(found.evaluations) % 2 == 0
        # where SciPy's search succeeds, both end at points with the same properties
        theirs = scipy.optimize.line_search(f, grad, np.asarray(X), np.asarray(d), c1=C1, c2=C2, maxiter=30)[0]
        if theirs is not None:
            assert abs(slope(theirs, d)) <= -C2 * slope(0, d)


def test_one_trace_and_the_unit_step_costs_one_trial():
    f = eqx.debug.assert_max_traces(FUNCTIONS["quadratic"], max_traces=1)
    d = -X * jnp.array([1.0, 1.0])
    slope = jnp.asarray(X @ (d * jnp.array([1.0, 50.0])))
    found = jax.jit(lambda: strong_wolfe_search(f, X, d, FUNCTIONS["quadratic"](X), slope))()
    assert isinstance(found, LineSearch)
    assert (float(found.step_size), int(found.evaluations), int(found.gradients)) == (1.0, 2, 0)


def test_non_finite_trials_shrink_the_step():
    f = lambda x: jnp.where(x > 1e-3, jnp.nan, (x - 5e-4) ** 2)
    start, d = jnp.asarray(0.0), jnp.asarray(1.0)
    found = jax.jit(lambda: strong_wolfe_search(f, start, d, f(start), jax.grad(f)(start)))()
    assert 0 < float(found.step_size) <= 1e-3 and float(found.value) < float(f(start))


@pytest.mark.parametrize("kind", ["armijo", "strong_wolfe", "grid"])
def test_no_step_where_nothing_decreases(kind):
    search = jax.jit(lambda f, d, grad: line_search(kind, f, jnp.asarray(1.0), d, f(jnp.asarray(1.0)), grad))
    one, nan = jnp.asarray(1.0), jnp.asarray(jnp.nan)
    for f, d, grad in (
        (lambda x: jnp.abs(x - 1), one, -one),  # a minimum, and a wrong slope
        (lambda x: jnp.where(x == 1, 0.0, jnp.nan), one, -one),
        (lambda x: jnp.nan * x, one, nan),
        (lambda x: x**2, nan, one),
    ):
        found = search(jax.tree_util.Partial(f), d, grad)
        assert float(found.step_size) == 0
        np.testing.assert_array_equal(found.value, f(one))
    uphill = strong_wolfe_search(lambda x: x**2, one, one, one, 2 * one)
    assert float(uphill.step_size) == 0 and int(uphill.evaluations) == 0


def test_float32_near_rounding_never_increases_and_stops_early():
    """A quadratic on top of a constant: differences of values are rounding, slopes are not."""
    f = lambda x: jnp.float32(1) + jnp.sum(x**2 * jnp.array([1.0, 3.0], jnp.float32))
    search = jax.jit(lambda x, d: strong_wolfe_search(f, x, d, f(x), jax.grad(f)(x) @ d))
    slope = jax.jit(lambda x, d: jax.grad(f)(x) @ d)
    rng, moved, trials = np.random.default_rng(0), 0, []
    for size in np.repeat([1e-1, 1e-2, 1e-3, 3e-4, 1e-4, 1e-6], 30):
        x = jnp.asarray(size * rng.normal(size=2), jnp.float32)
        d = -jax.grad(f)(x) * jnp.float32(10.0 ** rng.uniform(-1, 0.5))
        found = search(x, d)
        moved += bool(found.step_size > 0)
        trials.append(int(found.evaluations) // 2)
        assert found.step_size.dtype == jnp.float32
        end = x + found.step_size * d
        assert f(end) <= f(x) and found.value == f(end)
        # of equal values the flatter one: the gradient is known where the difference of the values is not
        assert f(end) < f(x) or found.step_size == 0 or abs(slope(end, d)) < abs(slope(x, d))
    assert moved >= 90 and max(trials) <= 20 and np.mean(trials) < 5


def test_float32_goes_on_below_the_rounding_of_the_loss():
    f = lambda x: jnp.float32(1) + jnp.sum(x**2 * jnp.array([1.0, 3.0], jnp.float32))

    @jax.jit
    def descend(x):
        for _ in range(12):
            g = jax.grad(f)(x)
            found, g_new = strong_wolfe_gradient_search(f, x, -jnp.float32(0.2) * g, f(x), g)
            x = x - found.step_size * jnp.float32(0.2) * g
        return x, found, g_new

    for seed in range(5):
        x = jnp.asarray(3e-5 * np.random.default_rng(seed).normal(size=2), jnp.float32)
        assert f(x) == 1  # no difference of values is left
        end, found, gradient = descend(x)
        assert jnp.linalg.norm(end) < 1e-2 * jnp.linalg.norm(x)
        np.testing.assert_allclose(gradient, jax.grad(f)(end), rtol=1e-5)  # two programs, rounded otherwise
        assert int(found.evaluations) == 0 and int(found.gradients) >= 1


def test_the_path_does_not_depend_on_the_scale_of_the_loss():
    f, d = FUNCTIONS["rosenbrock"], -30 * jax.grad(FUNCTIONS["rosenbrock"])(X)
    g = lambda x, scale: scale * f(x)
    search = jax.jit(lambda s: strong_wolfe_search(lambda x: g(x, s), X, d, g(X, s), jax.grad(g)(X, s) @ d).step_size)
    assert float(search(2.0**-60)) == float(search(1.0)) == float(search(2.0**60))


def test_under_vmap_and_for_pytrees():
    f = lambda tree: FUNCTIONS["rosenbrock"](jnp.stack([tree["a"], tree["b"]]))
    starts = {"a": jnp.array([-1.2, 0.5, 2.0]), "b": jnp.array([1.0, 0.0, -1.0])}

    def one(start):
        d = jax.tree.map(jnp.negative, jax.grad(f)(start))
        slope = -sum(leaf**2 for leaf in jax.tree.leaves(d))
        return strong_wolfe_search(f, start, d, f(start), slope)

    lanes = jax.jit(jax.vmap(one))(starts)
    for lane in range(3):
        alone = jax.jit(one)(jax.tree.map(lambda leaf, lane=lane: leaf[lane], starts))
        np.testing.assert_allclose(lanes.step_size[lane], alone.step_size, rtol=1e-12)
        assert int(lanes.evaluations[lane]) == int(alone.evaluations)


def test_armijo_takes_the_constant_of_sufficient_decrease():
    f = lambda x: x**2
    search = lambda c: armijo_search(f, jnp.asarray(1.0), jnp.asarray(-1.9), jnp.asarray(1.0), jnp.asarray(-3.8), c)
    assert float(search(1e-4).step_size) == 1.0 and float(search(0.1).step_size) == 0.5


def test_trust_region_update():
    rule = lambda rho, edge, length=1.0: float(
        trust_region_update(*map(jnp.asarray, (1.0, rho, edge, length)), least=jnp.asarray(1e-3))
    )
    assert rule(0.1, True) == 0.25 and rule(0.1, False, 0.4) == 0.1
    assert rule(0.5, True) == 1.0 and rule(0.9, False, 0.4) == 1.0
    assert rule(0.9, True) == 2.0
    assert rule(float("nan"), True) == 0.25
    assert rule(-1.0, False, 1e-9) == 1e-3
