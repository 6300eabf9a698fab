"""`explain`: the path of every leaf, with the operation that forced it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from small import BATCH, POISSON, network, partition

import sciml_opt as so
from sciml_opt.linearization import _linearize
from sciml_opt.linearization._explain import explain_block, table
from sciml_opt.objective._explain import explain

POINT = jax.ShapeDtypeStruct((2,), jnp.float64)


def shaped(**shapes):
    return {k: jax.ShapeDtypeStruct(shape, jnp.float64) for k, shape in shapes.items()}


def record(f, leaf="W", **shapes):
    found = explain_block(lambda p, x: jnp.atleast_1d(f(p, x)), shaped(**shapes), POINT)
    return {r.leaf.strip("[]'"): r for r in found}[leaf]


def test_a_wide_weight_is_factored():
    r = record(lambda p, x: jnp.sum(jnp.tanh(p["W"] @ jnp.tanh(p["U"] @ x))), U=(60, 2), W=(60, 60))
    assert (r.path, r.terms, r.explicit, r.reason) == ("factored", 1, False, "")


def test_a_thin_weight_is_multiplied_out():
    r = record(lambda p, x: jnp.sum(jnp.tanh(p["W"] @ x)), W=(60, 2))
    assert (r.path, r.terms, r.explicit) == ("factored", 1, True)
    assert "fewer entries" in r.reason


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda p, x: jnp.sum(p["W"] * x[None]), "it enters mul"),
        (lambda p, x: jnp.sum(p["W"][x[0].astype(jnp.int32)]), "it enters dynamic_slice"),
        (lambda p, x: p["W"][0, 0] * x[0], "it is a number"),
        (lambda p, x: p["W"][0], "it is returned as it is"),
        (lambda p, x: jnp.sum(jnp.linalg.solve(p["W"], x)), "it enters"),
    ],
)
def test_the_operation_that_forces_dense_rows(f, reason):
    r = record(f, W=(2, 2))
    assert r.path == "dense" and r.terms == 0 and reason in r.reason


def test_pulled_back_frozen_and_unused():
    def f(p, x):
        w = p["W"] / jnp.linalg.norm(p["W"])
        return jnp.sum(w @ x) + jnp.sum(jax.lax.stop_gradient(p["F"]) @ x)

    shapes = {"W": (3, 2), "F": (3, 2), "idle": (4,)}
    assert record(f, **shapes).path == "pulled back"
    assert "an array [3, 2] is made from it once and tapped" in record(f, **shapes).reason
    assert record(f, "F", **shapes).path == "frozen"
    assert record(f, "idle", **shapes).path == "unused"


def test_the_table_of_an_objective():
    params, static = partition(network())
    explanation = explain(POISSON, params, BATCH, static=static)
    assert str(explanation) == str(explain(POISSON.bind(BATCH, static), params))
    assert set(explanation.records) == {"interior", "boundary"}
    interior = explanation.records["interior"]
    assert [r.path for r in interior] == ["factored", "dense", "factored", "unused"]  # the Laplacian has no constant
    assert interior[0].leaf == ".layers[0].weight" and interior[0].terms == 3  # d + 1 of the first layer
    text = str(explanation)
    assert "term 'interior'" in text and ".layers[0].weight" in text and "enters add" in text


def test_where_no_rows_are_kept(monkeypatch):
    params = {"W": jnp.ones((64, 2)), "v": jnp.ones(64)}
    long = so.Objective(a=so.Term(lambda p, x: p["W"] @ x), b=so.Term(lambda p, x: jnp.sum(jnp.tanh(p["v"] + x[0]))))
    batch = {"a": jnp.ones((4, 2)), "b": jnp.ones((4, 2))}
    records = explain(long, params, batch).records
    assert [(r.path, r.reason) for r in records["a"]] == [("matrix-free", "64 outputs a point")] * 2
    assert [r.path for r in records["b"]] == ["unused", "dense"]
    monkeypatch.setattr(_linearize, "DENSE", 4 * 64 * 8 - 1)
    records = explain(long, params, batch).records
    assert {(r.path, r.reason) for r in records["b"]} == {("matrix-free", "dense rows would fill 0.0 GiB")}
    rows = jax.eval_shape(lambda p: long.bind(batch).linearize(p).jacobian, params)
    assert str(rows).count("MatrixFreeRows(") == 2


def test_a_frozen_leaf_of_a_bound_objective():
    params = {"W": jnp.ones((3, 2)), "v": jnp.ones(3)}
    objective = so.Objective(a=so.Term(lambda p, x: p["v"] @ jnp.tanh(p["W"] @ x)))
    loss = objective.bind({"a": jnp.ones((4, 2))}, where={"W": False, "v": True})
    assert [r.path for r in explain(loss, params).records["a"]] == ["frozen", "factored"]


def test_an_objective_without_points_is_an_error():
    with pytest.raises(ValueError, match="needs the points"):
        explain(POISSON, {"w": jnp.ones(2)})


def test_columns_are_aligned():
    lines = table(explain_block(lambda p, x: p["W"] @ x, shaped(W=(60, 2), bias=(3,)), POINT)).splitlines()
    assert len(lines) == 3 and len({line.index("[", 3) for line in lines[1:]}) == 1


def test_an_equinox_model_of_shapes():
    model = eqx.filter_eval_shape(lambda: network())
    params, static = eqx.partition(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    records = explain_block(lambda p, x: so.laplacian(eqx.combine(p, static))(x)[None], params, POINT)
    assert [r.path for r in records] == ["factored", "dense", "factored", "unused"]
