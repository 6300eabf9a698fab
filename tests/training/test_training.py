"""`train` and `fit`: agreement with a plain loop, stops, phases, non-finite runs, history, checkpoints."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from small import BATCH, POISSON, edges, exact, grid, interior, network, partition, relative

import sciml_opt as so

POINTS = jnp.asarray(grid(8))
LM = so.levenberg_marquardt()


def metric(u):
    return jnp.linalg.norm(jax.vmap(u)(POINTS) - exact(POINTS)) / jnp.linalg.norm(exact(POINTS))


def fit(optimizer=LM, model=None, data=BATCH, **options):
    return so.fit(model or network(), POISSON, optimizer, data, **options)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def reference():
    """40 steps of Levenberg-Marquardt by fit, shared by several tests."""
    return fit(steps=40, metric=metric, metric_every=4)


def test_fit_is_the_plain_loop(reference):
    params, static = partition(network())
    loss = POISSON.bind(BATCH, static=static)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = LM.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state, value

    state, values = LM.init(params), []
    for _ in range(40):
        params, state, value = step(params, state)
        values.append(float(value))
    np.testing.assert_allclose(reference.history["loss"][:15], values[:15], rtol=1e-8)
    assert reference.loss < 1e-4 * values[0] and values[-1] < 1e-4 * values[0]


def test_history_and_result(reference):
    history = reference.history
    assert reference.steps == 40 and all(len(column) == 40 for column in history.values())
    np.testing.assert_allclose(history["loss/interior"] + history["loss/boundary"], history["loss"], rtol=1e-12)
    evaluated = np.flatnonzero(~np.isnan(history["error"]))
    assert evaluated.tolist() == list(range(3, 40, 4))
    np.testing.assert_allclose(history["error"][-1], metric(reference.model), rtol=1e-12)
    assert reference.error == history["error"][-1]
    assert np.all(np.diff(history["seconds"]) >= 0) and history["seconds"][-1] == pytest.approx(reference.train_seconds)
    assert set(so.methods.StepInfo._fields) - {"loss"} <= set(history)
    assert history["accepted"].dtype == bool and np.all(np.diff(history["loss"]) <= 0)
    assert reference.status == so.RESULTS.steps_done and reference.loss == reference.best_loss
    assert same(partition(reference.model)[0], partition(reference.best_model)[0])


def test_train_jits_vmaps_and_agrees_with_fit(reference):
    seeds = range(5)
    params, static = zip(*(partition(network(seed)) for seed in seeds), strict=True)
    train = lambda p: so.train(p, POISSON, LM, BATCH, steps=40, static=static[0], metric=metric, metric_every=4)
    train = jax.jit(train)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    lanes = jax.jit(jax.vmap(train))(stacked)
    for seed in seeds:
        single = train(params[seed])
        np.testing.assert_allclose(lanes.history["loss"][seed, :11], single.history["loss"][:11], rtol=1e-10)
        assert abs(np.log10(lanes.history["error"][seed, -1] / single.history["error"][-1])) < 1
        assert single.result == so.RESULTS.steps_done
    single = train(params[0])
    np.testing.assert_allclose(single.history["loss"][:20], reference.history["loss"][:20], rtol=1e-6)
    assert int(single.state.step) == 40 and np.isfinite(single.loss)


def test_vmapped_runs_measure_only_when_due_whatever_run_has_ended():
    calls = []

    def counted(u):
        jax.debug.callback(lambda _: calls.append(1), u.layers[0].bias)
        return metric(u)

    params, static = zip(*(partition(network(seed)) for seed in range(2)), strict=True)
    loss = POISSON.bind(BATCH, static=static[0])
    ends_first = so.Stop(loss=0.999 * loss(params[0]))
    options = {"static": static[0], "steps": 6, "metric": counted, "metric_every": 3, "until": ends_first}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    runs = jax.jit(jax.vmap(lambda p: so.train(p, POISSON, optax.sgd(1e-4), BATCH, **options)))(stacked)
    jax.effects_barrier()
    assert len(calls) == 4  # two runs at steps 3 and 6
    assert runs.state.step.tolist() != [6, 6] and 6 in runs.state.step
    measured = ~np.isnan(runs.history["error"])
    for made, row in zip(runs.state.step.tolist(), measured, strict=True):
        assert np.flatnonzero(row).tolist() == [step for step in (2, 5) if step < made]


def test_stops():
    by_error = fit(steps=60, metric=metric, metric_every=2, until=so.Stop(error=0.05))
    assert by_error.status == so.RESULTS.target_reached
    assert (
        by_error.error <= 0.05
        and by_error.steps < 60
        and float(metric(by_error.model)) == pytest.approx(by_error.error)
    )
    by_loss = fit(steps=60, metric=metric, metric_every=2, until=so.Stop(loss=0.5))
    assert by_loss.status == so.RESULTS.target_reached and by_loss.loss <= 0.5 < by_loss.history["loss"][-2]
    stuck = fit(optax.sgd(0.0), steps=60, until=so.Stop(plateau=7))
    assert stuck.status == so.RESULTS.plateau and stuck.steps == 8
    budget = fit(steps=10**6, metric=metric, metric_every=2, until=so.Stop(seconds=0.05))
    assert budget.status == so.RESULTS.time_budget_spent and 0 < budget.steps < 10**6


def test_callback_sees_progress_and_stops():
    seen = []
    result = fit(steps=60, callback=lambda now: seen.append(now) or now.step >= 1)
    assert result.status == so.RESULTS.stopped_by_callback and result.steps == seen[-1].step == 1
    assert seen[0].steps == 60 and np.isfinite(seen[0].loss) and same(seen[0].params, partition(result.model)[0])


def test_interruption_returns_the_last_iterate():
    def interrupt(now):
        if now.step >= 1:
            raise KeyboardInterrupt

    result = fit(steps=60, callback=interrupt)
    assert result.status == so.RESULTS.interrupted and np.isfinite(result.loss)


@jax.numpy_dtype_promotion("standard")  # optax's Adam mixes dtypes
def test_phases():
    phases = [so.Phase(optax.adam(1e-2), 30, until=so.Stop(plateau=5)), so.Phase(LM, 10), so.Phase(optax.sgd(0.0), 3)]
    result = fit(phases)
    counts = np.bincount(result.history["phase"])
    assert counts[0] <= 30 and counts[1:].tolist() == [10, 3] and result.status == so.RESULTS.steps_done
    start = counts[0] + 10
    assert np.all(np.isnan(result.history["damping"][: counts[0]])) and np.all(
        result.history["damping"][counts[0] : start] > 0
    )
    assert np.ptp(result.history["loss"][start:]) == 0  # sgd(0) starts where LM ended
    assert result.history["loss"][start] <= result.history["loss"][start - 1]
    ended = fit([so.Phase(LM, 20), so.Phase(LM, 20)], metric=metric, metric_every=2, until=so.Stop(error=0.3))
    assert ended.status == so.RESULTS.target_reached and ended.steps < 40


def test_a_diverging_run_returns_the_best_finite_iterate():
    result = fit(optax.sgd(1e3), steps=60)
    assert result.status == so.RESULTS.nonfinite_loss and result.steps < 60
    best = np.nanmin(result.history["loss"])
    assert result.best_loss == best
    loss = POISSON.bind(BATCH, static=partition(network())[1])
    np.testing.assert_allclose(loss(partition(result.model)[0]), best, rtol=1e-12)


def test_an_energy_that_falls_to_minus_infinity_is_no_best_iterate():
    objective = so.Objective(cliff=so.Term(lambda p, x: p["a"] + 0 * x[0], outer=lambda z, x: -jnp.exp(z[0])))
    result = so.fit({"a": jnp.asarray(1.0)}, objective, optax.sgd(10.0), {"cliff": grid(2)}, steps=30)
    assert result.status == so.RESULTS.nonfinite_loss
    assert np.isfinite(result.best_loss) and np.isfinite(result.model["a"]) and result.best_loss < -np.exp(1.0)


@jax.numpy_dtype_promotion("standard")
def test_a_non_finite_start_returns_the_input():
    bad = BATCH | {"interior": np.full_like(BATCH["interior"], np.nan)}
    model = network()
    for optimizer in (LM, optax.adam(1e-3)):
        result = fit(optimizer, model, bad, steps=5)
        assert result.status == so.RESULTS.nonfinite_loss and result.steps == 1
        assert same(partition(result.model)[0], partition(model)[0])


def test_fresh_points_each_step():
    def sampler(key):
        return {"interior": jax.random.uniform(key, (36, 2)), "boundary": jnp.asarray(edges(4))}

    result = fit(data=sampler, steps=30, key=jax.random.key(1))
    again = fit(data=sampler, steps=30, key=jax.random.key(1))
    other = fit(data=sampler, steps=30, key=jax.random.key(2))
    assert same(partition(result.model)[0], partition(again.model)[0])
    assert not same(partition(result.model)[0], partition(other.model)[0])
    assert result.loss < 1e-2 * result.history["loss"][0]
    with pytest.raises(ValueError, match="key is needed"):
        fit(data=sampler, steps=3)
    with pytest.raises(ValueError, match="one fixed batch"):
        fit(optx.BFGS(1e-3, 1e-3), data=sampler, steps=3, key=jax.random.key(1))


@pytest.mark.parametrize(
    "solver", [optx.BFGS(1e-9, 1e-9), optx.LevenbergMarquardt(1e-9, 1e-9)], ids=["BFGS", "optimistix LM"]
)
def test_optimistix_solvers(solver):
    result = fit(solver, steps=30)
    assert result.loss < 0.5 * result.history["loss"][0] and result.status == so.RESULTS.steps_done
    params, static = partition(network())
    loss = POISSON.bind(BATCH, static=static)
    want = so.least_squares(loss, solver, params, max_steps=30, throw=False).value
    assert relative(partition(result.model)[0], want) < 1e-3


def test_our_solvers_step_like_our_transformations(reference):
    result = fit(so.LevenbergMarquardt(1e-9, 1e-9), steps=40, metric=metric, metric_every=4)
    # two programs, which XLA may fuse otherwise: the same bits for a while, then rounding that 40 steps have amplified
    np.testing.assert_allclose(result.history["loss"][:10], reference.history["loss"][:10], rtol=1e-13)
    assert relative(partition(result.model)[0], partition(reference.model)[0]) < 1e-9


def test_seeds_share_one_program():
    traces = []

    def counted(u, x):
        traces.append(1)
        return interior(u, x)

    objective = so.Objective(interior=so.Term(counted), boundary=POISSON.terms["boundary"])
    results = so.fit(
        lambda key: eqx.nn.MLP(2, "scalar", 8, 1, jnp.tanh, key=key), objective, LM, BATCH, steps=3, seeds=[5, 7]
    )
    assert len(traces) == 1 and len(results) == 2
    assert not same(partition(results[0].model)[0], partition(results[1].model)[0])
    assert results[1].compile_seconds < 0.5 * results[0].compile_seconds
    with pytest.raises(TypeError, match="function `key -> model`"):
        fit(steps=3, seeds=2)


def test_frozen_parameters_stay():
    model = network()
    where = jax.tree.map(lambda _: True, partition(model)[0])
    where = eqx.tree_at(lambda p: p.layers[0].weight, where, replace=False)
    result = fit(model=model, steps=5, where=where)
    assert same(result.model.layers[0].weight, model.layers[0].weight)
    assert not same(result.model.layers[1].weight, model.layers[1].weight)


def test_frozen_parameters_survive_weight_decay():
    model = network()
    with jax.numpy_dtype_promotion("standard"):
        result = fit(optax.adamw(1e-3, weight_decay=1.0), model, steps=3, where=lambda leaf: leaf.ndim == 1)
    assert same(result.model.layers[0].weight, model.layers[0].weight)
    assert not same(result.model.layers[0].bias, model.layers[0].bias)


def test_a_callback_can_stop_at_the_end_of_a_phase():
    result = fit([so.Phase(LM, 1), so.Phase(LM, 1)], callback=lambda now: True)
    assert result.steps == 1 and result.status == so.RESULTS.stopped_by_callback


def test_the_error_is_that_of_the_returned_model():
    result = fit(steps=7, metric=metric, metric_every=20)
    assert np.isnan(result.history["error"]).all() and result.error == pytest.approx(float(metric(result.model)))


def test_our_solvers_stop_at_their_tolerance():
    result = fit(so.LevenbergMarquardt(0.5, 0.5), steps=60)
    assert result.status == so.RESULTS.phase_done and result.steps < 60


@jax.numpy_dtype_promotion("standard")
def test_random_keys_in_an_optimizer_state_are_checkpointed(tmp_path):
    noisy = optax.chain(optax.add_noise(1e-3, 0.5, jax.random.key(7)), optax.sgd(1e-4))
    file = tmp_path / "run.npz"
    whole = fit(noisy, steps=4)
    fit(noisy, steps=4, checkpoint=file, callback=lambda now: True)
    assert same(partition(fit(noisy, steps=4, checkpoint=file, resume=True).model)[0], partition(whole.model)[0])


def test_a_stricter_target_goes_on_after_resume(tmp_path):
    options = dict(steps=60, metric=metric, metric_every=2, checkpoint=tmp_path / "run.npz")
    first = fit(until=so.Stop(error=0.3), **options)
    kept = fit(until=so.Stop(error=0.3), resume=True, **options)
    further = fit(until=so.Stop(error=0.05), resume=True, **options)
    assert first.steps == kept.steps < further.steps and further.error <= 0.05


def test_checkpoint_and_resume(tmp_path, reference):
    file = tmp_path / "run.npz"
    stop = lambda now: now.step >= 1
    first = fit(steps=40, metric=metric, metric_every=4, checkpoint=file, callback=stop)
    assert first.steps == 1
    resumed = fit(steps=40, metric=metric, metric_every=4, checkpoint=file, resume=True)
    assert same(partition(resumed.model)[0], partition(reference.model)[0])
    assert resumed.steps == 40 and resumed.train_seconds > first.train_seconds
    for name, column in reference.history.items():
        if name != "seconds":
            np.testing.assert_array_equal(resumed.history[name], column)
    done = fit(steps=40, metric=metric, metric_every=4, checkpoint=file, resume=True)  # nothing left to do
    assert same(partition(done.model)[0], partition(reference.model)[0]) and done.steps == 40
    assert list(tmp_path.iterdir()) == [file]


@jax.numpy_dtype_promotion("standard")
def test_checkpoint_errors(tmp_path):
    file = tmp_path / "run.npz"
    fit(steps=3, checkpoint=file)
    with pytest.raises(ValueError, match="belongs to another"):
        fit(optax.adam(1e-3), steps=3, checkpoint=file, resume=True)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(model=network(width=4), steps=3, checkpoint=file, resume=True)
    file.write_text("nothing")
    with pytest.raises(ValueError, match="not a checkpoint"):
        fit(steps=3, checkpoint=file, resume=True)
    with pytest.raises(ValueError, match="resume=True needs checkpoint"):
        fit(steps=3, resume=True)


def test_progress_bar_writes_to_stderr(capsys):
    fit(steps=40, metric=metric, metric_every=4, progress=True)
    captured = capsys.readouterr()
    assert captured.out == "" and "40/40" in captured.err and "error" in captured.err


@pytest.mark.bad_input
def test_errors():
    for options, message in (
        (dict(), "steps is needed"),
        (dict(steps=0), "steps must be a positive integer"),
        (dict(steps=2.5), "steps must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(**options)
    with pytest.raises(ValueError, match="steps belongs to each Phase"):
        fit([so.Phase(LM, 3)], steps=3)
    with pytest.raises(TypeError, match="list of Phase"):
        fit([LM])
    with pytest.raises(TypeError, match="optimizer must be an optax transformation"):
        fit("adam", steps=3)
    with pytest.raises(TypeError, match="objective must be an Objective"):
        so.fit(network(), interior, LM, BATCH, steps=3)
    for plateau in (0, 0.5):
        with pytest.raises(ValueError, match="plateau"):
            so.Stop(plateau=plateau)
    with pytest.raises(TypeError, match=r"key must be a random key, jax.random.key\(seed\), got 1"):
        fit(steps=3, key=1)
    with pytest.raises(ValueError, match="needs a metric"):
        fit(steps=3, until=so.Stop(error=1e-3))
    with pytest.raises(ValueError, match="metric_every must be a positive integer"):
        fit(steps=3, metric=metric, metric_every=0)
    with pytest.raises(ValueError, match=r"metric must return one number, got shape \(2,\)"):
        fit(steps=3, metric=lambda u: jnp.ones(2))
    with pytest.raises(ValueError, match="at least -inf, got nan"):
        so.Stop(error=float("nan"))
    with pytest.raises(ValueError, match="batch lacks"):
        fit(data={"interior": grid(3)}, steps=3)
