"""The contract of both faces: every optax transformation and every optimistix solver, one table each."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix as optx
import pytest
from jax.flatten_util import ravel_pytree
from small import edges, exact, flat, grid, network, partition, relative, value

import sciml_opt as so

TERMS = ("boundary", "interior")
TRANSFORMATIONS = {
    "levenberg_marquardt": so.levenberg_marquardt,
    "levenberg_marquardt dual": functools.partial(so.levenberg_marquardt, solve="dual", scaling="marquardt"),
    "levenberg_marquardt minpack": functools.partial(
        so.levenberg_marquardt, damping_rule="delayed_gratification", scaling="minpack"
    ),
    "gauss_newton": so.gauss_newton,
    "gauss_newton jacobi": functools.partial(so.gauss_newton, scaling="jacobi", line_search="strong_wolfe"),
    "energy_natural_gradient": so.energy_natural_gradient,
    "natural_gradient": functools.partial(so.natural_gradient, so.sobolev(1, terms=("interior",))),
    "engd_w": functools.partial(so.engd_w, 1e-3),
    "spring": functools.partial(so.spring, 0.1, damping=1e-2),
    "anagram": functools.partial(so.anagram, adaptive=True),
    "target_ratio_trust_region": so.target_ratio_trust_region,
    "equalised": lambda: so.equalised(so.gauss_newton(), TERMS),
    "kfac": so.kfac,
    "kfac_star": so.kfac_star,
    "block_gauss_newton": so.block_gauss_newton,
    "hessian_free": so.hessian_free,
    "subsampled_newton": so.subsampled_newton,
    "variable_projection": so.variable_projection,
    "newton_krylov": so.newton_krylov,
    "newton_krylov minres": functools.partial(so.newton_krylov, krylov="minres", krylov_steps=5),
    "newton_trust_region": so.newton_trust_region,
    "adaptive_cubic": so.adaptive_cubic,
    "nys_newton_cg": so.nys_newton_cg,
    "lbfgs": functools.partial(so.lbfgs, 5),
    "ss_broyden": so.ss_broyden,
    "trust_region_sr1": functools.partial(so.trust_region_sr1, 5),
    "stochastic_lbfgs": functools.partial(so.stochastic_lbfgs, 0.1, 5),
    "regularised_gradient": functools.partial(so.regularised_gradient, 30.0),
}
SOLVERS = {
    "LevenbergMarquardt": so.LevenbergMarquardt,
    "GaussNewton": so.GaussNewton,
    "TargetRatioTrustRegion": so.TargetRatioTrustRegion,
    "HessianFree": so.HessianFree,
    "VariableProjection": functools.partial(so.VariableProjection, linear=lambda y: y["c"]),
    "NewtonKrylov": so.NewtonKrylov,
    "NewtonTrustRegion": so.NewtonTrustRegion,
    "AdaptiveCubic": so.AdaptiveCubic,
    "NysNewtonCG": so.NysNewtonCG,
    "LBFGS": so.LBFGS,
    "BFGS": so.BFGS,
    "SelfScaled": so.SelfScaled,
    "TrustRegionSR1": so.TrustRegionSR1,
}
STATIC = partition(network())[1]
ADVECTION = jnp.array([1.0, 0.5])
STEPS = 10


def residual(u, x):
    """Advection: one derivative, so that programs compile fast."""
    return jax.jvp(u, (x,), (ADVECTION.astype(x.dtype),))[1] - exact(x)


def bind(weight=1.0, points=None):
    objective = so.Objective(interior=so.Term(residual, weight=weight), boundary=so.Term(value, weight=4 * weight))
    return objective.bind({"interior": grid(6) if points is None else points, "boundary": edges(4)}, static=STATIC)


def start(seed=0, dtype=None):
    return partition(network(seed, dtype=dtype))[0]


@jax.jit
def step(tx, loss, params, state):
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss, anything=3)
    return optax.apply_updates(params, updates), state, value


def path(tx, loss, params, steps=STEPS):
    """Parameters, states and values from the start on."""
    states, points, values = [tx.init(params)], [params], []
    for _ in range(steps):
        params, state, value = step(tx, loss, params, states[-1])
        points, states, values = [*points, params], [*states, state], [*values, float(value)]
    return points, states, values


def without_info(state):
    return eqx.tree_at(lambda s: so.info(s), state, None)


def shape(state):
    return jax.tree.structure(state), [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def paths():
    """`name -> path` in float64, made once."""
    return functools.cache(lambda name: path(TRANSFORMATIONS[name](), bind(), start()))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_an_accepted_step_decreases_the_loss_and_the_state_keeps_its_shape(name, paths):
    points, states, values = paths(name)
    assert len({str(shape(state)) for state in states}) == 1
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(states[0]))
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(states[0])}
    assert kinds <= {"float64", "int32", "bool", "key<fry>"}
    loss = jax.jit(bind())
    for before, after, state, old in zip(points, points[1:], states[1:], values, strict=False):
        info = so.info(state)
        if name != "equalised":  # whose inner method sees the weighted loss
            np.testing.assert_allclose(info.loss, old, rtol=1e-10)
        if not info.accepted:
            assert relative(after, before) == 0
        elif name not in WITHOUT_SEARCH and name != "equalised":
            assert float(loss(after)) < old
            np.testing.assert_allclose(info.trial_loss, loss(after), rtol=1e-8)
        for field in (info.grad_norm, info.step_norm, info.linear_residual, info.gain_ratio):
            assert np.isfinite(field)
        assert info.gain_ratio != 0 or not info.accepted
        assert int(info.evaluations) + int(info.linearizations) + int(info.gradients) > 0
    assert float(loss(points[-1])) < (1.0 if name in SLOW else 0.7) * values[0]


STRUCTURAL = ("fraction", "metric", "overlap")  # arguments that no array may take the place of
SLOW = {"newton_krylov minres"}  # while much of the spectrum is negative
WITHOUT_SEARCH = {"spring", "stochastic_lbfgs"}  # a fixed learning rate promises no decrease


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_float32_under_x64(name):
    points, states, values = path(TRANSFORMATIONS[name](), bind(), start(dtype=jnp.float32), 4)
    assert len({str(shape(state)) for state in states}) == 1
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves((points[-1], states[-1]))}
    assert kinds <= {"float32", "int32", "bool", "key<fry>"}
    assert np.all(np.isfinite(values)) and values[-1] < values[0]


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_step_traces_with_x64_off(name):
    with jax.enable_x64(False):
        tx, params = TRANSFORMATIONS[name](), start()
        state = tx.init(params)
        _, after, value = jax.eval_shape(step, tx, bind(), params, state)
    assert shape(after) == shape(state)
    assert value.dtype == "float32" and "64" not in str({leaf.dtype for leaf in jax.tree.leaves(after)})


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_nan_in_the_data_moves_nothing(name, paths):
    tx, params = TRANSFORMATIONS[name](), start()
    first = tx.init(params)
    after, state, value = step(tx, bind(points=np.full((36, 2), np.nan)), params, first)
    assert np.isnan(value) and relative(after, params) == 0
    assert not so.info(state).accepted
    for old, new in zip(jax.tree.leaves(without_info(first)), jax.tree.leaves(without_info(state)), strict=True):
        np.testing.assert_array_equal(old, new)  # not even the damping
    for _ in range(6):  # and the state is still usable
        after, state, value = step(tx, bind(), after, state)
    assert float(value) < paths(name)[2][0]


@pytest.mark.parametrize("name", ["target_ratio_trust_region", "anagram", "levenberg_marquardt dual"])
def test_a_nan_in_the_jacobian_alone_moves_nothing(name):
    objective = so.Objective(interior=so.Term(lambda u, x: exact(x) + jnp.sqrt(0 * u(x))))
    tx, params = TRANSFORMATIONS[name](), start()
    first = tx.init(params)
    after, state, value = step(tx, objective.bind({"interior": grid(6)}, static=STATIC), params, first)
    assert np.isfinite(value) and relative(after, params) == 0 and not so.info(state).accepted
    for old, new in zip(jax.tree.leaves(without_info(first)), jax.tree.leaves(without_info(state)), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("name", [name for name in TRANSFORMATIONS if name != "natural_gradient"])
def test_scaling_the_loss_does_not_change_the_path(name, paths):
    want = paths(name)[0][4]
    for factor in (2.0**-60, 2.0**60):
        got = path(TRANSFORMATIONS[name](), bind(weight=factor), start(), 4)[0][4]
        assert relative(got, want) < 1e-5


@jax.numpy_dtype_promotion("standard")  # MultiSteps mixes dtypes
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_vmap_scan_chain_inject_hyperparams_and_multisteps(name, paths):
    """All of them around two steps, which they leave as they are: the mean of equal gradients is the gradient."""
    factory = TRANSFORMATIONS[name]
    signature = inspect.signature(factory).parameters.items()
    integers = [key for key, parameter in signature if isinstance(parameter.default, int) or key in STRUCTURAL]
    injected = factory() if name == "equalised" else optax.inject_hyperparams(factory, static_args=integers)()
    tx = optax.MultiSteps(optax.chain(injected, optax.identity()), every_k_schedule=2)
    loss = bind()

    def two(params):
        def body(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params, value_fn=loss, anything=3)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (params, tx.init(params)), None, length=4)[0]

    starts = [start(seed) for seed in (0, 1)]
    lanes, state = jax.jit(jax.vmap(two))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts))
    assert so.info(state).loss.shape == (2,)
    want = paths(name)[0][2]
    assert relative(jax.tree.map(lambda leaf: leaf[0], lanes), want) < 1e-6


def test_an_injected_number_takes_effect_in_the_next_step_and_does_not_retrace():
    loss, params, traces = bind(), start(), []
    injected = optax.inject_hyperparams(so.engd_w)(damping=1e-3)

    @jax.jit
    def update(state):
        traces.append(None)
        return injected.update(jax.grad(loss)(params), state, params, value_fn=loss)[0]

    state = injected.init(params)
    for damping in (1e-3, 10.0):
        state.hyperparams["damping"] = jnp.asarray(damping)
        tx = so.engd_w(damping)
        want = jax.jit(tx.update)(jax.grad(loss)(params), tx.init(params), params, value_fn=loss)[0]
        assert relative(update(state), want) < 1e-10
    assert len(traces) == 1


def rosenbrock(y, args):
    return jnp.concatenate([10 * (y["c"] - y["a"] ** 2), args - y["a"]])


def solve(name, args, y0=(-1.2, 1.0), tol=1e-8, dtype=None):
    """Rosenbrock's function, as a residual or as its half square; the solution is `a = args, c = args^2`."""
    solver = SOLVERS[name](tol, tol)
    y0, args = jnp.asarray(y0, dtype), jnp.asarray(args, dtype)
    y0 = {"a": y0[:1], "c": y0[1:]}
    if isinstance(solver, optx.AbstractLeastSquaresSolver):
        return optx.least_squares(rosenbrock, solver, y0, args, throw=False, max_steps=400)
    return optx.minimise(
        lambda y, a: 0.5 * jnp.sum(rosenbrock(y, a) ** 2), solver, y0, args, throw=False, max_steps=400
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_solution_result_code_and_array_only_state(name):
    solution = jax.jit(lambda args: solve(name, args))(1.0)
    np.testing.assert_allclose(flat(solution.value), [1, 1], rtol=1e-6)
    assert solution.result == optx.RESULTS.successful
    assert solution.stats["info"].loss.shape == ()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(solution.state))


@pytest.mark.parametrize("name", SOLVERS)
def test_implicit_derivative_and_vmap(name):
    args = jnp.array([0.5, 1.5])
    slopes = jax.jit(jax.vmap(jax.jacfwd(lambda a: ravel_pytree(solve(name, a).value)[0])))(args)
    np.testing.assert_allclose(slopes, np.stack([np.ones(2), 2 * args], 1), rtol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_float32_and_a_non_finite_start(name):
    run = jax.jit(lambda y0: solve(name, 1.0, y0, tol=1e-5, dtype=jnp.float32))
    solution = run(jnp.array([-1.2, 1.0], jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(solution.value)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(flat(solution.value), [1, 1], rtol=2e-3)
    start = jnp.array([1e30, 1.0], jnp.float32)  # its square overflows
    solution = run(start)
    assert solution.result == optx.RESULTS.nonfinite
    np.testing.assert_array_equal(flat(solution.value), start)
