"""The algebra of the structured Jacobian, as properties of random matrices and random parameter shapes."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from small import flat, relative

import sciml_opt as so
from sciml_opt._tree import ravel, unravel

SHAPES = st.lists(st.lists(st.integers(1, 3), max_size=2).map(tuple), min_size=1, max_size=3)


def explicit(shapes, count, seed):
    tree = {str(i): jnp.zeros(shape) for i, shape in enumerate(shapes)}
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(sum(leaf.size for leaf in tree.values()), count))
    return so.StructuredJacobian(jnp.asarray(columns), tree), rng


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_products_adjoint_gram_and_kernel(shapes, count, seed):
    J, rng = explicit(shapes, count, seed)
    matrix = np.asarray(J.as_matrix())
    count, size = matrix.shape
    v = unravel(jnp.asarray(rng.normal(size=size)), J.in_structure())
    w = jnp.asarray(rng.normal(size=count))
    scale = 1e-13 * (1 + np.abs(matrix).sum())
    np.testing.assert_allclose(J.mv(v), matrix @ flat(v), atol=10 * scale)
    np.testing.assert_allclose(flat(J.T.mv(w)), matrix.T @ w, atol=10 * scale)
    np.testing.assert_allclose(J.mv(v) @ w, flat(v) @ flat(J.rmv(w)), atol=100 * scale)  # adjointness
    np.testing.assert_allclose(J.gram(), matrix.T @ matrix, atol=10 * scale)
    np.testing.assert_allclose(J.kernel(), matrix @ matrix.T, atol=10 * scale)
    for product in (J.gram(), J.kernel()):
        np.testing.assert_allclose(product, product.T, atol=1e-13)
        assert np.linalg.eigvalsh(product).min() > -1e-10
    np.testing.assert_allclose(flat(J.column_norms()), np.linalg.norm(matrix, axis=0), rtol=1e-12)
    scales = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(1, 2)), J.in_structure())
    spread = flat(jax.tree.map(lambda s, leaf: np.full(leaf.shape, s), scales, J.in_structure()))
    np.testing.assert_allclose(J.kernel(scales), (matrix * spread) @ matrix.T, atol=10 * scale)
    start = 0
    for block, leaf in zip(jax.tree.leaves(J.blocks()), jax.tree.leaves(J.in_structure()), strict=True):
        part = matrix[:, start : start + int(np.prod(leaf.shape))]
        np.testing.assert_allclose(block, part.T @ part, atol=10 * scale)
        start += part.shape[1]


def test_it_is_a_lineax_operator():
    rng = np.random.default_rng(0)
    tree = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    J = so.StructuredJacobian(jnp.asarray(rng.normal(size=(6, 9))), tree)
    b = jnp.asarray(rng.normal(size=9))
    want = np.linalg.lstsq(J.as_matrix(), b)[0]
    for solver in (lx.QR(), lx.SVD(), lx.LSMR(1e-12, 1e-12), lx.Normal(lx.CG(1e-12, 1e-12))):
        got = jax.jit(lambda J, b, solver=solver: lx.linear_solve(J, b, solver, throw=False).value)(J, b)
        np.testing.assert_allclose(flat(got), want, rtol=1e-8)
    assert lx.linearise(J) is J and lx.materialise(J) is J and lx.conj(J) is J


def test_ravel_and_unravel_keep_mixed_dtypes():
    tree = {"a": jnp.ones((2, 2), jnp.float32), "b": jnp.ones(3, jnp.float64)}
    vector = ravel(tree)
    assert vector.dtype == jnp.float64
    back = unravel(vector, tree)
    assert back["a"].dtype == jnp.float32 and relative(back, tree) == 0
