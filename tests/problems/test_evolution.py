"""The evolution problems (and Kovasznay flow, and layers) against their closed forms."""

import math
from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sciml_opt as so
from sciml_opt import problems

# Most of the time here is XLA's; its optimisations change nothing that is tested.
jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
pi = jnp.pi


def standing_waves(beta, x):
    x, t = x
    return jnp.sin(pi * x) * jnp.cos(2 * pi * t) + 0.5 * jnp.sin(beta * pi * x) * jnp.cos(2 * beta * pi * t)


def logistic(x):
    x, t = x
    odds = 1 / jnp.expm1(8 * (x - pi) ** 2 / pi**2)  # h / (1 - h), infinite at x = pi
    return 1 / (1 + jnp.exp(-5 * t) / odds)


def kovasznay(x):
    x, y = x
    rate = 20 - jnp.sqrt(400 + 4 * pi**2)
    growth = jnp.exp(rate * x)
    u, v = 1 - growth * jnp.cos(2 * pi * y), rate / (2 * pi) * growth * jnp.sin(2 * pi * y)
    return jnp.stack([u, v, 0.5 - 0.5 * growth**2])


def layers(x):
    end = 50.0  # 1 / eps
    return jnp.prod(x - jnp.expm1(end * x) / jnp.expm1(end))


def oscillation(x):
    """By amplitude and phase."""
    omega = 6396**0.5
    phase = math.atan2(2, omega)
    return jnp.exp(-2 * x[0]) * jnp.cos(omega * x[0] - phase) / math.cos(phase)


EXACT = {
    "advection_diffusion": layers,
    "convection": lambda x: jnp.sin(x[0] - 10 * x[1]),
    "convection40": lambda x: jnp.sin(x[0] - 40 * x[1]),
    "convection80": lambda x: jnp.sin(x[0] - 80 * x[1]),
    "heat2d_ms": lambda x: jnp.sin(20 * pi * x[0]) * jnp.sin(pi * x[1]) * jnp.exp(-1.0016 * x[2]),
    "heat4d": lambda x: jnp.exp(-x[4]) * jnp.sin(2 * x[:4]).sum(),
    "heat_nd": lambda x: jnp.exp(x[:5] @ x[:5] / 2 + x[5]),
    "klein_gordon": lambda x: x[0] * jnp.cos(5 * pi * x[1]) + (x[0] * x[1]) ** 3,
    "kovasznay": kovasznay,
    "oscillator": oscillation,
    "reaction": logistic,
    "wave": partial(standing_waves, 5),
    "wave1d_c": partial(standing_waves, 4),
}
NAMES = tuple(EXACT)


def perturbed(name, a):
    """The solution plus `a` times another function."""
    return lambda x: EXACT[name](x) + a * (jnp.sum(x**2) + x[0] + 1)


