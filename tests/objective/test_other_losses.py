"""Other losses on the terms of a bound objective: reweighted, on a part of the points, on a part of the parameters."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import products
import pytest
from small import BATCH, POISSON, grid, network, partition, problem, relative

import sciml_opt as so

STATIC = partition(network())[1]


def test_reweighted():
    params, loss = problem()
    values, other = loss.values(params), loss.reweighted({"interior": jnp.asarray(3.0)})
    np.testing.assert_allclose(other.values(params)["interior"], 3 * values["interior"], rtol=1e-14)
    np.testing.assert_allclose(other.values(params)["boundary"], values["boundary"], rtol=1e-14)
    np.testing.assert_allclose(other(params), 3 * values["interior"] + values["boundary"], rtol=1e-14)
    np.testing.assert_allclose(loss(params), values["interior"] + values["boundary"], rtol=1e-14)  # as it was


@pytest.mark.bad_input
def test_unknown_terms_and_fractions():
    _, loss = problem()
    with pytest.raises(ValueError, match=r"no terms \['inside'\]; its terms are \['boundary', 'interior'\]"):
        loss.reweighted({"inside": 2.0})
    for fraction in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"fraction must lie in \(0, 1\]"):
            loss.subsample(jax.random.key(0), fraction)


def position(u, x):
    """A residual that tells which points were taken."""
    return x[0] * jnp.ones_like(u(x))


@pytest.mark.parametrize("weighted", [False, True])
def test_subsample_is_unbiased_and_without_replacement(weighted):
    points = np.stack([np.arange(1.0, 13.0), np.zeros(12)], 1)
    weights = np.linspace(0.1, 1.2, 12)
    objective = so.Objective(a=so.Term(position, weight=2.0))
    params, static = partition(network())
    loss = objective.bind({"a": so.Weighted(points, weights) if weighted else points}, static=static)
    full = np.sum((weights if weighted else 1 / 12) * points[:, 0] ** 2)  # weight 2 and the factor 1/2

    @jax.jit
    def sample(key):
        part = loss.subsample(key, 0.25)
        return part(params), part.residual(params)

    values, residuals = jax.lax.map(sample, jax.random.split(jax.random.key(0), 4000))
    assert residuals.shape == (4000, 3)
    spread = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values) - full) < 4 * spread and spread < 0.02 * full
    factors = dict(
        zip(points[:, 0], np.sqrt(2 * 4 * weights if weighted else np.full(12, 2 / 3)) * points[:, 0], strict=True)
    )
    taken = [
        sorted(x for x in factors for r in row if abs(factors[x] - r) < 1e-9) for row in np.asarray(residuals[:50])
    ]
    assert all(len(set(row)) == 3 for row in taken) and len({tuple(row) for row in taken}) > 20


def test_the_whole_fraction_is_the_whole_loss():
    params, loss = problem()
    key = jax.random.key(1)
    np.testing.assert_allclose(loss.subsample(key, 1.0)(params), loss(params), rtol=1e-13)
    assert loss.subsample(key, 1e-3).residual(params).shape == (2,)  # a point of each term at least
    assert loss.subsample(key, 0.5).residual(params).shape == (26,)


def test_product_terms_are_kept_whole():
    params, loss, _ = products.problem("DeepONet")
    part = loss.subsample(jax.random.key(0), 0.5)
    np.testing.assert_array_equal(part.residual(params), loss.residual(params))


@pytest.mark.parametrize("where", [None, "prefix", "function"])
@pytest.mark.parametrize("split", ["static", "none"])
def test_freeze(split, where):
    params, static = partition(network())
    objective = POISSON
    if split == "none":  # the parameters are the whole model
        objective = so.Objective(fit=so.Term(lambda p, x: p["c"] @ jnp.tanh(p["a"] @ x) - x[0]))
        params, static = {"a": jnp.asarray(np.linspace(-1, 1, 6).reshape(3, 2)), "c": jnp.ones(3)}, None
        last, batch = {"a": False, "c": True}, {"fit": grid(4)}
    else:
        last = eqx.tree_at(lambda m: m.layers[1].weight, jax.tree.map(lambda _: False, params), True)
        batch = BATCH
    trained = {None: None, "prefix": last, "function": lambda leaf: leaf.ndim < 2}[where]
    loss = objective.bind(batch, static=static, where=trained)
    free, frozen = eqx.partition(params, last)
    reduced = loss.freeze(frozen)

    @jax.jit
    def both(loss, reduced, params, free):
        return (
            jax.value_and_grad(loss)(params),
            jax.value_and_grad(reduced)(free),
            loss.residual(params),
            reduced.linearize(free),
        )

    (value, grad), (value_, grad_), residual, lin = both(loss, reduced, params, free)
    np.testing.assert_allclose(value_, value, rtol=1e-13)
    want = eqx.filter(grad, last)
    assert jax.tree.structure(grad_) == jax.tree.structure(want)
    np.testing.assert_allclose(
        *(np.concatenate([np.ravel(g) for g in jax.tree.leaves(t)]) for t in (grad_, want)), rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(lin.residual, residual, rtol=1e-12, atol=1e-14)
    assert lin.jacobian.in_structure() == jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), free)
    if where is None:
        assert relative(lin.grad, grad_) < 1e-10


@pytest.mark.parametrize("side", ["branch", "trunk"])
def test_freeze_one_side_of_a_product(side):
    """The other map then has no parameters at all."""
    params, loss, _ = products.problem("DeepONet")
    chosen = jax.tree.map(lambda _: False, params) | {side: jax.tree.map(lambda _: True, params[side])}
    free, frozen = eqx.partition(params, chosen)
    lin = jax.jit(lambda p: loss.freeze(frozen).linearize(p))(free)
    J = lin.jacobian
    grad = jax.grad(loss)(params)[side]
    assert relative(lin.grad[side], grad) < 1e-10
    rows = np.asarray(J.as_matrix())
    np.testing.assert_allclose(J.kernel(), rows @ rows.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(J.gram(), rows.T @ rows, rtol=1e-9, atol=1e-12)
