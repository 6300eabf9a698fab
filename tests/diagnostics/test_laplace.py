"""The Gauss-Newton posterior against dense linear algebra, and error bars against many draws of the noise."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import BATCH, RITZ, RITZ_BATCH, dense_jacobian, flat, problem

import sciml_opt as so


class Line(eqx.Module):
    """`slope x + offset`, and a number that no term reads."""

    slope: jax.Array
    offset: jax.Array
    unread: jax.Array


def line(slope=1.5, offset=-0.5):
    return Line(*(jnp.asarray(v, float) for v in (slope, offset, 0.3)))


def misfit(model, measurement):
    x, value = measurement
    return model.slope * x + model.offset - value


def through_the_origin(model, x):
    return model.offset + 0 * x


POINTS = np.linspace(-1, 1, 20)
VALUES = 1.5 * POINTS - 0.5 + 0.1 * np.random.default_rng(0).standard_normal(20)
DATA = (POINTS, VALUES)


def line_loss(weight=3.0, data=DATA):
    return so.Objective(data=so.Term(misfit, weight=weight)).bind({"data": data})


def fitted():
    return line(*np.polyfit(POINTS, VALUES, 1))


def parts(model):
    return jnp.stack([model.slope, model.offset, model.unread])


def test_a_regression_has_the_error_bars_of_the_textbook():
    A = np.stack([POINTS, np.ones(20)], 1)
    covariance = 0.1**2 * np.linalg.inv(A.T @ A)
    posterior = so.laplace(line_loss(), fitted(), {"data": 0.1}, prior=1e4)
    expected = np.append(np.sqrt(np.diag(covariance)), 1e4)  # the unread number keeps its prior
    np.testing.assert_allclose(posterior.std(parts), expected, rtol=1e-8)
    at = np.array([0.3, 1.0, -2.0])
    rows = np.stack([at, np.ones(3)], 1)
    expected = np.sqrt(np.einsum("ni,ij,nj->n", rows, covariance, rows))
    np.testing.assert_allclose(posterior.std(lambda m: m.slope * at + m.offset), expected, rtol=1e-8)
    # of a nonlinear function, by its slope
    np.testing.assert_allclose(
        posterior.std(lambda m: jnp.exp(m.slope)), np.exp(fitted().slope) * np.sqrt(covariance[0, 0]), rtol=1e-8
    )


def test_the_noise_is_estimated_as_a_regression_does():
    posterior = so.laplace(line_loss(), fitted(), {"data": None}, prior=1e4)
    _, (sums,), *_ = np.polyfit(POINTS, VALUES, 1, full=True)
    np.testing.assert_allclose(posterior.noise["data"], np.sqrt(sums / (20 - 2)), rtol=1e-6)
    given = so.laplace(line_loss(), fitted(), {"data": posterior.noise["data"]}, prior=1e4)
    np.testing.assert_allclose(posterior.R, given.R, rtol=1e-12)


def test_the_weight_of_a_measurement_does_not_matter_and_that_of_a_constraint_does():
    bars = [so.laplace(line_loss(weight), fitted(), {"data": 0.1}).std(parts) for weight in (1.0, 50.0)]
    np.testing.assert_allclose(*bars, rtol=1e-12)
    objective = so.Objective(data=so.Term(misfit), origin=so.Term(through_the_origin, weight=1e12))
    loss = objective.bind({"data": DATA, "origin": np.ones(4)})
    posterior = so.laplace(loss, fitted(), {"data": 0.1}, prior=1e4)
    slope, offset, _ = posterior.std(parts)
    np.testing.assert_allclose(slope, 0.1 / np.sqrt(np.sum(POINTS**2)), rtol=1e-8)  # as of slope x alone
    # L / tau, tau = 0.1^2 / 20, has 1e12 (offset^2 / 2) / tau
    np.testing.assert_allclose(offset, np.sqrt(0.1**2 / 20 / 1e12), rtol=1e-6)


def test_of_a_network_against_dense_algebra():
    params, loss = problem()
    posterior = so.laplace(loss, params, {"boundary": 0.2, "interior": 3.0}, prior=0.7)
    J = dense_jacobian(loss.residual, params)  # whitened: boundary (16 points, weight 4), interior (36 points)
    J = J * np.repeat([np.sqrt(16 / 4) / 0.2, np.sqrt(36) / 3.0], [16, 36])[:, None]
    covariance = np.linalg.inv(J.T @ J + np.eye(J.shape[1]) / 0.7**2)
    gradient = flat(jax.grad(lambda p: value(p))(params))
    np.testing.assert_allclose(posterior.std(value) ** 2, gradient @ covariance @ gradient, rtol=1e-9)
    # one noise named, the other term by its weight: tau = 4 0.2^2 / 16
    posterior = so.laplace(loss, params, {"boundary": 0.2}, prior=0.7)
    J = dense_jacobian(loss.residual, params) / np.sqrt(4 * 0.2**2 / 16)
    covariance = np.linalg.inv(J.T @ J + np.eye(J.shape[1]) / 0.7**2)
    np.testing.assert_allclose(posterior.std(value) ** 2, gradient @ covariance @ gradient, rtol=1e-9)


def value(params):
    """The first weight matrix, squared: any smooth number will do."""
    return jnp.sum(jax.tree.leaves(params)[0] ** 2)


def test_error_bars_hold_the_truth_as_often_as_they_say():
    def decay(rate, measurement):
        x, value = measurement
        return jnp.exp(-rate * x) - value

    objective, x, truth = so.Objective(data=so.Term(decay)), jnp.linspace(0, 2, 30), 1.3

    @jax.jit
    @jax.vmap
    def fit(errors):
        loss = objective.bind({"data": (x, jnp.exp(-truth * x) + 0.02 * errors)})
        newton = lambda _, k: k - jax.grad(loss)(k) / jax.grad(jax.grad(loss))(k)
        rate = jax.lax.fori_loop(0, 10, newton, jnp.asarray(1.0))
        posterior = so.laplace(loss, rate, {"data": None})
        return rate, posterior.std(lambda k: k), posterior.noise["data"]

    rates, bars, noise = map(np.asarray, fit(np.random.default_rng(0).standard_normal((4000, 30))))
    np.testing.assert_allclose(np.mean(bars), np.std(rates), rtol=0.05)
    np.testing.assert_allclose(np.mean(noise**2), 0.02**2, rtol=0.02)
    # Student's t of 29 degrees of freedom stays within 1.96 in 94.0 % of the draws
    np.testing.assert_allclose(np.mean(np.abs(rates - truth) < 1.96 * bars), 0.940, atol=0.015)


def test_more_parameters_than_points_and_float32():
    params, loss = problem(batch={name: points[:3] for name, points in BATCH.items()}, dtype=jnp.float32)
    assert sum(loss.sizes.values()) < len(flat(params))
    posterior = so.laplace(loss, params, {"boundary": 0.5, "interior": None}, prior=2.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(posterior)} == {jnp.dtype(jnp.float32)}
    outside = lambda p: jnp.sum(jax.tree.leaves(p)[1])
    assert 0 < float(posterior.std(outside)) <= 2.0 * np.sqrt(jax.tree.leaves(params)[1].size)
    assert posterior.std(outside).dtype == jnp.float32


def test_another_noise_does_not_retrace():
    compiled: Any = so.diagnostics._laplace._posterior
    so.laplace(line_loss(), fitted(), {"data": 0.1})
    size = compiled._cache_size()
    posterior = so.laplace(line_loss(2.0), line(), {"data": 0.3}, prior=5.0)
    assert compiled._cache_size() == size
    assert posterior.noise["data"] == 0.3


def test_nan_in_the_data_shows():
    values = np.where(np.arange(20) == 3, np.nan, VALUES)
    posterior = so.laplace(line_loss(data=(POINTS, values)), fitted(), {"data": None})
    assert np.isnan(posterior.std(parts)).all()


@pytest.mark.bad_input
def test_bad_input():
    loss = line_loss()
    for noise in ({}, {"dat": 0.1}):
        with pytest.raises(ValueError, match=r"at least one of the terms \['data'\], got"):
            so.laplace(loss, fitted(), noise)
    with pytest.raises(ValueError, match=r"noise\['data'\] must be greater than 0"):
        so.laplace(loss, fitted(), {"data": 0.0})
    with pytest.raises(ValueError, match="prior must be greater than 0"):
        so.laplace(loss, fitted(), {"data": 0.1}, prior=-1.0)
    with pytest.raises(ValueError, match="least squares in every term"):
        params, ritz = problem(RITZ, RITZ_BATCH)
        so.laplace(ritz, params, {"energy": 0.1})
    with pytest.raises(ValueError, match=r"the points of \['data'\] bring weights"):
        so.laplace(line_loss(data=so.Weighted(DATA, np.ones(20))), fitted(), {"data": 0.1})
    with pytest.raises(ValueError, match=r"use loss\.freeze, not where"):
        so.laplace(so.Objective(data=so.Term(misfit)).bind({"data": DATA}, where=line()), fitted(), {"data": 0.1})
