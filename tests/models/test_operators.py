"""DeepONet and FNO: the formulas in NumPy, contracts, and how they are linearized and trained."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import dense_jacobian, flat, partition, relative

import sciml_opt as so
from sciml_opt._tree import unravel
from sciml_opt.linearization._matrix_free import MatrixFreeRows
from sciml_opt.models import FNO, MLP, DeepONet

RNG = np.random.default_rng(5)
F, Y = RNG.normal(size=(6, 5)), RNG.uniform(size=(4, 2))
TARGET = RNG.normal(size=(6, 4))


def deeponet(bias: bool = True, dtype=None, seed: int = 0):
    keys = jax.random.split(jax.random.key(seed))
    model = DeepONet(MLP(5, 3, (8,), key=keys[0], dtype=dtype), MLP(2, 3, (8,), key=keys[1], dtype=dtype), bias)
    return eqx.tree_at(lambda m: m.bias, model, jnp.asarray(0.7, dtype or jnp.float64)) if bias else model


def numpy_mlp(network, x):
    *hidden, last = zip(map(np.asarray, network.weights), map(np.asarray, network.biases), strict=True)
    for W, b in hidden:
        x = np.tanh(x @ W.T + b)
    return x @ last[0].T + last[1]


# --- DeepONet


@pytest.mark.parametrize("bias", [True, False])
def test_deeponet_formula(bias):
    model = deeponet(bias)
    want = numpy_mlp(model.branch, F) @ numpy_mlp(model.trunk, Y).T + (0.7 if bias else 0.0)
    np.testing.assert_allclose(model.pairs(jnp.asarray(F), jnp.asarray(Y)), want, rtol=1e-12)
    np.testing.assert_allclose(model(jnp.asarray(F[1]), jnp.asarray(Y[2])), want[1, 2], rtol=1e-12)
    loss = so.Objective(data=so.Term(DeepONet.product())).bind({"data": so.ProductBatch(F, Y, TARGET)})
    np.testing.assert_allclose(loss(model), 0.5 * np.mean((want - TARGET) ** 2), rtol=1e-12)


def operators(u):
    """u and u_t - 0.3 u_xx, for y = (x, t)."""
    return lambda y: jnp.stack([u(y), so.partial(u, 1)(y) - 0.3 * so.partial(u, 0, 0)(y)])


def test_physics_by_operators_on_the_trunk():
    """The operator acts on the trunk: the residual is that of the whole network, differentiated pair by pair."""
    model = deeponet()
    term = so.Term(DeepONet.product(operators, lambda z, f: z[1] - 0.2 * z[0] ** 2 - f))
    loss = so.Objective(physics=term).bind({"physics": so.ProductBatch(F, Y, TARGET)})

    def residual(f, y, source):
        u = functools.partial(model, f)
        hessian = jax.hessian(u)(y)
        return jax.grad(u)(y)[1] - 0.3 * hessian[0, 0] - 0.2 * u(y) ** 2 - source

    queries = jax.vmap(residual, (None, 0, 0))
    want = jax.jit(jax.vmap(queries, (0, None, 0)))(jnp.asarray(F), jnp.asarray(Y), jnp.asarray(TARGET))
    np.testing.assert_allclose(loss.residual(model), want.reshape(-1) / np.sqrt(TARGET.size), rtol=1e-9)


def test_one_operator_and_no_pairs():
    loss = so.Objective(laplace=so.Term(DeepONet.product(so.laplacian))).bind({"laplace": so.ProductBatch(F, Y)})
    model = deeponet()
    got = np.sqrt(TARGET.size) * np.asarray(loss.residual(model)).reshape(TARGET.shape)
    want = jnp.trace(jax.hessian(functools.partial(model, jnp.asarray(F[3])))(jnp.asarray(Y[2])))
    np.testing.assert_allclose(got[3, 2], want, rtol=1e-9)


def test_deeponet_is_linearized_by_its_two_networks():
    params, static = partition(deeponet())
    loss = so.Objective(data=so.Term(DeepONet.product())).bind({"data": so.ProductBatch(F, Y, TARGET)}, static=static)
    records = so.explain(loss, params).records
    assert set(records) == {"data (left)", "data (right)"}
    paths = {side: {r.leaf: r.path for r in records[f"data ({side})"]} for side in ("left", "right")}
    for side, own, other in (("left", ".branch", ".trunk"), ("right", ".trunk", ".branch")):
        weights = [path for leaf, path in paths[side].items() if leaf.startswith(own + ".weights")]
        assert weights == ["factored", "factored"]
        assert {path for leaf, path in paths[side].items() if leaf.startswith(other)} == {"unused"}
    J = dense_jacobian(loss.residual, params)
    v = RNG.normal(size=J.shape[1])

    @jax.jit
    def products(params, v):
        lin = loss.linearize(params)
        return lin.jacobian.mv(unravel(v, params)), lin.grad, lin.residual

    forward, grad, residual = products(params, jnp.asarray(v))
    assert relative(forward, J @ v) < 1e-10
    assert relative(flat(grad), J.T @ np.asarray(residual)) < 1e-10


def test_float32_and_traces():
    objective = so.Objective(data=so.Term(DeepONet.product()))

    @jax.jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def value(model):
        batch = so.ProductBatch(*(jnp.asarray(leaf, jnp.float32) for leaf in (F, Y, TARGET)))
        return objective.bind({"data": batch})(model)

    models = [deeponet(dtype=jnp.float32, seed=seed) for seed in range(2)]
    assert {leaf.dtype for leaf in jax.tree.leaves(models[0])} == {jnp.dtype("float32")}
    values = [value(model) for model in models]
    assert values[0].dtype == jnp.float32 and values[0] != values[1]


def test_nothing_is_traced_anew_for_an_equal_product():
    @jax.jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def value(loss, model):
        return loss(model)

    def residual(z, f):
        return z[1] - f

    for _ in range(2):
        objective = so.Objective(physics=so.Term(DeepONet.product(operators, residual)))
        value(objective.bind({"physics": so.ProductBatch(F, Y, TARGET)}), deeponet())


def test_a_deeponet_learns_the_mean():
    """The mean of the sensors times y: five starts, unseen functions."""
    rng = np.random.default_rng(0)
    functions, queries = rng.normal(size=(60, 5)), np.linspace(0, 1, 6)[:, None]
    pairs = functions.mean(1)[:, None] * queries[None, :, 0]
    seen = slice(40)
    unseen = jnp.asarray(functions[40:]), jnp.asarray(queries)
    objective = so.Objective(data=so.Term(DeepONet.product()))
    batch = {"data": so.ProductBatch(functions[seen], queries, pairs[seen])}

    @jax.jit
    def train(key):
        keys = jax.random.split(key)
        start = DeepONet(MLP(5, 4, (8,), key=keys[0]), MLP(1, 4, (8,), key=keys[1]))
        params, static = partition(start)
        result = so.train(params, objective, so.hessian_free(), batch, steps=40, static=static)
        errors = [model.pairs(*unseen) - pairs[40:] for model in (start, eqx.combine(result.params, static))]
        return [jnp.linalg.norm(error) / np.linalg.norm(pairs[40:]) for error in errors]

    for seed in range(5):
        before, after = train(jax.random.key(seed))
        assert after < 0.1 < 0.5 < before


def test_a_trunk_without_parameters_is_no_leaf():
    model = DeepONet(MLP(5, 2, (4,), key=jax.random.key(0)), lambda y: jnp.stack([y[0], y[0] * y[1]]))
    f, y = jnp.asarray(F[0]), jnp.asarray(Y[0])
    b = numpy_mlp(model.branch, F[0])
    np.testing.assert_allclose(jax.jit(lambda model: model(f, y))(model), b[0] * y[0] + b[1] * y[0] * y[1], rtol=1e-12)


@pytest.mark.bad_input
def test_deeponet_errors():
    with pytest.raises(TypeError, match=r"DeepONet\(trunk=...\).*ndarray"):
        DeepONet(jnp.sin, np.zeros(3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"one length.*\(5,\) and \(2,\)"):
        DeepONet(jnp.sin, jnp.cos, bias=False)(jnp.ones(5), jnp.ones(2))
    with pytest.raises(ValueError, match="vector outputs"):
        DeepONet(jnp.sum, jnp.sum, bias=False)(jnp.ones(5), jnp.ones(2))


# --- FNO


def fno(modes, depth: int = 2, dtype=None, seed: int = 0, **options):
    model = FNO(modes, width=3, depth=depth, activation=jnp.tanh, key=jax.random.key(seed), dtype=dtype, **options)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), model)


def numpy_fno(model, a):
    """By sums over all grid points and kept frequencies, in the space of the grid."""
    grid = a.shape[: len(model.modes)]
    points = np.stack(np.meshgrid(*(np.arange(n) / n for n in grid), indexing="ij"), -1).reshape(-1, len(grid))
    v = np.concatenate([a.reshape(len(points), -1), points], axis=1)
    v = v @ np.asarray(model.lift[0]).T + np.asarray(model.lift[1])
    axes = [[*range(m), *range(-m, 0)] for m in model.modes[:-1]] + [list(range(model.modes[-1]))]
    for number, layer in enumerate(model.layers):
        R = np.asarray(layer.real) + 1j * np.asarray(layer.imaginary)
        convolved = np.zeros_like(v)
        for index in np.ndindex(R.shape[2:]):
            k = np.array([axis[i] for axis, i in zip(axes, index, strict=True)])
            # R is stored from the most negative frequency of the first axes up
            place = (*(k[:-1] + np.array(model.modes[:-1], int)), k[-1])
            wave = np.exp(2j * np.pi * points @ k)
            coefficient = R[(..., *place)] @ (wave.conj() @ v) / len(points)
            double = 1 if k[-1] == 0 else 2  # with the frequency -k
            convolved += double * np.real(np.outer(wave, coefficient))
        v = v @ np.asarray(layer.weight).T + np.asarray(layer.bias) + convolved
        v = np.tanh(v) if number < len(model.layers) - 1 else v
    return numpy_mlp(model.projection, v).reshape(*grid, -1)


FIELD_1D, FIELD_2D = RNG.normal(size=12), RNG.normal(size=(6, 8, 2))


@pytest.mark.parametrize(
    ("modes", "field", "options"),
    [((4,), FIELD_1D, {}), ((2, 3), FIELD_2D, {"in_channels": 2, "out_channels": 2})],
)
def test_fno_formula(modes, field, options):
    model = fno(modes, **options)
    got = jax.jit(lambda model, a: model(a))(model, jnp.asarray(field))
    np.testing.assert_allclose(got.reshape(*field.shape[: len(modes)], -1), numpy_fno(model, field), rtol=1e-10)
    assert got.shape == (field.shape if "out_channels" in options else field.shape[: len(modes)])


@pytest.mark.parametrize("shift", [True, False])
def test_the_same_operator_on_every_grid(shift):
    """One layer on a band-limited field is exact on any grid; without the coordinates it commutes with shifts."""
    model = fno((3,), depth=1)
    model = eqx.tree_at(lambda m: m.lift[0], model, model.lift[0].at[:, -1].set(0))

    def field(n):
        x = 2 * np.pi * np.arange(n) / n
        return jnp.asarray(1 + np.sin(x) - np.cos(2 * x))

    if shift:
        np.testing.assert_allclose(model(jnp.roll(field(12), 5)), jnp.roll(model(field(12)), 5), rtol=1e-12)
    else:
        np.testing.assert_allclose(model(field(36))[::3], model(field(12)), rtol=1e-12)


def field_error(model, sample):
    return (model(sample[0]) - sample[1]).reshape(-1)


SAMPLES = (RNG.normal(size=(2, 64)), RNG.normal(size=(2, 64)))
OPERATOR = so.Objective(data=so.Term(field_error))


def test_fno_is_linearized_without_a_matrix():
    params, static = partition(fno((2,), depth=1))
    loss = OPERATOR.bind({"data": SAMPLES}, static=static)
    J = dense_jacobian(loss.residual, params)
    v, w = RNG.normal(size=J.shape[1]), RNG.normal(size=len(J))

    @jax.jit
    def products(params, v, w):
        lin = loss.linearize(params)
        assert isinstance(lin.jacobian.rows[0], MatrixFreeRows)
        return lin.jacobian.mv(unravel(v, params)), lin.jacobian.rmv(w), lin.grad, lin.residual

    forward, backward, grad, residual = products(params, jnp.asarray(v), jnp.asarray(w))
    assert relative(forward, J @ v) < 1e-10
    assert relative(backward, J.T @ w) < 1e-10
    assert relative(grad, J.T @ np.asarray(residual)) < 1e-10
    assert {record.path for record in so.explain(loss, params).records["data"]} == {"matrix-free"}


slow = pytest.mark.slow
METHODS = {
    "hessian_free": lambda: so.hessian_free(),
    "lbfgs": lambda: so.lbfgs(3),
    "levenberg_marquardt": lambda: so.levenberg_marquardt(solve="cg", geodesic=False),
    "gauss_newton": lambda: so.gauss_newton(solve="cg"),
    "newton_krylov": lambda: so.newton_krylov(),
    "soap": lambda: so.soap(3e-3),
}


@pytest.mark.parametrize("name", ["lbfgs", *(pytest.param(name, marks=slow) for name in METHODS if name != "lbfgs")])
def test_methods_train_an_fno(name):
    """Six steps from five starts decrease the loss, in one program; data that are not numbers move nothing."""
    tx = METHODS[name]()
    _, static = partition(fno((2,), depth=1))

    @jax.jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def train(params, samples):
        return so.train(params, OPERATOR, tx, {"data": samples}, steps=6, static=static)

    samples = tuple(map(jnp.asarray, SAMPLES))
    starts = [partition(fno((2,), depth=1, seed=seed))[0] for seed in range(5)]
    for params in starts:
        result = train(params, samples)
        assert result.loss < 0.99 * result.history["loss"][0]
    bad = train(starts[0], (samples[0] * jnp.nan, samples[1]))
    assert eqx.tree_equal(bad.state.params, starts[0])


def test_fno_in_float32():
    model = fno((2, 2), dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    loss = so.Objective(data=so.Term(field_error)).bind({"data": tuple(np.ones((3, 4, 4), np.float32) for _ in "ab")})
    value, grad = jax.eval_shape(jax.value_and_grad(loss), model)
    assert {value.dtype, *(leaf.dtype for leaf in jax.tree.leaves(grad))} == {jnp.dtype("float32")}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modes": 8}, r"such as \(8,\)"),
        ({"modes": ()}, r"such as \(8,\)"),
        ({"modes": (4, 0)}, "modes must be a positive integer, got 0"),
        ({"width": 0}, "width must be a positive"),
        ({"depth": 1.5}, "depth must be a positive"),
        ({"out_channels": -1}, "out_channels must be a positive"),
    ],
)
def test_fno_sizes(arguments, words):
    with pytest.raises(ValueError, match=words):
        FNO(**{"modes": (2,), "key": jax.random.key(0)} | arguments)


@pytest.mark.bad_input
def test_fno_fields():
    model = FNO((4,), width=2, depth=1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"ONE field with 1 axes and 1 channels last; got shape \(3, 16\)"):
        model(jnp.ones((3, 16)))
    with pytest.raises(ValueError, match=r"at least 8 grid points an axis, got \(7,\)"):
        model(jnp.ones(7))
