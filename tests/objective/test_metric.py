"""Metrics of the function space pulled back to the parameters, against dense references."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from small import BATCH, POISSON, dense_jacobian, interior, network, partition, value

import sciml_opt as so

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PARAMS, STATIC = partition(network())
QUADRATURE = np.random.default_rng(0).uniform(0, 1, 36)
WEIGHTED = BATCH | {"interior": so.Weighted(BATCH["interior"], QUADRATURE)}


def jets(params, points, order):
    """Value, gradient and Hessian at every point, stacked."""
    u = eqx.combine(params, STATIC)
    maps = [jax.vmap(f)(points).reshape(len(points), -1) for f in (u, jax.grad(u), jax.hessian(u))[: order + 1]]
    return jnp.concatenate(maps, 1).reshape(-1)


def dense_gram(points, weights, order):
    rows = dense_jacobian(lambda p: jets(p, jnp.asarray(points), order), PARAMS)
    weights = np.repeat(weights, len(rows) // len(points))
    return rows.T @ (weights[:, None] * rows)


def gram(loss, metric, params=PARAMS):
    return np.asarray(quick_jit(lambda p: loss.pull_back(metric, p).gram())(params))


@pytest.mark.parametrize("order", [0, 1, 2])
def test_sobolev_is_the_integral_of_the_jets(order):
    """By the quadrature weights of the points; the weight of the term does not enter."""
    loss = so.Objective(interior=so.Term(interior, weight=7.0), boundary=so.Term(value)).bind(WEIGHTED, static=STATIC)
    want = dense_gram(BATCH["interior"], QUADRATURE, order)
    np.testing.assert_allclose(gram(loss, so.sobolev(order, ("interior",))), want, rtol=1e-9, atol=1e-11)


def test_without_names_it_is_the_sum_over_all_terms():
    loss = POISSON.bind(BATCH, static=STATIC)
    want = sum(dense_gram(points, np.full(len(points), 1 / len(points)), 1) for points in BATCH.values())
    np.testing.assert_allclose(gram(loss, so.sobolev(1)), want, rtol=1e-9, atol=1e-11)


def test_a_metric_of_ones_own():
    """An anisotropic H1 seminorm, by an outer function."""
    loss = POISSON.bind(BATCH, static=STATIC)
    A = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    metric = so.Metric(lambda u, x: jax.grad(u)(x), lambda m, x: 0.5 * m @ A @ m, terms=("interior",))
    points = jnp.asarray(BATCH["interior"])
    slopes = lambda p: jax.vmap(jax.grad(eqx.combine(p, STATIC)))(points).reshape(-1)
    rows = dense_jacobian(slopes, PARAMS).reshape(36, 2, -1)
    want = np.einsum("nip,ij,njq->pq", rows, A, rows) / 36
    np.testing.assert_allclose(gram(loss, metric), want, rtol=1e-9, atol=1e-11)


X = np.random.default_rng(1).normal(size=(20, 3))
LABELS = (X[:, 0] > 0).astype(float)


def bernoulli(m, point):
    return jnp.sum(jax.nn.softplus(m) - point[1] * m)


def bernoulli_divergence(m, point):
    old = jax.lax.stop_gradient(m)
    return jnp.sum(jax.nn.sigmoid(old) * (old - m) + jax.nn.softplus(m) - jax.nn.softplus(old))


def test_logistic_regression_fisher_is_gauss_newton_is_the_hessian():
    def logit(theta, point):
        return point[0] @ theta

    objective = so.Objective(data=so.Term(logit, outer=bernoulli))
    loss, theta = objective.bind({"data": (X, LABELS)}), jnp.array([0.3, -1.0, 0.5])
    fisher = gram(loss, so.Metric(logit, bernoulli_divergence), theta)
    np.testing.assert_allclose(fisher, quick_jit(jax.hessian(loss))(theta), rtol=1e-10)
    gauss_newton = quick_jit(lambda p: loss.linearize(p).jacobian.gram())(theta)
    np.testing.assert_allclose(fisher, gauss_newton, rtol=1e-10)


def gaussian_divergence(m, point):
    mean, log_sigma = m
    old_mean, old_log_sigma = jax.lax.stop_gradient(m)
    spread = jnp.exp(2 * old_log_sigma) + (old_mean - mean) ** 2
    return log_sigma - old_log_sigma + 0.5 * spread * jnp.exp(-2 * log_sigma) - 0.5


def test_the_fisher_metric_of_a_gaussian_of_unknown_width():
    """`diag(1 / sigma^2, 2)` for the mean and log sigma, whatever the data (the Hessian may be indefinite)."""
    theta = {"mean": jnp.array(0.3), "log_sigma": jnp.array(-0.7)}

    def prediction(theta, y):
        return jnp.stack([theta["mean"], theta["log_sigma"]])

    def nll(m, y):
        return m[1] + 0.5 * (y - m[0]) ** 2 * jnp.exp(-2 * m[1])

    loss = so.Objective(data=so.Term(prediction, outer=nll)).bind({"data": X[:, 0]})
    got = gram(loss, so.Metric(prediction, gaussian_divergence), theta)
    want = ravel_pytree({"mean": np.exp(1.4), "log_sigma": 2.0})[0]
    np.testing.assert_allclose(got, np.diag(want), rtol=1e-12, atol=1e-12)


@pytest.mark.bad_input
def test_errors_say_what_to_do():
    loss = POISSON.bind(BATCH, static=STATIC)
    with pytest.raises(ValueError, match=r"no terms \['inside'\]; its terms are \['boundary', 'interior'\]"):
        loss.pull_back(so.sobolev(1, terms=("inside",)), PARAMS)
    with pytest.raises(ValueError, match="order must be one of"):
        so.sobolev(3)
    product = so.Objective(operator=so.Term(so.Product(lambda p, f: p * f, lambda p, y: p * y)))
    points = so.ProductBatch(np.ones((2, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match="single points; 'operator' is a product term"):
        product.bind({"operator": points}).pull_back(so.sobolev(0), jnp.ones(3))