@pytest.mark.parametrize("name", NAMES)
def test_residuals_vanish_for_the_solution_only(name):
    problem, batch = problems.get(name), problems.get(name).batch()
    points = {term: entry[:: max(1, len(entry) // 100)] for term, entry in batch.items()}

    @jit
    def residuals(a):
        u = perturbed(name, a)
        terms = problem.objective.terms.items()
        return {key: jax.vmap(lambda x, inner=term.inner: inner(u, x))(points[key]) for key, term in terms}

    for term, z in residuals(0.0).items():
        np.testing.assert_allclose(z, 0, atol=1e-10, err_msg=term)
    for term, z in residuals(1.0).items():
        assert jnp.max(jnp.abs(z)) > 0.1, term


@pytest.mark.parametrize("name", NAMES)
def test_error_of_the_solution_and_of_zero(name):
    problem = problems.get(name)
    error = jit(lambda a: problem.error(lambda x: a * EXACT[name](x)))
    for a, expected in ((1.0, 0.0), (0.0, 1.0), (1.5, 0.5)):
        np.testing.assert_allclose(error(a), expected, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_points_lie_in_the_domain(name):
    problem = problems.get(name)
    lower, upper = np.array(list(problem.domain.values())).T
    training = problem.training_points()
    for points in (*training.values(), np.asarray(problem.test_points())):
        assert points.dtype == np.float64 and points.shape[1] == len(problem.domain)
        assert (points >= lower).all() and (points <= upper).all()
        assert len(np.unique(points, axis=0)) == len(points)
    interior = training["interior"]
    assert (interior > lower).all() and (interior < upper).all()
    middle = 0.7 if name == "advection_diffusion" else 0.5  # half of its points are within 0.1 of each layer
    np.testing.assert_allclose((interior.mean(0) - lower) / (upper - lower), middle, atol=0.01)


def test_points_of_the_sides_and_of_the_ball():
    sides = problems.get("heat4d").training_points()["boundary"]
    for side in (0, 1):
        assert ((sides[:, :4] == side).sum(0) == 128).all()
    assert np.isin(sides[:, :4], (0, 1)).any(1).all() and (sides[:, 4] > 0).all() and (sides[:, 4] < 1).all()
    ball = problems.get("heat_nd").training_points()
    radius = np.linalg.norm(ball["interior"][:, :5], axis=1)
    assert (radius < 1).all()
    np.testing.assert_allclose((radius < 0.5 ** (1 / 5)).mean(), 0.5, atol=0.01)  # uniform in volume
    np.testing.assert_allclose(np.linalg.norm(ball["boundary"][:, :5], axis=1), 1, rtol=1e-14)
    # in every orthant about the same number
    count = np.unique((ball["boundary"][:, :5] > 0) @ 2 ** np.arange(5), return_counts=True)[1]
    assert len(count) == 32 and count.min() > 20 and count.max() < 44
    flow = problems.get("kovasznay").training_points()
    on_side = (flow["boundary"] == [-0.5, -0.5]) | (flow["boundary"] == [1.0, 1.5])
    assert (on_side.sum(1) == 1).all() and len(flow["boundary"]) == 256


# name -> points where the value of the solution, and points where also its derivative in time, holds for any model
SEGMENT = np.linspace(0.0, 1.0, 9)


def rows(*columns):
    return np.stack(np.broadcast_arrays(*columns), axis=1).astype(float)


CUBE = np.random.default_rng(0).uniform(size=(9, 5))
VALUES = {
    "advection_diffusion": [rows(side, SEGMENT) for side in (0, 1)] + [rows(SEGMENT, side) for side in (0, 1)],
    "convection40": [rows(2 * np.pi * SEGMENT, 0)],
    "heat2d_ms": [rows(SEGMENT, SEGMENT**2, 0), *(rows(side, SEGMENT, 3 * SEGMENT) for side in (0, 1))]
    + [rows(SEGMENT, side, 3 * SEGMENT) for side in (0, 1)],
    "heat4d": [CUBE * [1, 1, 1, 1, 0]],
    "heat_nd": [np.append(CUBE / 3, np.zeros((9, 1)), axis=1)],
    "klein_gordon": [rows(0, SEGMENT)],
    "reaction": [rows(2 * np.pi * SEGMENT, 0)],
    "wave": [rows(side, SEGMENT) for side in (0, 1)],
}
STARTS = {  # value and velocity
    "klein_gordon": rows(SEGMENT, 0),
    "oscillator": np.zeros((1, 1)),
    "wave": rows(SEGMENT, 0),
}


@cache
def values_and_gradients(name):
    """Of a random model, at one number of points, so that it compiles once."""
    model = problems.get(name).model(jax.random.key(1), layers=(5,))
    return jit(jax.vmap(jax.value_and_grad(model)))


@pytest.mark.parametrize("name", sorted(VALUES.keys() | STARTS))
def test_conditions_hold_for_any_model(name):
    at, exact = values_and_gradients(name), jax.vmap(EXACT[name])
    for points in VALUES.get(name, []):
        np.testing.assert_allclose(at(points)[0], exact(points), atol=1e-13)
    if name in STARTS:
        value, gradient = at(STARTS[name])
        np.testing.assert_allclose(value, exact(STARTS[name]), atol=1e-13)
        np.testing.assert_allclose(gradient[:, -1], 0, atol=1e-10)


@pytest.mark.parametrize("name, derivatives", [("convection40", True), ("reaction", False)])
def test_models_are_periodic(name, derivatives):
    at = values_and_gradients(name)
    (left, slope_left), (right, slope_right) = at(rows(0, SEGMENT)), at(rows(2 * np.pi, SEGMENT))
    np.testing.assert_allclose(left, right, atol=1e-12)
    assert np.ptp(left) > 0.01
    if derivatives:
        np.testing.assert_allclose(slope_left, slope_right, atol=1e-10)
    else:  # the Gaussian of the start has opposite slopes at the two ends, as the exact solution has
        np.testing.assert_allclose(slope_left[:, 0], -slope_right[:, 0], atol=1e-12)


def test_published_figure_of_heat4d_is_relative():
    problem = problems.get("heat4d")
    rms = np.sqrt(np.mean(problem.reference(np.asarray(problem.test_points())) ** 2))
    assert problem.published is not None
    np.testing.assert_allclose(problem.published.error, 7.4e-7 / rms, rtol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays(name):
    problem = problems.get(name)
    model = eqx.filter_eval_shape(problem.model, jax.random.key(0), (3,), jnp.float32)
    model = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if eqx.is_array_like(leaf) else leaf, model)
    loss = jax.eval_shape(problem.objective.bind(problem.batch(jnp.float32)), model)
    assert loss.shape == () and loss.dtype == jnp.float32
    assert jax.eval_shape(problem.error, model).dtype == jnp.float32


@pytest.mark.parametrize("name", ["convection40", "kovasznay"])
def test_a_step_decreases_the_loss(name):
    problem = problems.get(name)
    model = problem.model(jax.random.key(0), layers=(4,))
    loss, tx = problem.objective.bind(problem.batch()), so.levenberg_marquardt()

    @jit
    def step(model):
        value, grad = jax.value_and_grad(loss)(model)
        updates, _ = tx.update(grad, tx.init(model), model, value=value, grad=grad, value_fn=loss)
        return value, loss(eqx.apply_updates(model, updates))

    before, after = step(model)
    assert after < 0.99 * before


@pytest.mark.bad_input
def test_coefficients_are_checked():
    with pytest.raises(ValueError, match="beta must be greater than 0, got -1"):
        problems.get("convection", beta=-1.0)
    with pytest.raises(ValueError, match=r"beta must be a positive integer, got 2\.5"):
        problems.get("wave", beta=2.5)
    with pytest.raises(ValueError, match="rho must be greater than 0, got 0"):
        problems.get("reaction", rho=0.0)


def test_coefficients_enter():
    for name, option in (("convection", {"beta": 40.0}), ("wave", {"beta": 4})):
        twin = problems.get({"convection": "convection40", "wave": "wave1d_c"}[name])
        points = np.asarray(twin.test_points())
        np.testing.assert_array_equal(problems.get(name, **option).reference(points), twin.reference(points))
    assert problems.get("wave", beta=4).published is None and problems.get("reaction", rho=2.0).published is None
