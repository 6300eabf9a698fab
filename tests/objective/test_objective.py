"""The objective: values, gradients and linearizations against formulas written out; errors at trace time."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import (
    BATCH,
    POISSON,
    RITZ,
    RITZ_BATCH,
    dense_jacobian,
    density,
    edges,
    exact,
    flat,
    grid,
    network,
    partition,
    problem,
    relative,
    value,
    value_and_slope,
)

import sciml_opt as so


def written_out(params, static, batch):
    """The loss of POISSON, from its formula, with jax.hessian."""
    u = eqx.combine(params, static)
    X, B = jnp.asarray(batch["interior"]), jnp.asarray(batch["boundary"])
    laplacian = jax.vmap(lambda x: jnp.trace(jax.hessian(u)(x)))(X)
    interior = laplacian + 2 * jnp.pi**2 * exact(X)
    return jnp.mean(0.5 * interior**2) + 4 * jnp.mean(0.5 * jax.vmap(u)(B) ** 2)


def test_value_gradient_and_linearization_agree_with_the_formula():
    params, static = partition(network())
    loss = POISSON.bind(BATCH, static=static)
    want, gradient = jax.jit(jax.value_and_grad(lambda p: written_out(p, static, BATCH)))(params)
    got, grad = jax.jit(jax.value_and_grad(loss))(params)
    lin = jax.jit(lambda p: loss.linearize(p))(params)
    np.testing.assert_allclose(got, want, rtol=1e-13)
    np.testing.assert_allclose(lin.value, want, rtol=1e-13)
    assert relative(grad, gradient) < 1e-12 and relative(lin.grad, gradient) < 1e-12
    np.testing.assert_allclose(0.5 * lin.residual @ lin.residual, want, rtol=1e-13)
    terms = loss.values(params)
    np.testing.assert_allclose(terms["interior"] + terms["boundary"], want, rtol=1e-13)
    residual = jax.jit(lambda p: loss.residual(p))
    np.testing.assert_allclose(lin.residual, residual(params), rtol=1e-12, atol=1e-14)
    J = dense_jacobian(residual, params)
    np.testing.assert_allclose(lin.jacobian.as_matrix(), J, rtol=1e-11, atol=1e-12)
    assert int(lin.clipped) == 0


def test_general_outer_function_gives_the_generalised_gauss_newton_matrix():
    params, loss = problem(RITZ, RITZ_BATCH)
    lin = jax.jit(lambda p: loss.linearize(p))(params)
    value_, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(lin.value, value_, rtol=1e-13)
    assert relative(lin.grad, gradient) < 1e-12
    assert lin.residual is None
    with pytest.raises(ValueError, match=r"least squares only.*'energy'"):
        loss.residual(params)

    static = partition(network())[1]
    X, B = jnp.asarray(RITZ_BATCH["energy"]), jnp.asarray(RITZ_BATCH["boundary"])
    z = lambda p: jax.vmap(lambda x: value_and_slope(eqx.combine(p, static), x))(X)
    Jz = np.reshape(dense_jacobian(lambda p: z(p).reshape(-1), params), (len(X), 3, -1))
    H = jax.vmap(jax.hessian(density))(z(params), X)
    Jb = dense_jacobian(lambda p: jax.vmap(eqx.combine(p, static))(B), params)
    G = np.einsum("nip,nij,njq->pq", Jz, H, Jz) / len(X) + 100 * Jb.T @ Jb / len(B)
    np.testing.assert_allclose(lin.jacobian.gram(), G, rtol=1e-10, atol=1e-10 * np.abs(G).max())
    assert int(lin.clipped) == 0


def test_non_convex_outer_function_is_clipped_and_counted():
    params, static = partition(network())
    saddle = so.Objective(
        saddle=so.Term(lambda u, x: jnp.stack([u(x), u(x + 1)]), outer=lambda z, x: z[0] ** 2 - z[1] ** 2)
    )
    lin = jax.jit(lambda p: saddle.bind({"saddle": grid(3)}, static=static).linearize(p))(params)
    assert int(lin.clipped) == 9
    assert np.linalg.eigvalsh(lin.jacobian.gram()).min() > -1e-12


def test_periodic_pairs_data_systems_and_weights():
    params, static = partition(network(out=2))
    left, right = edges(3)[6:9], edges(3)[9:]
    inputs, targets = grid(2), np.ones((4, 2))
    objective = so.Objective(
        periodic=so.Term(lambda u, pair: u(pair[0]) - u(pair[1]), weight=3.0),
        data=so.Term(lambda u, sample: u(sample["x"]) - sample["y"]),
        quadrature=so.Term(lambda u, x: u(x)[0]),
    )
    nodes = np.linspace(0.1, 1, 4)
    batch = {
        "periodic": (left, right),
        "data": {"x": inputs, "y": targets},
        "quadrature": so.Weighted(grid(2), nodes),
    }
    loss = objective.bind(batch, static=static)
    u = jax.vmap(eqx.combine(params, static))
    want = 3 / 3 * 0.5 * np.sum((u(left) - u(right)) ** 2) + np.sum(0.5 * (u(inputs) - targets) ** 2) / 4
    want += np.sum(nodes * 0.5 * u(jnp.asarray(grid(2)))[:, 0] ** 2)
    np.testing.assert_allclose(loss(params), want, rtol=1e-13)
    lin = jax.jit(lambda p: loss.linearize(p))(params)
    assert lin.residual.shape == (2 * 3 + 2 * 4 + 4,)
    np.testing.assert_allclose(
        lin.jacobian.as_matrix(), dense_jacobian(lambda p: loss.residual(p), params), rtol=1e-11, atol=1e-12
    )


def test_frozen_parameters_have_no_gradient_and_no_columns():
    params, static = partition(network())
    frozen = eqx.tree_at(lambda p: p.layers[0].weight, jax.tree.map(lambda _: True, params), replace=False)
    for where in (frozen, jax.tree.map(jnp.asarray, frozen), lambda leaf: leaf.shape != (8, 2)):
        loss = POISSON.bind(BATCH, static=static, where=where)
        lin = jax.jit(lambda p, loss=loss: loss.linearize(p))(params)
        assert np.all(lin.grad.layers[0].weight == 0) and np.all(lin.jacobian.column_norms().layers[0].weight == 0)
        assert np.all(lin.grad.layers[1].weight != 0)


def test_arrays_of_static_and_of_the_residual_are_dynamic_and_code_is_traced_once():
    traces = []

    class Source(eqx.Module):
        strength: jax.Array

        def __call__(self, u, x):
            traces.append(1)
            return u(x) - self.strength

    params, static = partition(network())

    @jax.jit
    def everything(loss, params):
        lin = loss.linearize(params)
        value_, grad = jax.value_and_grad(loss)(params)
        return lin.value, value_, grad, loss(params), loss.residual(params)

    for strength in (1.0, 2.0):
        term = so.Term(Source(jnp.asarray(strength)), weight=strength)
        everything(so.Objective(data=term).bind({"data": grid(3)}, static=static), params)
    assert len(traces) == 1
    assert everything._cache_size() == 1


def test_jit_of_the_loss_itself_and_a_model_without_static():
    params = {"a": jnp.ones(2), "b": jnp.zeros(())}
    loss = so.Objective(fit=so.Term(lambda p, x: p["a"] @ x + p["b"])).bind({"fit": grid(2)})
    np.testing.assert_allclose(jax.jit(loss)(params), 0.5 * np.mean(grid(2).sum(1) ** 2), rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_everything_follows_the_dtype_of_the_parameters(dtype):
    params, loss = problem(dtype=dtype)  # the points are float64, x64 is on
    lin = jax.jit(lambda p: loss.linearize(p))(params)
    leaves = jax.tree.leaves((lin.value, lin.grad, lin.residual, lin.jacobian.gram(), loss(params)))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}


def test_constants_of_another_dtype_do_not_leak_and_weights_may_be_integers():
    params, static = partition(network(dtype=jnp.float32))
    shift = jnp.asarray(np.array([0.5]), jnp.float64)
    with jax.numpy_dtype_promotion("standard"):
        objective = so.Objective(data=so.Term(lambda u, x: u(x) + shift, weight=jnp.int32(2)))
        loss = objective.bind({"data": so.Weighted(grid(2), np.array([1, 0, 2, 1]))}, static=static)
        assert loss(params).dtype == loss.residual(params).dtype == jnp.float32


def test_point_outputs_of_any_size_are_fields_not_batches():
    params, static = partition(network())
    fields = np.random.default_rng(0).normal(size=(5, 4, 2))
    loss = so.Objective(field=so.Term(lambda u, points: jax.vmap(u)(points))).bind({"field": fields}, static=static)
    assert loss.residual(params).shape == (20,)


@pytest.mark.bad_input
def test_bad_outer_functions_and_weights():
    params, static = partition(network())
    for outer in (lambda z, x: 0.5 * z**2, lambda z, x: jnp.int32(1)):
        loss = so.Objective(energy=so.Term(value, outer=outer)).bind({"energy": grid(3)}, static=static)
        with pytest.raises(ValueError, match="outer function of term 'energy' must return one real number"):
            jax.eval_shape(loss, params)
    with pytest.raises(ValueError, match=r"weights must not be negative"):
        POISSON.bind(BATCH | {"boundary": so.Weighted(edges(1), -np.ones(4))}, static=static)
    with pytest.raises(TypeError, match="params must hold arrays only, got a float"):
        so.Objective(a=so.Term(lambda p, x: p["k"] * x[0])).bind({"a": grid(2)})({"k": 1.0})


def test_nan_in_the_data_shows_in_the_value():
    bad = BATCH | {"interior": np.where(np.arange(36)[:, None] == 3, np.nan, BATCH["interior"])}
    params, loss = problem(batch=bad)
    assert np.isnan(loss(params)) and np.isnan(loss.values(params)["interior"])
    assert np.isfinite(loss.values(params)["boundary"])


X = grid(4)
BAD_BATCHES = {
    "unknown key": ({"interior": X, "boundary": X, "boundry": X}, ValueError, "Did you mean 'boundary'"),
    "missing key": ({"interior": X}, ValueError, r"lacks the entries \['boundary'\]"),
    "empty": ({"interior": X[:0], "boundary": X}, ValueError, r"batch\['interior'\] is empty"),
    "no arrays": ({"interior": (), "boundary": X}, ValueError, "holds no arrays"),
    "leading axes": ({"interior": (X, X[:3]), "boundary": X}, ValueError, "different leading axes"),
    "scalar leaf": ({"interior": (X, 1.0), "boundary": X}, ValueError, "is a scalar"),
    "weights length": ({"interior": so.Weighted(X, np.ones(3)), "boundary": X}, ValueError, "leading axes"),
    "weights rank": ({"interior": so.Weighted(X, X), "boundary": X}, ValueError, r"weights must have shape \(N,\)"),
    "complex": ({"interior": X + 1j, "boundary": X}, TypeError, "complex"),
    "no dict": (X, TypeError, "must be a dict"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_batches(name):
    batch, error, message = BAD_BATCHES[name]
    with pytest.raises(error, match=message):
        POISSON.bind(batch, static=partition(network())[1])


BAD_INNER = {
    "rank": (lambda u, x: jnp.outer(x, x), ValueError, r"returned shape \(2, 2\)"),
    "complex": (lambda u, x: jax.lax.complex(u(x), u(x)), TypeError, "complex"),
    "integer": (lambda u, x: jnp.int32(3), TypeError, "int32"),
    "tuple": (lambda u, x: (u(x), u(x)), TypeError, "returned tuple"),
    "stacked residual": (lambda u, x: jax.vmap(u)(jnp.asarray(X)), ValueError, "number of points"),
    "user error": (lambda u, x: jax.vmap(u)(x), Exception, "."),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", BAD_INNER)
def test_bad_inner_maps(name):
    inner, error, message = BAD_INNER[name]
    params, static = partition(network())
    loss = so.Objective(pde=so.Term(inner)).bind({"pde": X}, static=static)
    with pytest.raises(error, match=message) as raised:
        jax.eval_shape(loss, params)
    notes = "".join(getattr(raised.value, "__notes__", []))
    assert "'pde'" in str(raised.value) + notes


def test_a_batch_inside_the_point_is_refused():
    params, static = partition(network())
    loss = so.Objective(pde=so.Term(lambda u, x: jax.vmap(u)(x))).bind({"pde": X[None]}, static=static)
    with pytest.raises(ValueError, match="number of points"):
        jax.eval_shape(loss, params)


@pytest.mark.bad_input
def test_bad_terms_and_models():
    with pytest.raises(TypeError, match=r"Objective\(pde=...\) must be a Term"):
        so.Objective(pde=value)
    with pytest.raises(ValueError, match="at least one term"):
        so.Objective()
    with pytest.raises(TypeError, match=r"Term\(inner=...\)"):
        so.Term(3.0)
    with pytest.raises(ValueError, match="must not be negative"):
        so.Term(value, weight=-1.0)
    with pytest.raises(ValueError, match="Weighted"):
        so.Term(value, weight=np.ones(3))
    with pytest.raises(TypeError, match="Dropout"):
        so.Objective(a=so.Term(value)).bind({"a": X}, static=eqx.nn.Dropout(0.5))
    with pytest.raises(TypeError, match="mutable state"):
        so.Objective(a=so.Term(value)).bind({"a": X}, static=eqx.nn.BatchNorm(2, "batch", mode="ema"))


def test_flat_order_is_point_by_point():
    params = {"a": jnp.arange(2.0)}
    loss = so.Objective(fit=so.Term(lambda p, x: jnp.stack([p["a"] @ x, x[0]]))).bind({"fit": grid(2)})
    want = np.stack([grid(2) @ np.arange(2.0), grid(2)[:, 0]], 1).ravel() / 2
    np.testing.assert_allclose(loss.residual(params), want, rtol=1e-15)
    assert flat(params).shape == (2,)
