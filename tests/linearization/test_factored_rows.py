"""Every operation on factored rows against the dense Jacobian, whatever form and chunk it takes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import dense_jacobian, edges, flat, grid, interior, partition, relative, value

import sciml_opt as so
from sciml_opt.linearization import Block, linearize
from sciml_opt.linearization._contributions import Explicit, Factored, Pulled
from sciml_opt.linearization._rows import PointRows
from sciml_opt.linearization._views import View


class Normalised(eqx.Module):
    """A network whose middle weight is `g v / |v|`, no entry of the parameters."""

    inner: jax.Array
    v: jax.Array
    g: jax.Array
    outer: jax.Array

    def __init__(self, width: int, key):
        keys = jax.random.split(key, 4)
        self.inner = jax.random.normal(keys[0], (width, 2))
        self.v = jax.random.normal(keys[1], (width, width))
        self.g = jax.random.normal(keys[2], (width,)) / 3
        self.outer = jax.random.normal(keys[3], (width,)) / 3

    def __call__(self, x):
        middle = self.v * (self.g / jnp.linalg.norm(self.v, axis=1))[:, None]
        return self.outer @ jnp.tanh(middle @ jnp.tanh(self.inner @ x))


def system(u, x):
    return jnp.stack([interior(u, x), u(x) * jax.grad(u)(x)[0]])


def tied(W, x):
    """One matrix as a weight, as its transpose, and entry by entry."""
    return jnp.sum(jnp.tanh(W.T @ jnp.tanh(W @ jnp.tile(x, 6)))) + jnp.sum(W[0] ** 2)


MODELS = {
    "plain": lambda: so.models.MLP(2, layers=(12, 12), key=jax.random.key(0)),
    "normalised": lambda: Normalised(12, jax.random.key(1)),
    "tied": lambda: jax.random.normal(jax.random.key(2), (12, 12)) / 3,
}
TERMS = {"plain": (interior, value), "normalised": (system, value), "tied": (tied, tied)}
FORMS = {"plain": {Explicit, Factored}, "normalised": {Explicit, Pulled}, "tied": {Explicit, Factored}}


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    """`J, dense J, params` of two terms."""
    params, static = partition(MODELS[request.param]())
    first, second = TERMS[request.param]
    objective = so.Objective(a=so.Term(first), b=so.Term(second, weight=3.0))
    loss = objective.bind({"a": grid(6)[:31], "b": edges(2)[:7]}, static=static)
    lin = jax.jit(loss.linearize)(params)
    value_, grad = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(lin.value, value_, rtol=1e-13)
    assert relative(lin.grad, grad) < 1e-12
    forms = {type(part) for group in lin.jacobian.rows for part in group.parts}
    assert forms >= FORMS[request.param] - {Explicit}
    return lin.jacobian, dense_jacobian(loss.residual, params), params


def draw(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)


OPERATIONS = {
    "rows": (lambda J, v, w: J.as_matrix(), lambda M, v, w: M),
    "mv": (lambda J, v, w: J.mv(v), lambda M, v, w: M @ v),
    "rmv": (lambda J, v, w: J.rmv(w), lambda M, v, w: M.T @ w),
    "transpose": (lambda J, v, w: J.T.mv(w), lambda M, v, w: M.T @ w),
    "for_products": (lambda J, v, w: J.for_products().rmv(J.for_products().mv(v)), lambda M, v, w: M.T @ (M @ v)),
    "gram": (lambda J, v, w: J.gram(), lambda M, v, w: M.T @ M),
    "gram in chunks": (lambda J, v, w: J.gram(memory=20_000), lambda M, v, w: M.T @ M),
    "weighted gram": (lambda J, v, w: J.gram(w), lambda M, v, w: (M.T * w) @ M),
    "weighted gram in chunks": (lambda J, v, w: J.gram(w, memory=20_000), lambda M, v, w: (M.T * w) @ M),
    "kernel": (lambda J, v, w: J.kernel(), lambda M, v, w: M @ M.T),
    "kernel in tiles": (lambda J, v, w: J.kernel(memory=4_000), lambda M, v, w: M @ M.T),
    "column norms": (lambda J, v, w: J.column_norms(), lambda M, v, w: np.linalg.norm(M, axis=0)),
    "column norms in chunks": (lambda J, v, w: J.column_norms(memory=2_000), lambda M, v, w: np.linalg.norm(M, axis=0)),
    "largest": (lambda J, v, w: J.largest_column_square(), lambda M, v, w: np.max(np.sum(M**2, axis=0))),
    "row norms": (lambda J, v, w: J.row_norms(), lambda M, v, w: np.linalg.norm(M, axis=1)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(case, name):
    J, dense, params = case
    ours, expected = OPERATIONS[name]
    v, w = draw(params), jnp.asarray(np.random.default_rng(1).normal(size=len(dense)))
    assert relative(jax.jit(ours)(J, v, w), expected(dense, flat(v), np.asarray(w))) < 1e-11


def test_scaled_kernel(case):
    J, dense, params = case
    rng = np.random.default_rng(2)

    def scale(leaf, pair):
        if pair and leaf.ndim == 2:
            return tuple(jnp.asarray(rng.uniform(1, 2, size)) for size in leaf.shape)
        return jnp.asarray(rng.uniform(1, 2))

    for pair in (False, True):
        scales = jax.tree.map(lambda leaf, pair=pair: scale(leaf, pair), params)
        leaves, treedef = jax.tree.flatten(params)
        full = flat([
            np.outer(*s) if isinstance(s, tuple) else np.full(leaf.shape, s)
            for s, leaf in zip(treedef.flatten_up_to(scales), leaves, strict=True)
        ])  # fmt: skip
        for memory in (2**28, 4_000):
            got = jax.jit(lambda J, s, m=memory: J.kernel(s, memory=m))(J, scales)
            assert relative(got, (dense * full) @ dense.T) < 1e-11


def test_rows_of_a_minibatch(case):
    J, dense, params = case
    indices = jnp.asarray([0, len(dense) - 1, 3, 3, len(dense) - 7])
    part = jax.jit(lambda J, i: J.take(i))(J, indices)
    expected = dense[np.asarray(indices)]
    assert part.out_structure().shape == (5,)
    assert relative(part.as_matrix(), expected) < 1e-12
    assert relative(jax.jit(lambda J: J.kernel())(part), expected @ expected.T) < 1e-12


def test_indices_of_rows_as_in_numpy(case):
    J, dense, _ = case
    part = J.take(jnp.asarray([-1, len(dense), -len(dense) - 1, -len(dense)])).as_matrix()
    np.testing.assert_allclose(part[np.array([0, 3])], dense[[-1, 0]], rtol=1e-12, atol=1e-12)
    assert not np.any(part[1:3])


def test_row_norms_of_terms_that_cancel():
    """In float32 the expanded square of a small row may come out negative; its norm is no NaN."""
    rng = np.random.default_rng(0)
    g, z = (jnp.asarray(rng.normal(size=(200, 1, 16)), jnp.float32) for _ in range(2))
    rows = Factored(View(np.arange(256).reshape(16, 16)), (g, g), (z, -z * (1 + 1e-5)), jnp.ones(200, jnp.float32))
    J = so.StructuredJacobian([PointRows(parts=(rows,), size=256, dtype=jnp.dtype(jnp.float32))], jnp.zeros(256))
    assert np.all(np.isfinite(J.row_norms()))


def test_terms_and_leaves_without_parameters():
    """A term that no trained parameter reaches, and an empty leaf, are nothing special."""
    params = {"u": jnp.ones(2), "nu": jnp.ones(2), "none": jnp.zeros((0, 3))}
    objective = so.Objective(a=so.Term(lambda p, x: p["u"] @ x - 3), b=so.Term(lambda p, x: p["nu"] @ x))
    batch = {"a": grid(2), "b": grid(2)}
    loss = objective.bind(batch, where={"u": True, "nu": False, "none": True})
    J = loss.linearize(params).jacobian
    np.testing.assert_allclose(J.mv(params)[4:], 0)
    assert relative(J.mv(params)[:4], grid(2).sum(1) / 2) < 1e-14
    for scaling, solve in (("identity", "dual"), ("marquardt", "primal")):
        tx = so.levenberg_marquardt(scaling=scaling, solve=solve, geodesic=False)
        result = so.train(params, objective, tx, batch, steps=2)
        assert np.all(np.isfinite(result.history["loss"])) and result.loss < result.history["loss"][0]


def test_blocks_of_the_leaves(case):
    J, dense, params = case
    stops = np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])
    for block, part in zip(
        jax.tree.leaves(jax.jit(lambda J: J.blocks())(J)), np.split(dense, stops[:-1], 1), strict=True
    ):
        assert relative(block, part.T @ part) < 1e-12


def test_cost_counts_what_is_done(case):
    J, dense, params = case
    count, size = dense.shape
    assert 0 < J.cost.product and 0 < J.cost.kernel <= 4 * count**2 * size and J.cost.gram == count * size**2


def test_memory_of_the_kernel_is_bounded():
    """At 64 x 64 the rows alone are 8 N P bytes; the temporaries of the kernel obey the argument."""
    params, static = partition(so.models.MLP(2, layers=(64, 64), key=jax.random.key(0)))
    points = np.random.default_rng(0).uniform(size=(400, 2))
    loss = so.Objective(a=so.Term(interior)).bind({"a": points}, static=static)
    J = jax.eval_shape(loss.linearize, params).jacobian

    def temporaries(memory):
        program = jax.jit(lambda J: J.kernel(memory=memory)).lower(J).compile()
        return program.memory_analysis().temp_size_in_bytes

    kernel = 8 * 400**2
    assert temporaries(2**20) < 2**20 + 3 * kernel < 8 * 400 * 4417


@pytest.mark.parametrize("outer", [None, lambda z, x: jnp.sum(jnp.cosh(0.1 * z)) + 0.5 * z[0] ** 2])
def test_long_outputs_are_matrix_free(outer):
    params, static = partition(eqx.nn.MLP(2, 70, 4, 1, jnp.tanh, key=jax.random.key(0)))
    term = so.Term(lambda u, x: u(x) - x[0], **({} if outer is None else {"outer": outer}))
    loss = so.Objective(field=term).bind({"field": grid(2)}, static=static)
    lin = jax.jit(loss.linearize)(params)
    value_, grad = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(lin.value, value_, rtol=1e-13)
    assert relative(lin.grad, grad) < 1e-12
    J = lin.jacobian
    assert type(J.rows[0]).__name__ == "MatrixFreeRows"
    dense = np.asarray(jax.jit(lambda J: J.as_matrix())(J))
    if outer is None:
        assert relative(dense, dense_jacobian(loss.residual, params)) < 1e-13
    v, w = draw(params), jnp.asarray(np.random.default_rng(1).normal(size=len(dense)))
    for name in ("mv", "rmv", "gram in chunks", "kernel", "row norms", "column norms"):
        ours, expected = OPERATIONS[name]
        assert relative(jax.jit(ours)(J, v, w), expected(dense, flat(v), np.asarray(w))) < 1e-11


def test_large_dense_rows_are_matrix_free():
    """A weight that is used entry by entry: 1000 points times 10^6 entries would be 8 GB of rows."""
    params = {"w": jax.ShapeDtypeStruct((1000, 1000), jnp.float64)}
    loss = so.Objective(a=so.Term(lambda p, x: jnp.sum(jnp.sin(p["w"] * x[0])))).bind({"a": np.ones((1000, 1))})
    J = jax.eval_shape(loss.linearize, params).jacobian
    assert type(J.rows[0]).__name__ == "MatrixFreeRows"


def test_chunks_change_nothing_but_the_memory():
    params, static = partition(so.models.MLP(2, layers=(32, 32), key=jax.random.key(0)))
    points = np.random.default_rng(0).uniform(size=(500, 2))
    objective = so.Objective(a=so.Term(interior))
    whole, chunked = (objective.bind({"a": points}, static=static, chunk=chunk) for chunk in (None, 64))

    def program(loss):
        return jax.jit(jax.value_and_grad(loss)).lower(params).compile()

    programs = [program(loss) for loss in (whole, chunked)]
    assert relative(programs[1](params), programs[0](params)) < 1e-12
    sizes = [p.memory_analysis().temp_size_in_bytes for p in programs]
    assert sizes[1] < sizes[0] / 3
    a, b = (jax.jit(loss.linearize)(params) for loss in (whole, chunked))
    assert relative(b.jacobian.as_matrix(), a.jacobian.as_matrix()) < 1e-12
    assert relative(b.residual, a.residual) < 1e-12 and relative(b.grad, a.grad) < 1e-12


@pytest.mark.bad_input
@pytest.mark.parametrize("chunk", [0, -3, 2.5, "all"])
def test_a_bad_chunk_is_refused(chunk):
    with pytest.raises(ValueError, match="chunk must be a positive integer"):
        so.Objective(a=so.Term(value)).bind({"a": grid(2)}, chunk=chunk)


def test_linearize_of_plain_functions():
    """The package knows no objective: functions, points and weights are enough."""
    params = {"w": jnp.arange(6.0).reshape(2, 3)}
    points = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
    weights = jnp.linspace(1.0, 2.0, 5)

    def inner(p, x):
        return jnp.tanh(p["w"] @ x)

    def outer(z, x):
        return jnp.sum(jnp.exp(z)) + x[0]

    lin = linearize([Block(inner, outer, points, weights)], params)

    def loss(p):
        return jnp.sum(weights * jax.vmap(lambda x: outer(inner(p, x), x))(points))

    assert relative(lin.grad, jax.grad(loss)(params)) < 1e-13
    jac = dense_jacobian(lambda p: jax.vmap(lambda x: inner(p, x))(points).reshape(-1), params)
    curvature = np.repeat(np.asarray(weights), 2) * np.exp(np.tanh(points @ params["w"].T)).reshape(-1)
    assert relative(lin.jacobian.gram(), (jac.T * curvature) @ jac) < 1e-12
