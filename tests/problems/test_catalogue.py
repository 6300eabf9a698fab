"""What every problem of the catalogue promises; nothing is compiled here."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sciml_opt as so
from sciml_opt import problems
from sciml_opt.cli._methods import METHODS

NAMES = problems.names()
FIELDS = {"elliptic", "parabolic", "hyperbolic", "dispersive", "ordinary"}  # what kind of equation


@pytest.mark.parametrize("name", NAMES)
def test_record(name):
    problem = problems.get(name)
    assert problem.name == name and "\n" not in problem.title and len(problem.title) < 80
    assert len(problem.description) > 80
    assert problem.method in METHODS and problem.steps > 0 and problem.layers
    # with noisy data more is not to be had
    assert 3 * problem.reference_error <= problem.target < (5e-2 if "inverse" in problem.tags else 1e-2)
    assert problem.tags and len(set(problem.tags)) == len(problem.tags) and FIELDS & set(problem.tags)
    least_squares = problem.objective.bind(problem.batch(), static=_static(problem)).least_squares
    assert ("least_squares" in problem.tags) == least_squares != ("energy" in problem.tags)
    assert least_squares or not METHODS[problem.method].least_squares
    if problem.published is not None:
        assert 0 < problem.published.error < 1 and problem.published.method and problem.published.source
    json.dumps([problem.published, problem.reference_error, problem.tags])


def _static(problem):
    return eqx.partition(_model(problem), eqx.is_inexact_array)[1]


def _model(problem, dtype=None):
    return eqx.filter_eval_shape(problem.model, jax.random.key(0), dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
def test_points_and_reference(name):
    problem = problems.get(name)
    points = np.asarray(problem.test_points())
    lower, upper = np.array(list(problem.domain.values())).T
    assert points.ndim == 2 and points.shape[1] == len(problem.domain) and len(points) >= 500
    assert (points >= lower - 1e-12).all() and (points <= upper + 1e-12).all()
    values = problem.reference(points)
    assert values.shape == ((len(points),) if len(problem.outputs) == 1 else (len(points), len(problem.outputs)))
    assert np.isfinite(values).all() and values.dtype == np.float64
    np.testing.assert_array_equal(values, problem.reference(points))
    for leaf in jax.tree.leaves(problem.training_points()):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_error_follow_the_parameters(name):
    problem, dtype = problems.get(name), "float32"  # float64 is everywhere else
    batches = [problem.batch(dtype), problem.batch()]
    if problem.sampler is not None:
        batches.append(jax.eval_shape(problem.sampler, jax.random.key(0)))
        assert problem.resample_every >= 1

    def loss(model, batch):
        params, static = eqx.partition(model, eqx.is_inexact_array)
        return problem.objective.bind(batch, static=static)(params)

    model = _model(problem, dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(model, _inexact))} == {jnp.dtype(dtype)}
    for batch in batches:
        value = eqx.filter_eval_shape(loss, model, batch)
        assert value.shape == () and value.dtype == dtype
    error = eqx.filter_eval_shape(problem.error, model)
    assert error.shape == () and error.dtype == dtype


def _inexact(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


@pytest.mark.parametrize("name", [name for name in NAMES if problems.get(name).slabs > 1])
def test_the_next_slab_has_the_same_shapes(name):
    problem = problems.get(name)
    begin, end = problem.domain["t"]
    batch = problem.batch()
    following = eqx.filter_eval_shape(problem.restart, _model(problem), batch, (end - begin) / problem.slabs)
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, batch, following)
    assert all(jax.tree.leaves(same))
    assert max(np.max(leaf) for leaf in jax.tree.leaves(batch)) <= max(np.max(b) for b in problem.domain.values())


def test_the_catalogue():
    tags = [tag for name in NAMES for tag in problems.get(name).tags]
    assert len(NAMES) >= 25
    for tag in "stiff multiscale nonlinear high_dimensional inverse energy system".split():
        assert tags.count(tag) >= 2, tag
    assert sum(problems.get(name).published is not None for name in NAMES) >= 18
    assert isinstance(problems.get("poisson2d").objective, so.Objective)
