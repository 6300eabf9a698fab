"""Product batches: values and gradients at the price of both sides, jit, vmap, dtypes, training, and clear errors."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from products import PRODUCTS, TERMS, batch, branch, model, problem, trunk
from small import dense_jacobian, flat, partition, relative

import sciml_opt as so


def test_weights_take_the_place_of_the_mean():
    weights = np.random.default_rng(0).uniform(size=(4, 5))
    weights[1, 2] = 0
    given = problem("two nonlinear outputs", weights=weights)
    lin = jax.jit(lambda params: given.loss.linearize(params))(given.params)
    assert relative(lin.value, given.points(given.params)) <= 1e-14
    assert relative(lin.residual, given.points.residual(given.params)) <= 1e-13
    assert relative(lin.grad, jax.jit(jax.grad(given.points))(given.params)) <= 1e-12


def test_the_maps_are_evaluated_once_a_point_and_combined_by_one_product():
    given = problem("DeepONet", left=11, right=13)

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            inner = [v for v in jax.tree.leaves(list(eqn.params.values())) if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
            yield from (s for v in inner for s in sizes(getattr(v, "jaxpr", v)))
            yield eqn.primitive.name, max((v.aval.size for v in eqn.outvars), default=0)

    counted = list(sizes(jax.make_jaxpr(given.loss)(given.params).jaxpr))
    products = [size for name, size in counted if name == "dot_general"]
    assert products.count(11 * 13) == 1
    assert max(size for _, size in counted) <= 13 * 12  # nothing of all pairs times a width


def test_mixed_with_terms_of_points_chunks_and_frozen_parameters():
    params, static = partition(model())
    pairs, points = batch("DeepONet"), np.random.default_rng(1).uniform(size=(6, 2))
    edge = so.Term(lambda m, y: m["bias"] * jnp.sum(m["trunk"](y)), weight=3.0)
    objective = so.Objective(operator=TERMS["DeepONet"], edge=edge)
    where = {"branch": True, "trunk": False, "common": True, "bias": True}

    def bind(**options):
        return objective.bind({"operator": pairs, "edge": points}, static=static, **options)

    @jax.jit
    def operations(jacobian):
        some = jacobian.take(jnp.asarray([2, 17, 25])).as_matrix()
        return jacobian.gram(), jacobian.kernel(), some

    for loss in (bind(), bind(chunk=2, where=where)):
        lin = jax.jit(lambda params, loss=loss: loss.linearize(params))(params)
        value, grad = jax.jit(jax.value_and_grad(loss))(params)
        assert relative(lin.value, value) <= 1e-14 and relative(lin.grad, grad) <= 1e-12
        J = dense_jacobian(loss.residual, params)
        for got, want in zip(operations(lin.jacobian), (J.T @ J, J @ J.T, J[[2, 17, 25]]), strict=True):
            assert relative(got, want) <= 1e-10
        cost = lin.jacobian.cost
        assert min(cost) > 0 and cost.gram <= J.shape[0] * J.shape[1] ** 2
    assert np.all(flat(lin.grad["trunk"]) == 0)


def test_float32_stays_float32():
    given = problem("DeepONet", dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(given.params)} == {jnp.dtype(jnp.float32)}
    lin = jax.jit(lambda params: given.loss.linearize(params))(given.params)
    kernel, gram, rows = jax.jit(lambda J: (J.kernel(), J.gram(), J.as_matrix()))(lin.jacobian)
    for leaf in jax.tree.leaves((lin.value, lin.grad, lin.residual, lin.jacobian.rows, kernel, gram)):
        assert leaf.dtype == jnp.float32
    assert relative(kernel, rows @ rows.T) <= 1e-5 and relative(gram, rows.T @ rows) <= 1e-5


def test_vmap_over_seeds_and_nans():
    lanes = [problem("DeepONet", seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(lane.params for lane in lanes))
    stacked["bias"] = stacked["bias"].at[1].set(jnp.nan)
    loss = lanes[0].loss

    def operate(params):
        lin = loss.linearize(params)
        return lin.value, lin.jacobian.rmv(lin.residual), lin.jacobian.kernel(memory=8 * 100)

    value, grad, kernel = jax.jit(jax.vmap(operate))(stacked)
    J = dense_jacobian(loss.residual, lanes[0].params)
    assert relative(value[0], loss(lanes[0].params)) <= 1e-13
    assert relative(kernel[0], J @ J.T) <= 1e-10
    assert np.isnan(value[1]) and np.isnan(flat(jax.tree.map(lambda leaf: leaf[1], grad))).any()


def antiderivative(functions=12, queries=8, sensors=10):
    """`u' = f`, `u(0) = 0` for random trigonometric `f`."""
    rng = np.random.default_rng(2)
    amplitudes, frequencies = rng.normal(size=(functions, 3)), np.pi * np.arange(1, 4)
    x, y = np.linspace(0, 1, sensors), np.linspace(0.05, 1, queries)
    f = amplitudes @ np.cos(frequencies[:, None] * x)
    return f, y[:, None], amplitudes @ (np.sin(frequencies[:, None] * y) / frequencies[:, None])


@pytest.mark.parametrize("solve", ["dual", "nystrom"])
def test_levenberg_marquardt_learns_an_antiderivative(solve):
    keys = jax.random.split(jax.random.key(0))
    networks = {
        "branch": eqx.nn.MLP(10, 5, 8, 1, jnp.tanh, key=keys[0]),
        "trunk": eqx.nn.MLP(1, 5, 8, 1, jnp.tanh, key=keys[1]),
        "bias": jnp.zeros(()),
    }
    params, static = partition(networks)
    f, y, u = antiderivative()
    data = so.Objective(data=so.Term(so.Product(branch, trunk))).bind({"data": so.ProductBatch(f, y, u)}, static=static)
    tx = so.levenberg_marquardt(solve=solve)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(data)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=data)
        return jax.tree.map(jnp.add, params, updates), state, value

    values = []
    for _ in range(15):
        params, state, value = step(params, state)
        values.append(float(value))
    assert all(after <= before for before, after in itertools.pairwise(values))
    assert values[-1] < 1e-2 * values[0]


def test_a_product_is_a_pytree_and_evaluates_one_pair():
    pairs = batch("DeepONet")
    point = (jnp.asarray(pairs.left[1]), jnp.asarray(pairs.right[2]), jnp.asarray(pairs.pair[1, 2]))
    m = model()
    want = jnp.dot(branch(m, point[0]), trunk(m, point[1])) - point[2]
    assert relative(PRODUCTS["DeepONet"](m, point), want) <= 1e-15
    free = so.Objective(t=so.Term(so.Product(branch, trunk)))
    loss = free.bind({"t": so.ProductBatch(pairs.left, pairs.right)}, static=partition(m)[1])
    assert loss.residual(partition(m)[0]).shape == (20,)


GOOD = batch("DeepONet")
ERRORS = {
    "points": (GOOD.left, TypeError, "is a Product, so batch"),
    "weighted points": (so.Weighted(GOOD.left, np.ones(4)), TypeError, "must be a ProductBatch"),
    "empty": (GOOD._replace(left=GOOD.left[:0]), ValueError, "is empty"),
    "no arrays": (GOOD._replace(right=()), ValueError, "holds no arrays"),
    "scalar": (GOOD._replace(right=1.0), ValueError, "needs a leading point axis"),
    "axes of pairs": (GOOD._replace(pair=GOOD.pair.T), ValueError, r"must have leading axes \(Nl, Nr\) = \(4, 5\)"),
    "pairs without axes": (GOOD._replace(pair=GOOD.pair[0]), ValueError, r"needs leading axes \(Nl, Nr\)"),
    "different axes": (GOOD._replace(left=(GOOD.left, GOOD.left[1:])), ValueError, "different leading axes"),
    "complex": (GOOD._replace(pair=GOOD.pair + 1j), TypeError, "is complex"),
    "weights": (so.Weighted(GOOD, np.ones(20)), ValueError, r"must have shape \(Nl, Nr\) = \(4, 5\)"),
    "negative weights": (so.Weighted(GOOD, -np.ones((4, 5))), ValueError, "must not be negative"),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_the_batch(name):
    entry, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        so.Objective(operator=TERMS["DeepONet"]).bind({"operator": entry})


@pytest.mark.bad_input
def test_errors_of_the_maps():
    params, static = partition(model())

    def evaluate(product, pairs=GOOD, outer=None):
        term = so.Term(product) if outer is None else so.Term(product, outer=outer)
        return so.Objective(t=term).bind({"t": pairs}, static=static)(params)

    with pytest.raises(TypeError, match="is a ProductBatch, but the inner map of term 't' is no Product"):
        so.Objective(t=so.Term(trunk)).bind({"t": GOOD})
    with pytest.raises(TypeError, match=r"Product\(right=...\) must be a function"):
        so.Product(branch, 1.0)
    with pytest.raises(ValueError, match=r"left returned \(4,\), right \(3,\)"):
        evaluate(so.Product(branch, lambda m, y: m["trunk"](y)))
    with pytest.raises(ValueError, match="one number a pair"):
        evaluate(so.Product(branch, trunk), GOOD._replace(pair=np.ones((4, 5, 2))))
    with pytest.raises(ValueError, match=r"combine function of term 't.combine'.*returned float64\[4, 4\]"):
        evaluate(so.Product(branch, trunk, lambda b, t, pair: jnp.outer(b, t)))
    with pytest.raises(TypeError, match=r"inner map of term 't.left' must return"):
        evaluate(so.Product(lambda m, f: (f, f), trunk))
