"""Time marching: each slab starts from the end of the one before."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sciml_opt as so


class Line(eqx.Module):
    """`a + b t`: what it fits is known in closed form."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x):
        return self.a + self.b * x[0]


def slope(u, x):
    return jax.jvp(u, (x,), (jnp.ones_like(x),))[1] - 2.0 * u(x)


def value(u, data):
    x, target = data
    return u(x) - target


OBJECTIVE = so.Objective(equation=so.Term(slope), initial=so.Term(value, weight=1e4))
TIMES = np.linspace(0, 0.25, 5)[:, None]
BATCH = {"equation": TIMES, "initial": (np.zeros((1, 1)), np.ones(1))}
MODEL = Line(jnp.array(1.0), jnp.array(0.0))


def restart(model, batch):
    x, _ = batch["initial"]
    return batch | {"initial": (x, jax.vmap(lambda x: model(x + 0.25))(x))}


def least_squares(start):
    """The line of lowest loss from the value `start`: `b - 2 (a + b t)` at five times, `100 (a - start)`."""
    t = TIMES[:, 0]
    rows = np.concatenate([np.stack([-2 + 0 * t, 1 - 2 * t], 1) / np.sqrt(5), [[100.0, 0.0]]])
    return np.linalg.lstsq(rows, np.append(np.zeros(5), 100.0 * start), rcond=None)[0]


def test_every_slab_starts_where_the_one_before_ended():
    seen = []
    result = so.march(
        MODEL,
        OBJECTIVE,
        so.levenberg_marquardt(),
        BATCH,
        restart,
        slabs=3,
        length=0.25,
        steps=30,
        metric=lambda u: u(jnp.array([0.6])),
        callback=lambda now: seen.append(now.step) and None,
    )
    start, lines = 1.0, []
    for _ in range(3):
        a, b = least_squares(start)
        lines.append((a, b))
        start = a + 0.25 * b
    np.testing.assert_allclose(np.stack([result.model.models.a, result.model.models.b], 1), lines, rtol=1e-8)
    a, b = lines[2]
    np.testing.assert_allclose(result.error, a + 0.1 * b, rtol=1e-8)  # t = 0.6 is 0.1 into the third slab
    assert result.steps == 90 and len(result.history["loss"]) == 90 and result.status == so.RESULTS.steps_done
    np.testing.assert_array_equal(np.bincount(result.history["slab"]), [30, 30, 30])
    assert (np.diff(result.history["seconds"]) >= 0).all() and result.train_seconds >= result.history["seconds"][
        -1
    ] - 1e-9
    assert seen.count(30) == 3


def test_what_ends_a_slab_early_ends_the_run():
    options: dict[str, Any] = dict(slabs=3, length=0.25, steps=30)
    stopped = so.march(MODEL, OBJECTIVE, so.levenberg_marquardt(), BATCH, restart, callback=lambda now: True, **options)
    assert stopped.status == so.RESULTS.stopped_by_callback and stopped.model.count == 1
    bad = BATCH | {"initial": (np.zeros((1, 1)), np.full(1, np.nan))}
    broken = so.march(MODEL, OBJECTIVE, so.levenberg_marquardt(), bad, restart, **options)
    assert broken.status == so.RESULTS.nonfinite_loss and broken.model.count == 1
    assert broken.model.models.a[0] == MODEL.a


def test_slabs_that_end_in_different_phases():
    """The second slab is stopped before the phase whose history has more columns."""
    calls = []
    phases = [so.Phase(optax.sgd(0.0), 1), so.Phase(so.levenberg_marquardt(), 2)]
    options: dict[str, Any] = dict(slabs=3, length=0.25)

    def stop(now):
        calls.append(now.step)
        return calls.count(1) == 2

    result = so.march(MODEL, OBJECTIVE, phases, BATCH, restart, callback=stop, **options)
    assert result.status == so.RESULTS.stopped_by_callback and result.steps == 4
    np.testing.assert_array_equal(result.history["slab"], [0, 0, 0, 1])
    assert np.isnan(result.history["damping"][[0, 3]]).all()


@pytest.mark.bad_input
def test_bad_input(tmp_path):
    def march(**options):
        return so.march(
            MODEL,
            OBJECTIVE,
            so.levenberg_marquardt(),
            BATCH,
            restart,
            **(dict(slabs=2, length=0.25, steps=2) | options),
        )

    with pytest.raises(ValueError, match="slabs"):
        march(slabs=0)
    with pytest.raises(ValueError, match="length"):
        march(length=-1.0)
    with pytest.raises(ValueError, match="checkpoint"):
        march(checkpoint=tmp_path / "run")
