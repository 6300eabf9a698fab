"""What transformations do beyond the common contract, `tests/contract`: chains, schedules, energies, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import BATCH, POISSON, RITZ, RITZ_BATCH, grid, network, partition, problem, relative

import sciml_opt as so
from sciml_opt.transforms import to_transformation

TRANSFORMATIONS = {
    "levenberg_marquardt": lambda: so.levenberg_marquardt(),
    "levenberg_marquardt dual marquardt": lambda: so.levenberg_marquardt(solve="dual", scaling="marquardt"),
}
CHAIN = lambda: optax.chain(so.scale_by_gauss_newton(), optax.scale(-1.0), optax.scale_by_zoom_linesearch(20))
LOOPS = {"lbfgs": optax.lbfgs, "levenberg_marquardt": so.levenberg_marquardt, "chain": CHAIN}
STATIC = partition(network())[1]


def body(tx, loss, params, state):
    """The loop body that every user writes."""
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
    return optax.apply_updates(params, updates), state, value


@pytest.mark.parametrize("name", LOOPS)
@jax.numpy_dtype_promotion("standard")  # optax's L-BFGS mixes integer dtypes
def test_one_loop_body_closed_over_as_argument_and_with_fresh_batches(name):
    tx = LOOPS[name]()
    params, loss = problem()

    def three(loss, params, state):
        carry = (params, state)
        return jax.lax.scan(lambda c, _: (body(tx, loss, *c)[:2], None), carry, None, length=3)[0][0]

    start = jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), tx.init(params))  # L-BFGS starts with weak types
    closed, argument = jax.jit(lambda p, s: three(loss, p, s))(params, start), jax.jit(three)(loss, params, start)
    assert relative(closed, argument) < 1e-5  # the chain's damping is tiny: rounding shows
    assert float(loss(closed)) < float(loss(params))

    def fresh(carry, key):
        points = {"interior": jax.random.uniform(key, (36, 2)), "boundary": BATCH["boundary"]}
        params, state, value = body(tx, POISSON.bind(points, static=STATIC), *carry)
        return (params, state), value

    keys = jax.random.split(jax.random.key(0), 20)
    (end, _), values = jax.jit(lambda c: jax.lax.scan(fresh, c, keys))((params, start))
    assert np.all(np.isfinite(values)) and float(loss(end)) < 0.5 * float(loss(params))


def fresh_step():
    return jax.jit(lambda tx, loss, params, state: body(tx, loss, params, state))


def test_a_new_number_does_not_retrace():
    traced = []
    step = jax.jit(lambda tx, loss, params, state: (traced.append(tx), body(tx, loss, params, state))[1])
    params, loss = problem()
    for damping in (1e-2, 1e-3, 0.5):
        for make in (so.levenberg_marquardt, so.energy_natural_gradient, so.scale_by_gauss_newton):
            tx = make(damping)
            jax.eval_shape(step, tx, loss, params, tx.init(params))  # traces, but compiles nothing
    assert len(traced) == 3


def test_the_second_step_does_not_retrace():
    step = fresh_step()
    params, loss = problem()
    tx = so.gauss_newton()
    state = tx.init(params)
    for _ in range(3):
        params, state, _ = step(tx, loss, params, state)
    assert step._cache_size() == 1


def test_a_schedule_of_the_damping():
    tx = so.scale_by_gauss_newton(damping=optax.exponential_decay(1e-1, 1, 0.1))
    params, loss = problem()
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p, grad=None, value=None, value_fn=loss))
    state, dampings = tx.init(params), []
    for _ in range(3):
        _, state = step(params, state)
        dampings.append(float(so.info(state).damping))
    np.testing.assert_allclose(np.divide(dampings[1:], dampings[:-1]), 0.1, rtol=1e-6)


def test_scale_by_gauss_newton_preconditions_any_updates():
    params, loss = problem()
    G, grad = jax.jit(lambda p: ((lin := loss.linearize(p)).jacobian.gram(), lin.grad))(params)
    other = jax.tree.map(lambda g: jnp.clip(g, -0.1, 0.1), grad)
    lam = 1e-3 * np.diag(G).max()

    @functools.partial(jax.jit, static_argnums=3)
    def apply(tx, updates, grad, same):  # inside jit it is the tracers that tell the gradient from anything else
        updates = grad if same else updates
        return tx.update(updates, tx.init(params), params, value=None, grad=grad, value_fn=loss)[0]

    for solve in ("primal", "dual"):
        tx = so.scale_by_gauss_newton(1e-3, solve=solve)
        for updates in (grad, other):
            got = apply(tx, updates, grad, updates is grad)
            vector = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)])
            assert relative(got, np.linalg.solve(G + lam * np.eye(len(G)), vector)) < 1e-8


@pytest.mark.parametrize("name", ["levenberg_marquardt", "levenberg_marquardt dual marquardt"])
def test_derivatives_through_a_step(name):
    tx = TRANSFORMATIONS[name]()
    params, _ = problem()

    def update(weight):
        terms = POISSON.terms | {"boundary": so.Term(POISSON.terms["boundary"].inner, weight=weight)}
        loss = so.Objective(**terms).bind(BATCH, static=STATIC)
        grad = jax.grad(loss)(params)
        state = tx.init(params)._replace(damping=jnp.asarray(1e3), steps=jnp.int32(1))
        return optax.tree.norm(tx.update(grad, state, params, grad=grad, value_fn=loss)[0])

    value, slope = jax.jit(jax.value_and_grad(update))(jnp.asarray(4.0))
    tangent = jax.jit(lambda w: jax.jvp(update, (w,), (jnp.ones(()),)))
    forward = tangent(jnp.asarray(4.0))[1]
    numeric = (tangent(jnp.asarray(4.001))[0] - tangent(jnp.asarray(3.999))[0]) / 0.002
    assert value > 0
    np.testing.assert_allclose([slope, forward], [numeric, numeric], rtol=1e-5)


def test_energies_run_on_every_method():
    """The primal Levenberg-Marquardt, Gauss-Newton and the natural gradient: tests/methods/test_textbook.py."""
    params, loss = problem(RITZ, RITZ_BATCH)
    step = fresh_step()
    dual = TRANSFORMATIONS["levenberg_marquardt dual marquardt"]
    for make in (dual, so.hessian_free, so.block_gauss_newton, so.kfac, so.subsampled_newton):
        tx, p = make(), params
        state = tx.init(p)
        for _ in range(8):
            p, state, value = step(tx, loss, p, state)
        assert float(loss(p)) < float(loss(params)) and int(so.info(state).clipped) == 0


@pytest.mark.bad_input
def test_errors_say_what_to_do():
    params, loss = problem()
    tx = so.levenberg_marquardt()
    state = tx.init(params)
    value, grad = jax.value_and_grad(loss)(params)
    with pytest.raises(TypeError, match=r"value_fn must be a bound objective.*got function"):
        tx.update(grad, state, params, value=value, grad=grad, value_fn=lambda p: loss(p))
    with pytest.raises(ValueError, match="`updates` must be the gradient itself"):
        tx.update(jax.tree.map(jnp.sign, grad), state, params, value=value, grad=grad, value_fn=loss)
    with pytest.raises(ValueError, match="params"):
        tx.update(grad, state, value=value, grad=grad, value_fn=loss)
    with pytest.raises(ValueError, match="found 0"):
        so.info(optax.adam(1e-3).init(params))
    for make, message in (
        (lambda: so.levenberg_marquardt(solve="cholesky"), "solve must be one of"),
        (lambda: so.levenberg_marquardt(init_damping=0.0), "init_damping must be greater than 0"),
        (lambda: so.gauss_newton(scaling="marqardt"), "Did you mean 'marquardt'"),
        (lambda: so.scale_by_gauss_newton(-1.0), "damping must be at least 0"),
        (lambda: so.levenberg_marquardt(init_damping=jnp.ones(2)), "must be one real number"),
        (lambda: so.levenberg_marquardt(init_damping=1j), "must be one real number"),
        (lambda: so.kfac(jnp.inf), "init_damping must be finite"),
        (lambda: so.target_ratio_trust_region(2.0), "target must be less than 1"),
        (lambda: so.target_ratio_trust_region(radii=1), "radii must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for make, message in (
        (lambda: tx.init({"w": jnp.ones(2), "n": jnp.arange(2)}), r"params\['n'\] has dtype int"),
        (lambda: so.hessian_free().init(jnp.ones(2, jnp.float16)), "has dtype float16"),
        (lambda: so.lbfgs().init(jnp.ones(2, complex)), "has dtype complex128, but parameters must be real"),
        (lambda: so.natural_gradient("h1"), "metric must be a Metric.*'h1'"),
        (lambda: so.variable_projection("c"), "linear must be a function"),
    ):
        with pytest.raises(TypeError, match=message):
            make()


def test_to_transformation_is_a_pytree_of_numbers():
    tx = to_transformation(so.methods.GaussNewtonMethod(1e-2))
    assert [leaf.shape for leaf in jax.tree.leaves(tx)] == [(), ()]
    assert grid(2).shape == (4, 2)
