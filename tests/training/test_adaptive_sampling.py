"""Samplers that look at the model, inside `train` and `fit`; objectives that change from phase to phase."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import partition

import sciml_opt as so
from sciml_opt.sampling import AbstractAdaptiveSampler

TRACES = []


class Coefficient(eqx.Module):
    """`y = a x`, with `a` trained."""

    a: jax.Array


class Misfit(eqx.Module):
    """`a x - slope x`, whose slope is an array: another one is no new program."""

    slope: jax.Array

    def __call__(self, model, x):
        TRACES.append(None)
        return model.a * x[0] - self.slope * x[0]


class Recorder(AbstractAdaptiveSampler):
    """Points that tell when they were drawn and of which model: `x = 1 + 0.1 a`, and the draws so far."""

    def init(self, key):
        return jnp.int32(0)

    def draw(self, key, model, state):
        return {"data": jnp.full((4, 1), 1 + 0.1 * model.a)}, state + 1


def objective(slope=3.0):
    return so.Objective(data=so.Term(Misfit(jnp.asarray(slope))))


MODEL = Coefficient(jnp.array(1.0))
SGD = optax.sgd(0.1)


def test_vmapped_runs_draw_only_when_due_whatever_run_has_ended():
    draws = []

    class Counted(Recorder):
        def draw(self, key, model, state):
            jax.debug.callback(lambda _: draws.append(None), model.a)
            return super().draw(key, model, state)

    def run(a):
        options = {"steps": 6, "key": jax.random.key(0), "resample_every": 3, "until": so.Stop(loss=1e-2)}
        return so.train(Coefficient(a), objective(), SGD, Counted(), **options).state.step

    steps = jax.jit(jax.vmap(run))(jnp.array([1.0, 2.9]))
    jax.effects_barrier()
    assert steps[0] == 6 and steps[1] < 3 and len(draws) == 6  # before the steps 0, 3 and 6, in two runs


def test_parameters_alone_are_a_model():
    options = {"steps": 2, "key": jax.random.key(0), "metric": lambda model: model.a}
    result = jax.jit(lambda a: so.train(Coefficient(a), objective(), SGD, Recorder(), **options))(jnp.array(1.0))
    np.testing.assert_array_equal(result.history["error"][-1], result.params.a)


def by_hand(steps, every, slope=3.0, a=1.0):
    """Gradient descent on `0.5 (a x - slope x)^2`, where x is renewed from a before the steps 0, every, ..."""
    losses, x = [], None
    for k in range(steps):
        if k % every == 0:
            x = 1 + 0.1 * a
        losses.append(0.5 * (a * x - slope * x) ** 2)
        a -= 0.1 * (a - slope) * x**2
    return np.array(losses), a


@pytest.mark.parametrize("every", [1, 3])
def test_draws_see_the_model_of_their_step(every):
    losses, a = by_hand(10, every)
    params, static = partition(MODEL)

    @jax.jit
    def run(key):
        return so.train(params, objective(), SGD, Recorder(), steps=10, static=static, key=key, resample_every=every)

    result = run(jax.random.key(0))
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-12)
    np.testing.assert_allclose(result.params.a, a, rtol=1e-12)
    assert result.state.sampled[1] == 1 + 10 // every
    fitted = so.fit(MODEL, objective(), SGD, Recorder(), steps=10, key=jax.random.key(0), resample_every=every)
    np.testing.assert_allclose(fitted.history["loss"], losses, rtol=1e-12)


def test_a_run_resumes_with_its_points(tmp_path):
    options: dict[str, Any] = dict(key=jax.random.key(0), resample_every=4)
    whole = so.fit(MODEL, objective(), SGD, Recorder(), steps=10, **options)
    file = tmp_path / "run.eqx"
    so.fit(MODEL, objective(), SGD, Recorder(), steps=6, checkpoint=file, **options)
    rest = so.fit(MODEL, objective(), SGD, Recorder(), steps=10, checkpoint=file, resume=True, **options)
    np.testing.assert_array_equal(rest.history["loss"], whole.history["loss"])


def test_carried_gradients_forget_the_old_points():
    """L-BFGS carries value and gradient of its new point; after a draw they are of other points."""
    parabola = so.Objective(data=so.Term(lambda model, x: model.a * x[0] - 3 * x[0] ** 2))  # another a at every x
    options: dict[str, Any] = dict(key=jax.random.key(0), resample_every=2, metric=lambda model: model.a)
    history = so.fit(MODEL, parabola, so.lbfgs(), Recorder(), steps=6, metric_every=1, **options).history
    a = np.append(1.0, history["error"][:-1])
    x = 1 + 0.1 * np.repeat(a[::2], 2)
    np.testing.assert_allclose(history["loss"], 0.5 * (a * x - 3 * x**2) ** 2, rtol=1e-8, atol=1e-14)
    assert history["loss"][4] > 1e-3


@pytest.mark.bad_input
def test_a_sampler_needs_a_key_and_a_self_contained_optimizer():
    import optimistix as optx

    with pytest.raises(ValueError, match="key is needed"):
        so.fit(MODEL, objective(), SGD, Recorder(), steps=2)
    with pytest.raises(ValueError, match="fixed batch"):
        so.fit(MODEL, objective(), optx.LevenbergMarquardt(1e-6, 1e-6), Recorder(), steps=2, key=jax.random.key(0))


def test_a_curriculum_of_objectives_in_one_program():
    batch = {"data": jnp.ones((4, 1))}
    phases = [so.Phase(SGD, 5, objective=objective(slope)) for slope in (1.5, 2.0)] + [so.Phase(SGD, 5)]
    so.fit(MODEL, objective(), SGD, batch, steps=5)
    TRACES.clear()
    result = so.fit(MODEL, objective(), phases, batch)
    assert not TRACES
    a, expected = 1.0, []
    for slope in (1.5, 2.0, 3.0):
        for _ in range(5):
            expected.append(0.5 * (a - slope) ** 2)
            a -= 0.1 * (a - slope)
    np.testing.assert_allclose(result.history["loss"], expected, rtol=1e-12)


def test_the_best_iterate_is_that_of_the_last_objective():
    """The easy equation is solved better than the one that is meant."""
    phases = [so.Phase(optax.sgd(1.0), 5, objective=objective(1.5)), so.Phase(SGD, 3)]
    result = so.fit(MODEL, objective(), phases, {"data": jnp.ones((4, 1))})
    assert result.history["loss"][4] == 0
    np.testing.assert_allclose(result.best_model.a, 3 - 1.5 * 0.9**3, rtol=1e-12)
    assert result.best_loss == result.loss


def test_phases_share_the_points_of_one_sampler():
    sampler, options = Recorder(), dict[str, Any](key=jax.random.key(0), resample_every=4)
    whole = so.fit(MODEL, objective(), SGD, sampler, steps=10, **options)
    parts = so.fit(MODEL, objective(), [so.Phase(SGD, 6), so.Phase(optax.sgd(0.1), 4)], sampler, **options)
    np.testing.assert_allclose(parts.history["loss"], whole.history["loss"], rtol=1e-12)
