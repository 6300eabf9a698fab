"""Phases: what ends them, what carries over, and what an optimizer that carries its gradient costs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from jax.flatten_util import ravel_pytree
from small import partition

import sciml_opt as so

INPUTS = np.random.default_rng(0).random((64, 2))


def misfit(u, x):
    return u(x) - jnp.sin(3 * x[0]) * x[1]


FIT = so.Objective(data=so.Term(misfit))
BATCH = {"data": INPUTS}
MODEL = so.models.MLP(2, layers=(6,), key=jax.random.key(0))


def flat(model):
    return np.asarray(ravel_pytree(partition(model)[0])[0])


def draw(key):
    return {"data": jax.random.uniform(key, (20, 2))}


def noisy(key):
    """Half of the data at the truth, half far from it: a batch of 16 has a noisy gradient near the minimum."""
    return {"data": INPUTS[:16] + 3 * jax.random.normal(key, (16, 2))}


@jax.numpy_dtype_promotion("standard")
def test_adam_lbfgs_levenberg_marquardt_and_what_ends_each():
    adam = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 2e-2, 10, 200))
    phases = [
        so.Phase(adam, 400, until=so.Stop(loss=2e-2)),
        so.Phase(so.lbfgs(), 300, until=so.Stop(grad_norm=3e-4)),
        so.Phase(so.trust_region_sr1(), 400, until=so.Stop(plateau=4)),
        so.Phase(so.levenberg_marquardt(), 7),
    ]
    result = so.fit(MODEL, FIT, phases, BATCH)
    history = result.history
    ends = [np.flatnonzero(history["phase"] == k)[-1] for k in range(4)]
    assert np.bincount(history["phase"])[3] == 7 and result.status == so.RESULTS.steps_done
    assert history["loss"][ends[0]] <= 2e-2 < history["loss"][ends[0] - 1] and ends[0] < 399
    assert history["grad_norm"][ends[1]] <= 3e-4 < history["grad_norm"][ends[1] - 1] and ends[1] - ends[0] < 300
    tail = history["loss"][ends[2] - 4 : ends[2] + 1]
    assert np.ptp(tail) < 2e-3 * tail[0] and ends[2] - ends[1] < 400
    assert history["loss"][0] > history["loss"][ends[0] + 1] > history["loss"][ends[1] + 1] > result.loss


def test_a_noisy_batch_ends_its_phase():
    """The norm test, made where the error is measured; the next phase has its own data."""
    phases = [
        so.Phase(optax.sgd(0.1), 300, until=so.Stop(noise=0.9), data=noisy),
        so.Phase(optax.sgd(0.1), 20, data=BATCH),  # 20 steps, however early the first phase ended
    ]
    result = so.fit(MODEL, FIT, phases, BATCH, key=jax.random.key(1), metric_every=5)
    first = np.bincount(result.history["phase"])[0]
    assert first < 300 and first % 5 == 0 and result.steps == first + 20
    params, static = partition(MODEL)
    assert bool(jax.jit(so.norm_test)(FIT.bind(BATCH, static=static), params, 10.0))
    quiet = so.fit(MODEL, FIT, optax.sgd(0.1), noisy, steps=10, key=jax.random.key(1), until=so.Stop(noise=1e6))
    assert quiet.steps == 10
    ended = so.fit(MODEL, FIT, optax.sgd(0.1), BATCH, steps=10, until=so.Stop(grad_norm=1e9))
    assert ended.status == so.RESULTS.target_reached and ended.steps == 1


def test_a_stop_may_be_made_outside_of_a_jitted_run(tmp_path):
    params, static = partition(MODEL)

    def run(params, until):
        options = {"static": static, "steps": 4, "metric_every": 2, "until": until}
        return so.train(params, FIT, optax.sgd(0.1), BATCH, **options).state.step

    for until in (so.Stop(noise=1e6), so.Stop(plateau=3)):
        assert jax.jit(lambda p, until=until: run(p, until))(params) == 4
    assert run(params, so.Stop(noise=1e6)) == 4
    options: dict = {"checkpoint": tmp_path / "run", "until": so.Stop(noise=1e6)}
    so.fit(MODEL, FIT, optax.sgd(0.1), BATCH, steps=2, **options)
    assert so.fit(MODEL, FIT, optax.sgd(0.1), BATCH, steps=4, resume=True, **options).steps == 4


@jax.numpy_dtype_promotion("standard")
def test_the_same_optimizer_goes_on_in_the_next_phase():
    adam, again = optax.adam(1e-2), optax.adam(1e-2)
    whole = so.fit(MODEL, FIT, adam, BATCH, steps=20)
    parts = so.fit(MODEL, FIT, [so.Phase(adam, 8), so.Phase(adam, 12)], BATCH)
    anew = so.fit(MODEL, FIT, [so.Phase(adam, 8), so.Phase(again, 12)], BATCH)
    np.testing.assert_array_equal(flat(parts.model), flat(whole.model))
    assert int(optax.tree.get(parts.optimizer_state, "count")) == 20
    assert int(optax.tree.get(anew.optimizer_state, "count")) == 12
    assert not np.allclose(flat(anew.model), flat(whole.model), rtol=1e-4)


def test_points_are_drawn_every_so_many_steps_and_the_matrix_is_kept():
    still = so.fit(MODEL, FIT, optax.sgd(0.0), draw, steps=12, key=jax.random.key(0), resample_every=4)
    loss = still.history["loss"]
    assert len(np.unique(loss)) == 3 and all(len(np.unique(loss[k : k + 4])) == 1 for k in (0, 4, 8))

    result = so.fit(MODEL, FIT, so.ss_broyden(), draw, steps=25, key=jax.random.key(0), resample_every=4)
    state, history = result.optimizer_state, result.history
    assert np.all(history["accepted"]) and int(state.updates) == 25  # never begun anew
    # within a draw each step starts from the loss that the last one found, and after one from that of the new points
    carried = np.isclose(history["loss"][1:], history["trial_loss"][:-1], rtol=1e-12)
    np.testing.assert_array_equal(np.flatnonzero(~carried) + 1, [4, 8, 12, 16, 20, 24])
    with pytest.raises(ValueError, match="resample_every must be a positive integer"):
        so.fit(MODEL, FIT, optax.sgd(0.0), draw, steps=2, key=jax.random.key(0), resample_every=0)


@pytest.mark.parametrize(
    "optimizer", [so.lbfgs(5), so.LBFGS(0.0, 0.0, memory=5), optax.lbfgs(5)], ids=["so", "optx", "optax"]
)
@jax.numpy_dtype_promotion("standard")
def test_no_gradient_is_evaluated_twice(optimizer):
    points = []

    def counted(u, x):
        jax.debug.callback(lambda _: points.append(1), x)
        return misfit(u, x)

    objective = so.Objective(data=so.Term(counted))
    result = so.fit(MODEL, objective, optimizer, {"data": INPUTS[:3]}, steps=12, metric_every=6)
    jax.effects_barrier()
    history = result.history
    finite = np.isfinite(history["loss/data"])
    np.testing.assert_array_equal(np.flatnonzero(finite), [5, 11])
    np.testing.assert_allclose(history["loss/data"][finite], history["loss"][finite], atol=1e-12)
    if "gradients" in history:
        # the start, the trials, the terms as often as the error, and the last loss of every chunk (1 + 1 + 2 + 4 ...)
        evaluations = 1 + int(np.sum(history["gradients"])) + 2 + 8
        solver = isinstance(optimizer, so.LBFGS)  # optimistix asks for what else the function returns; that is nothing
        assert len(points) / 3 <= evaluations + 12 * solver


def test_a_resumed_run_does_not_use_what_belongs_to_another_point(tmp_path):
    """A run that ends at a loss keeps the point before its last step, of which the optimizer carries nothing."""
    file = tmp_path / "run.npz"
    for optimizer in (so.lbfgs(5), so.LBFGS(0.0, 0.0, memory=5)):
        file.unlink(missing_ok=True)
        first = so.fit(MODEL, FIT, optimizer, BATCH, steps=60, until=so.Stop(loss=2e-2), checkpoint=file)
        assert first.status == so.RESULTS.target_reached and first.steps < 60
        again = so.fit(MODEL, FIT, optimizer, BATCH, steps=60, until=so.Stop(loss=2e-2), checkpoint=file, resume=True)
        assert again.steps == first.steps  # it still holds
        further = so.fit(MODEL, FIT, optimizer, BATCH, steps=60, until=so.Stop(loss=0.0), checkpoint=file, resume=True)
        np.testing.assert_allclose(further.history["loss"][first.steps], first.loss, rtol=1e-10)
        assert further.steps == 60 and further.loss < 0.1 * first.loss


def test_a_run_that_a_small_gradient_ended_stays_ended(tmp_path):
    """The point whose gradient was small is kept, and a resumed run sees it; a stricter condition goes on."""
    file, until = tmp_path / "run.npz", so.Stop(grad_norm=1e-2)
    first = so.fit(MODEL, FIT, so.lbfgs(5), BATCH, steps=80, until=until, checkpoint=file)
    assert first.status == so.RESULTS.target_reached and first.steps < 80
    params, static = partition(first.model)
    gradient = jax.jit(jax.grad(FIT.bind(BATCH, static=static)))(params)
    assert np.linalg.norm(np.asarray(ravel_pytree(gradient)[0])) <= 1e-2
    again = so.fit(MODEL, FIT, so.lbfgs(5), BATCH, steps=80, until=until, checkpoint=file, resume=True)
    assert again.steps == first.steps
    stricter = so.Stop(grad_norm=1e-3)
    further = so.fit(MODEL, FIT, so.lbfgs(5), BATCH, steps=80, until=stricter, checkpoint=file, resume=True)
    assert further.steps > first.steps


@jax.numpy_dtype_promotion("standard")
def test_the_same_optimizer_forgets_the_loss_of_other_data():
    """In a phase with other points: what is recorded first is the loss there, for each kind of optimizer."""
    other = {"data": 3 * INPUTS}
    backtracking = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15, store_grad=True))
    stock = optx.BFGS(1e-9, 1e-9)
    for optimizer in (so.lbfgs(5), so.LBFGS(0.0, 0.0, memory=5), backtracking, stock):
        short = so.fit(MODEL, FIT, optimizer, BATCH, steps=4)
        phases = [so.Phase(optimizer, 4), so.Phase(optimizer, 12, data=other)]
        result = so.fit(MODEL, FIT, phases, BATCH)
        params, static = partition(short.model)
        want = jax.jit(FIT.bind(other, static=static))(params)
        np.testing.assert_allclose(result.history["loss"][4], want, rtol=1e-8)
        assert result.loss < 0.9 * want
    plain = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15))  # carries a value, and no gradient
    assert so.fit(MODEL, FIT, plain, BATCH, steps=5).loss < 0.2


def test_the_average_of_a_run():
    result = so.fit(MODEL, FIT, so.averaged(optax.sgd(0.1)), BATCH, steps=5)
    path = [flat(so.fit(MODEL, FIT, optax.sgd(0.1), BATCH, steps=k).model) for k in range(1, 6)]
    average = np.asarray(ravel_pytree(so.average(result.optimizer_state))[0])
    np.testing.assert_allclose(average, np.mean(path, axis=0), rtol=1e-10)


@pytest.mark.bad_input
def test_bad_stops():
    for options, match in (({"grad_norm": -1.0}, "grad_norm"), ({"noise": 0.0}, "noise")):
        with pytest.raises((ValueError, TypeError), match=match):
            so.Stop(**options)
