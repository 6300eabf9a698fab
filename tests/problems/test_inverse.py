"""Trainable coefficients, and the problems that look for them."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sciml_opt as so
from sciml_opt import problems
from sciml_opt.models import Bounded, Positive, Scaled
from sciml_opt.problems._burgers import VISCOSITY, cole_hopf

NAMES = ("burgers_inverse", "heat_inverse", "poisson_inverse")
COEFFICIENTS = {
    "positive": (lambda value, dtype=None: Positive(value, dtype), 3e-3),
    "bounded": (lambda value, dtype=None: Bounded(value, -1.0, 3.0, dtype), 2.5),
    "scaled": (lambda value, dtype=None: Scaled(value, 1e6, dtype), -2.1e6),
}
jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
HERMITE = [jnp.asarray(a) for a in np.polynomial.hermite.hermgauss(100)]


def cole_hopf_jax(x):
    z, w = HERMITE
    y = x[0] - jnp.sqrt(4 * VISCOSITY * x[1]) * z
    p = w * jnp.exp(-jnp.cos(jnp.pi * y) / (2 * np.pi * VISCOSITY))
    return -jnp.sum(p * jnp.sin(jnp.pi * y)) / jnp.sum(p)


class Exact(eqx.Module):
    """A solution with its coefficients, in place of a model; `error` is added to every field."""

    name: str = eqx.field(static=True)
    error: Any = 0.0
    unknown: dict = eqx.field(static=True, default_factory=dict)

    def u(self, x):
        if self.name == "burgers_inverse":
            return cole_hopf_jax(x) + self.error * jnp.prod(x) ** 2
        decay = jnp.exp(-x[2]) if self.name == "heat_inverse" else 1.0
        return decay * jnp.prod(jnp.sin(jnp.pi * x[:2])) + self.error * jnp.prod(x) ** 2

    def a(self, x):
        if self.name == "heat_inverse":
            return 2 + jnp.prod(jnp.sin(jnp.pi * x)) + self.error
        return 1 / (1 + jnp.sum(x**2) + jnp.sum((x - 1) ** 2)) + self.error


def measured(problem, model):
    """The prediction for a network or for an exact solution."""
    if problem.outputs == ("u",):
        return model.u
    return lambda x: jnp.stack([model.u(x), model.a(x[:2])])


@pytest.mark.parametrize("name", NAMES)
def test_residuals_of_the_solution_vanish_and_data_have_the_noise(name):
    problem = problems.get(name)
    batch, terms = problem.batch(), problem.objective.terms
    points = batch["interior"][::5]
    residuals = jit(lambda model: jax.vmap(partial(terms["interior"].inner, model))(points))
    for error in (0.0, 0.1):
        z = residuals(Exact(name, jnp.float64(error)))
        if error:
            assert jnp.max(jnp.abs(z)) > 0.1
        else:  # in Burgers' shock u_xx is 1e4, and rounding with it
            np.testing.assert_allclose(z, 0, atol=1e-9 if name == "burgers_inverse" else 1e-12)
    places, values = batch["data"]
    clean = problem.reference(np.asarray(places))
    errors = values - (clean if clean.ndim == 1 else clean[:, 0])
    u = cole_hopf(np.asarray(problem.test_points())) if name == "burgers_inverse" else None
    sigma = 0.1 if u is None else 0.01 * np.std(u)
    assert abs(np.std(errors) / sigma - 1) < 0.06 and abs(np.mean(errors)) < 4 * sigma / np.sqrt(len(errors))
    z = jit(jax.vmap(partial(terms["data"].inner, Exact(name))))(batch["data"])
    np.testing.assert_allclose(z, -errors, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_another_draw_changes_the_noise_alone(name):
    first, again, other = (problems.get(name, noise_seed=seed).training_points() for seed in (0, 0, 1))
    for term in first:
        for a, b, c in zip(*(jax.tree.leaves(batch[term]) for batch in (first, again, other)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert (a.shape == c.shape) and (np.ndim(a) == 1 or (a == c).all())
    values, others = first["data"][1], other["data"][1]
    assert np.abs(np.corrcoef(values - others, values)[0, 1]) < 0.3 and (values != others).all()


@pytest.mark.parametrize("name", NAMES)
def test_points_and_errors(name):
    problem = problems.get(name)
    lower, upper = np.array(list(problem.domain.values())).T
    batch = problem.training_points()
    for points in (batch["interior"], batch["data"][0], np.asarray(problem.test_points())):
        assert (points >= lower).all() and (points <= upper).all() and len(np.unique(points, axis=0)) == len(points)
    values = problem.reference(np.asarray(problem.test_points()))
    exact = jit(jax.vmap(measured(problem, Exact(name))))(problem.test_points())
    np.testing.assert_allclose(exact, values, atol=1e-12)
    assert values.shape[1:] == (() if len(problem.outputs) == 1 else (2,))


def test_hard_constraints_hold_for_a_random_model():
    key = jax.random.key(3)
    random = lambda model: jax.tree.map(lambda leaf: leaf + 0.3, model)
    model = random(problems.get("burgers_inverse").model(key, (4,)))
    x = np.linspace(-1, 1, 9)
    points = np.concatenate([np.stack([x, 0 * x], 1), [[-1.0, 0.7], [1.0, 0.7]]])
    expected = np.concatenate([-np.sin(np.pi * x), [0.0, 0.0]])
    np.testing.assert_allclose(jax.vmap(model.u)(points), expected, atol=1e-15)
    for name, sides in (("poisson_inverse", (0.0, 1.0)), ("heat_inverse", (-1.0, 1.0))):
        model = random(problems.get(name).model(key, (4,)))
        edge = np.array([point for c in sides for s in (0.1, 0.6, c) for point in ((c, s), (s, c))])
        a, expected = jax.vmap(model.a), jax.vmap(Exact(name).a)
        np.testing.assert_allclose(a(edge), expected(edge), rtol=1e-14)
        inside = np.array([[0.3, 0.4]])
        assert a(inside) > 0 and abs(a(inside) - expected(inside)) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_levenberg_marquardt_decreases_the_loss(name):
    problem, tx = problems.get(name), so.levenberg_marquardt(10.0, geodesic=False)
    batch = jax.tree.map(lambda leaf: leaf[::20], problem.batch())

    @jit
    def step(model):
        loss = problem.objective.bind(batch)
        value, grad = jax.value_and_grad(loss)(model)
        updates, state = tx.update(grad, tx.init(model), model, value=value, grad=grad, value_fn=loss)
        return eqx.apply_updates(model, updates), so.info(state)

    start = problem.model(jax.random.key(0), (4,))
    model, info = step(start)
    assert info.accepted and info.trial_loss < info.loss
    if name == "burgers_inverse":
        np.testing.assert_allclose(start.unknown["viscosity"].value, 0.02, rtol=1e-14)
        assert model.unknown["viscosity"].value != start.unknown["viscosity"].value
    else:
        inside = jnp.array([0.3, 0.4])
        assert model.a(inside) != start.a(inside)
    assert 0 < problem.target < (problem.published.error if problem.published else 0.01)


def test_both_coefficients_of_burgers():
    problem = problems.get("burgers_inverse", unknown="both", noise=0.0)
    model = problem.model(jax.random.key(0), (4,))
    np.testing.assert_allclose([model.unknown[n].value for n in ("advection", "viscosity")], [0.5, 0.02], rtol=1e-14)

    def plain(model, x):
        u_x, u_t = jax.grad(model.u)(x)
        return 0.5 * model.u(x) * u_x + u_t - 0.02 * so.partial(model.u, 0, 0)(x)

    x = jnp.array([0.3, 0.6])
    found = jit(lambda m, x: (problem.objective.terms["interior"].inner(m, x), plain(m, x)))(model, x)
    np.testing.assert_allclose(*found, rtol=1e-12)
    places, values = problem.training_points()["data"]
    np.testing.assert_array_equal(values, cole_hopf(places))


@pytest.mark.parametrize("kind", COEFFICIENTS)
def test_a_coefficient_starts_at_its_value(kind):
    make, value = COEFFICIENTS[kind]
    for dtype in (jnp.float32, jnp.float64):
        leaf = make(value, dtype)
        assert leaf.raw.dtype == leaf.value.dtype == dtype and len(jax.tree.leaves(leaf)) == 1
        np.testing.assert_allclose(leaf.value, value, rtol=10 * float(jnp.finfo(dtype).eps))
    assert make(value).value.dtype == jnp.float64
    many = make(np.array([[value, 0.9 * value]]))  # an array of them
    np.testing.assert_allclose(many.value, [[value, 0.9 * value]], rtol=1e-14)
    np.testing.assert_allclose(jit(lambda v: make(v).value)(jnp.float64(value)), value, rtol=1e-14)


def test_coefficients_stay_where_they_belong():
    moved = lambda leaf, by: eqx.tree_at(lambda c: c.raw, leaf, leaf.raw + by)
    for by in (-30.0, -1.0, 2.0, 30.0):
        assert moved(Positive(1e-3), by).value > 0
        assert -1 <= moved(Bounded(0.0, -1.0, 3.0), by).value <= 3
    np.testing.assert_allclose(moved(Positive(1e-3), 0.1).value, 1e-3 * np.exp(0.1), rtol=1e-13)
    np.testing.assert_allclose(moved(Scaled(5.0, 1e6), 0.1).value, 5.0 + 1e5, rtol=1e-12)
    for leaf in (Positive(0.3), Bounded(0.3, -1.0, 3.0), Scaled(0.3, 1e-3)):
        slope = jax.grad(lambda c: c.value)(leaf).raw
        step = 1e-6
        difference = (moved(leaf, step).value - moved(leaf, -step).value) / (2 * step)
        np.testing.assert_allclose(slope, difference, rtol=1e-8)


@jax.numpy_dtype_promotion("standard")  # Adam mixes dtypes
def test_the_scale_matters_to_adam_and_not_to_marquardt():
    """A stiffness of 2e6 from its measured force."""
    objective = so.Objective(data=so.Term(lambda model, x: model.value * x * 1e-6 - 2 * x))
    loss = objective.bind({"data": jnp.linspace(0.5, 1.5, 5)})

    def path(tx, start):
        """The coefficient after each of 300 steps."""
        tx = optax.with_extra_args_support(tx)

        def step(carry, _):
            model, state = carry
            value, grad = jax.value_and_grad(loss)(model)
            updates, state = tx.update(grad, state, model, value=value, grad=grad, value_fn=loss)
            model = eqx.apply_updates(model, updates)
            return (model, state), model.value

        return np.asarray(jit(lambda m: jax.lax.scan(step, (m, tx.init(m)), None, length=300)[1])(start))

    plain, scaled = Scaled(1e6, 1.0), Scaled(1e6, 1e6)
    assert abs(path(optax.adam(1e-2), scaled)[-1] / 2e6 - 1) < 1e-2
    assert abs(path(optax.adam(1e-2), plain)[-1] / 1e6 - 1) < 1e-4  # it has not moved
    tx = so.levenberg_marquardt(scaling="marquardt", geodesic=False)
    first, second = path(tx, plain), path(tx, scaled)
    np.testing.assert_allclose(first, second, rtol=1e-6)
    np.testing.assert_allclose(first[-1], 2e6, rtol=1e-6)


@pytest.mark.bad_input
def test_bad_input():
    with pytest.raises(ValueError, match=r"Positive.value=.* must be positive, got"):
        Positive(jnp.array([1.0, -1.0]))
    with pytest.raises(ValueError, match=r"strictly between 0\.0 and 0\.5, got 0\.5"):
        Bounded(0.5, 0.0, 0.5)
    with pytest.raises(ValueError, match=r"Scaled.scale=.* must be positive, got 0"):
        Scaled(1.0, 0.0)
    with pytest.raises(ValueError, match="noise must be at least 0"):
        problems.get("burgers_inverse", noise=-0.1)
    with pytest.raises(ValueError, match="unknown must be one of"):
        problems.get("burgers_inverse", unknown="advection")
