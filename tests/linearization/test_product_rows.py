"""The two-sided Jacobian of product batches against reverse mode of the stacked residual and an ordinary term."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from products import TERMS, problem
from small import dense_jacobian, flat, relative

from sciml_opt._tree import unravel

CLOSE = 1e-10
SQUARES = [name for name in TERMS if "outer" not in name]
# Left points, right points, width, outputs: the kernel from the outputs of both sides, or of one.
SIZES = {"many pairs": (5, 7, 12, 3), "few queries": (12, 3, 12, 5)}


@functools.cache
def linearized(name, size):
    """The problem, its linearization, and what it is compared with."""
    left, right, width, p = SIZES[size]
    given = problem(name, left, right, width=width, p=p)

    @jax.jit
    def evaluate(params):
        want = {"loss": jax.value_and_grad(given.loss)(params), "points": given.points(params)}
        if given.loss.least_squares:
            residuals = given.loss.residual(params), given.points.residual(params)
            return given.loss.linearize(params), want | {"residuals": residuals}
        return given.loss.linearize(params), want | {"rows": given.points.linearize(params).jacobian.as_matrix()}

    lin, want = evaluate(given.params)
    rows = dense_jacobian(given.loss.residual, given.params) if given.loss.least_squares else want["rows"]
    return given, lin, want, np.asarray(rows)


def close(a, b, tolerance=CLOSE):
    assert relative(a, b) <= tolerance


@pytest.mark.parametrize("name", TERMS)
def test_value_gradient_and_residual(name):
    given, lin, want, J = linearized(name, "many pairs")
    value, grad = want["loss"]
    close(lin.value, value, 1e-14)
    close(lin.grad, grad, 1e-12)
    close(lin.value, want["points"], 1e-13)
    if given.loss.least_squares:
        for residual in want["residuals"]:
            close(lin.residual, residual, 1e-12)
        close(flat(lin.grad), J.T @ np.asarray(lin.residual))


CASES = [*((name, "many pairs") for name in TERMS), ("DeepONet", "few queries")]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_operations_agree_with_the_dense_jacobian(name, size):
    given, lin, _, J = linearized(name, size)
    if "outer" in name:  # the factors C_i of the outer Hessian are unique up to a rotation of eigenvectors
        rows = np.asarray(jax.jit(lambda jacobian: jacobian.as_matrix())(lin.jacobian))
        close(rows.T @ rows, J.T @ J)
        J = rows
    count, parameters = J.shape
    rng = np.random.default_rng(3)
    v, w, weights = rng.normal(size=parameters), rng.normal(size=count), rng.normal(size=count)
    scale = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(1, 2)), given.params)
    spread = flat(jax.tree.map(lambda s, leaf: np.full(leaf.shape, s), scale, given.params))
    indices = jnp.asarray(rng.integers(0, count, 6))

    some = J[np.asarray(indices)]
    want = {
        "mv": J @ v,
        "rmv": J.T @ w,
        "take": some,
        "row norms": np.linalg.norm(J, axis=1),
        "weighted gram": J.T @ (weights[:, None] * J),
        "kernel in tiles": J * spread @ J.T,
    }
    if (name, size) == ("DeepONet", "many pairs"):
        want |= {
            "as_matrix": J,
            "gram": J.T @ J,
            "gram in chunks": J.T @ (weights[:, None] * J),
            "kernel": J @ J.T,
            "scaled kernel": J * spread @ J.T,
            "column norms": np.linalg.norm(J, axis=0),
            "column norms in chunks": np.linalg.norm(J, axis=0),
            "kernel of some": some @ some.T,
        }

    @jax.jit
    def operations(jacobian, v, w, weights, scale, indices):
        every = {
            "mv": lambda: jacobian.mv(unravel(v, given.params)),
            "rmv": lambda: jacobian.rmv(w),
            "as_matrix": jacobian.as_matrix,
            "gram": jacobian.gram,
            "weighted gram": lambda: jacobian.gram(weights),
            "gram in chunks": lambda: jacobian.gram(weights, memory=4 * 8 * parameters),
            "kernel": jacobian.kernel,
            "scaled kernel": lambda: jacobian.kernel(scale),
            "kernel in tiles": lambda: jacobian.kernel(scale, memory=4 * 8 * 50),
            "row norms": jacobian.row_norms,
            "column norms": jacobian.column_norms,
            "column norms in chunks": lambda: jacobian.column_norms(memory=3 * 8 * parameters),
            "take": lambda: jacobian.take(indices).as_matrix(),
            "kernel of some": lambda: jacobian.take(indices).kernel(),
        }
        return {key: every[key]() for key in want}

    got = operations(lin.jacobian, *map(jnp.asarray, (v, w, weights)), scale, indices)
    errors = {key: relative(got[key], want[key]) for key in want}
    assert max(errors.values()) <= CLOSE, errors
    close(got["kernel in tiles"], got["kernel in tiles"].T, 1e-14)


def test_the_plans_differ():
    plans = {size: linearized("DeepONet", size)[1].jacobian.rows[0]._kernel_plan for size in SIZES}
    assert (plans["many pairs"].left, plans["many pairs"].right) == (True, True), plans
    assert (plans["few queries"].left, plans["few queries"].right) == (False, True), plans
