"""The tap under the transformations, dtypes and effects that surround it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import flat, network, relative

import sciml_opt as so
from sciml_opt.linearization import Block, half_squared_norm, linearize
from sciml_opt.linearization._taps import Tapped

N = 4
POINTS = jnp.linspace(-1.0, 1.0, 2 * N).reshape(N, 2)


def params_of(dtype=jnp.float64, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"W": (3, 2), "b": (3,), "V": (3,)}
    return {k: jax.random.normal(key, shape, dtype) for (k, shape), key in zip(shapes.items(), keys, strict=True)}


def mlp(p, x):
    return p["V"] @ jnp.tanh(p["W"] @ x + p["b"])


def block(f, points=POINTS, chunk=None):
    def inner(p, x):
        return jnp.atleast_1d(f(p, x))

    return Block(inner, half_squared_norm, points, jnp.ones(points.shape[0], points.dtype), chunk)


def rows(f, params, points=POINTS, chunk=None):
    return jax.jit(lambda p: linearize([block(f, points, chunk)], p).jacobian.as_matrix())(params)


def reference(f, params, points=POINTS):
    one = jax.jacrev(lambda p, x: jnp.atleast_1d(f(p, x)))
    jacobian = jax.jit(jax.vmap(one, (None, 0)))(params, points)
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(jacobian)]
    return np.concatenate([leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for leaf in leaves], axis=1)


def test_closure_over_a_tracer():
    """A residual may close over what an outer `jit`, `vmap` or `grad` traces."""

    def at(shift, params):
        return rows(lambda p, x: mlp(p, x + shift), params)

    params, shifts = params_of(), jnp.array([[0.1, 0.2], [0.3, -0.4]])
    want = np.stack([reference(lambda p, x, s=s: mlp(p, x + s), params) for s in shifts])
    np.testing.assert_allclose(jax.jit(at)(shifts[0], params), want[0], atol=1e-13)
    np.testing.assert_allclose(jax.jit(jax.vmap(at, (0, None)))(shifts, params), want, atol=1e-13)

    def total(shift):
        return jnp.sum(at(shift, params) ** 2)

    def plain(shift):
        jacobian = jax.vmap(jax.grad(lambda p, x: mlp(p, x + shift)), (None, 0))(params, POINTS)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(jacobian))

    np.testing.assert_allclose(jax.jit(jax.grad(total))(shifts[0]), jax.grad(plain)(shifts[0]), atol=1e-12)


def test_vmap_over_seeds_and_scan():
    many = jax.vmap(lambda seed: jax.tree.map(lambda a: a * seed, params_of()))(jnp.arange(1.0, 4.0))
    got = jax.jit(jax.vmap(lambda p: rows(mlp, p)))(many)
    one = [jax.tree.map(lambda a, i=i: a[i], many) for i in range(3)]
    np.testing.assert_allclose(got, np.stack([reference(mlp, p) for p in one]), atol=1e-13)
    scanned = jax.jit(lambda many: jax.lax.scan(lambda _, p: (None, rows(mlp, p)), None, many)[1])(many)
    np.testing.assert_allclose(scanned, got, atol=1e-14)


def test_chunks_change_nothing():
    params = params_of()
    for chunk in (1, 3, 4, 9):
        np.testing.assert_allclose(rows(mlp, params, chunk=chunk), reference(mlp, params), atol=1e-13)


def test_float32_with_x64_enabled():
    params, points = params_of(jnp.float32), POINTS.astype(jnp.float32)
    got = rows(mlp, params, points)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, reference(mlp, params, points), rtol=0, atol=1e-5)


def test_leaves_of_two_dtypes():
    params = params_of() | {"W": params_of()["W"].astype(jnp.float32)}

    def cast(p, x):
        return mlp(p | {"W": p["W"].astype(jnp.float64)}, x)

    tapped = Tapped(block(cast).inner, params, jax.ShapeDtypeStruct((2,), jnp.float64))
    assert {use.leaves for use in tapped.uses if not use.sites} == {frozenset({2})}  # the bias alone
    got = rows(cast, params)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, reference(cast, params), rtol=0, atol=1e-6)


def test_bfloat16_leaves():
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params_of())

    loss = so.Objective(a=so.Term(mlp)).bind({"a": POINTS})
    lin = jax.jit(lambda p: loss.linearize(p))(params)
    want = jax.grad(loss)(params)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(lin.grad))
    assert relative(*(jax.tree.map(lambda a: np.asarray(a, float), tree) for tree in (lin.grad, want))) < 0.05


@pytest.mark.parametrize("trained", [("V",), ("W", "b")])
def test_frozen_leaves_have_no_columns(trained):
    params = params_of()
    where = {k: k in trained for k in params}
    loss = so.Objective(a=so.Term(mlp)).bind({"a": POINTS}, where=where)
    lin = jax.jit(lambda p: loss.linearize(p))(params)
    gradient = jax.grad(loss)(params)
    assert relative(lin.grad, gradient) < 1e-13
    norms = lin.jacobian.column_norms()
    assert all(bool(jnp.any(norms[k] > 0)) == (k in trained) for k in params)


def test_effects_happen_once_a_point(capfd):
    def f(p, x):
        jax.debug.print("seen {}", x[0])
        return mlp(p, x)

    got = jax.jit(lambda p: rows(f, p))(params_of())
    jax.effects_barrier()
    assert capfd.readouterr().out.count("seen") == N
    np.testing.assert_allclose(got, reference(mlp, params_of()), atol=1e-13)


def test_an_effect_in_a_branch(capfd):
    def f(p, x):
        def loud(h):
            jax.debug.print("negative {}", h[0])
            return p["W"] @ h

        return p["V"] @ jax.lax.cond(x[0] < 0, loud, lambda h: p["W"] @ jnp.sin(h), x)

    got = jax.jit(lambda p: rows(f, p))(params_of())
    np.testing.assert_allclose(got, reference(f, params_of()), atol=1e-13)


def test_not_a_number_stays_where_plain_jax_has_it():
    def f(p, x):
        return p["V"] @ jnp.sqrt(p["W"] @ x)  # of negative numbers at some points

    params = params_of()
    want = reference(f, params)
    assert np.isnan(want).any() and not np.isnan(want).all()
    np.testing.assert_allclose(rows(f, params), want, atol=1e-13)


def test_a_loop_without_a_derivative_is_an_error_as_in_jax():
    def f(p, x):
        return jax.lax.while_loop(lambda h: jnp.sum(h**2) > 1, lambda h: 0.5 * jnp.tanh(p["W"][:2] @ h), x)[0]

    params = params_of()
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        jax.grad(lambda p: f(p, POINTS[0]))(params)
    with pytest.raises(ValueError, match="Reverse-mode differentiation does not work"):
        rows(f, params)


def test_a_loop_in_a_branch_runs_only_where_it_is_selected():
    """A branch that would not end at other points is not taken apart; `jax.vmap` evaluates it for no point at all."""

    def f(p, x):
        def count(h):
            return jax.lax.while_loop(lambda y: y[0] > 0.1, lambda y: 0.5 * y, h)

        return mlp(p, jax.lax.cond(x[0] > -9, count, lambda h: h, jax.lax.stop_gradient(x)))

    np.testing.assert_allclose(rows(f, params_of()), reference(f, params_of()), atol=1e-13)


def normalised(p, x):
    w = p["b"][:, None] * p["W"] / jnp.linalg.norm(p["W"], axis=1, keepdims=True)
    return p["V"] @ jnp.tanh(w @ x) + jnp.sum(w.T @ jnp.sin(w @ x))


def overlapping(p, x):
    return p["V"] @ jnp.tanh(p["W"] @ x) + jnp.sum(jnp.tanh(p["W"][:2] @ x)) + jnp.sum(p["W"][1:] @ x) ** 2


def decayed(p, x):
    return jnp.stack([p["V"] @ jnp.tanh(p["W"] @ x), jnp.sum(p["W"] ** 2) + p["b"][0]])


@pytest.mark.parametrize("f", [normalised, overlapping, decayed])
def test_products_of_rows_that_share_entries(f):
    params = params_of()
    v, w = jax.tree.map(jnp.cos, params), jnp.arange(1.0, 1.0 + len(reference(f, params)))

    @jax.jit
    def products(params):
        J = linearize([block(f)], params).jacobian
        return J.mv(v), J.rmv(w), J.gram(), J.kernel(), J.column_norms(), J.row_norms()

    matrix = reference(f, params)
    forward, backward, gram, kernel, columns, lengths = products(params)
    np.testing.assert_allclose(forward, matrix @ flat(v), atol=1e-12)
    np.testing.assert_allclose(flat(backward), matrix.T @ w, atol=1e-12)
    np.testing.assert_allclose(gram, matrix.T @ matrix, atol=1e-12)
    np.testing.assert_allclose(kernel, matrix @ matrix.T, atol=1e-12)
    np.testing.assert_allclose(flat(columns), np.linalg.norm(matrix, axis=0), atol=1e-12)
    np.testing.assert_allclose(lengths, np.linalg.norm(matrix, axis=1), atol=1e-12)


@jax.custom_vjp
def doubled(w):
    return w * w


doubled.defvjp(lambda w: (w * w, w), lambda w, g: (3.0 * g * w,))


def test_a_custom_vjp_of_the_weight_alone():
    def f(p, x):
        return p["V"] @ jnp.tanh(doubled(p["W"]) @ x)

    params = params_of()
    matrix = reference(f, params)
    np.testing.assert_allclose(rows(f, params), matrix, atol=1e-12)
    product = jax.jit(lambda p: linearize([block(f)], p).jacobian.mv(p))(params)
    np.testing.assert_allclose(product, matrix @ flat(params), atol=1e-12)


def test_merged_taps():
    """Uses of one weight that share an input or a cotangent make one outer product."""

    def f(p, x):
        y = p["W"] @ x
        return p["V"] @ (jnp.tanh(y) + p["W"] @ jnp.cos(x)) + p["V"] @ (p["W"] @ jnp.sin(x))

    tapped = Tapped(block(f).inner, params_of(), jax.ShapeDtypeStruct((2,), jnp.float64))
    terms = {m.shape: m.terms for m in tapped.matrices}
    assert terms[(3, 2)] == 2  # of tanh, and of the two that share the cotangent V
    np.testing.assert_allclose(rows(f, params_of()), reference(f, params_of()), atol=1e-13)


def test_dead_code_is_not_tapped():
    """A second derivative evaluates the network and drops it: d + 2 terms and no more."""

    def u(p, x):
        return p["V"] @ jnp.tanh(p["U"] @ jnp.tanh(p["W"] @ x))

    def f(p, x):
        return jax.jvp(lambda y: jax.jvp(lambda z: u(p, z), (y,), (jnp.eye(2)[0],))[1], (x,), (jnp.eye(2)[0],))[1]

    params = params_of() | {"U": jnp.eye(3)}
    tapped = Tapped(block(f).inner, params, jax.ShapeDtypeStruct((2,), jnp.float64))
    assert {m.shape: m.terms for m in tapped.matrices} == {(3, 2): 2, (3, 3): 3, (1, 3): 1}


def test_a_model_of_equinox():
    model = network()
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def f(p, x):
        return so.laplacian(eqx.combine(p, static))(x)

    np.testing.assert_allclose(rows(f, params), reference(f, params), atol=1e-12)
