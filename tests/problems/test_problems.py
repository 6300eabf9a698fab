"""Every problem against its PDE, its reference against an independent one, and the contracts of the record."""

import json
import subprocess
import sys
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner
from scipy.integrate import solve_ivp

import sciml_opt as so
from sciml_opt import problems
from sciml_opt.cli._main import cli
from sciml_opt.problems._burgers import VISCOSITY, cole_hopf
from sciml_opt.problems._heat1d import heat1d

# Most of the time here is XLA's; its optimisations change nothing that is tested.
jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
HERMITE = [jnp.asarray(a) for a in np.polynomial.hermite.hermgauss(100)]


def cole_hopf_jax(x):
    """Cole-Hopf again, in jax, for derivatives."""
    z, w = HERMITE
    y = x[0] - jnp.sqrt(4 * VISCOSITY * x[1]) * z
    p = w * jnp.exp(-jnp.cos(jnp.pi * y) / (2 * np.pi * VISCOSITY))
    return -jnp.sum(p * jnp.sin(jnp.pi * y)) / jnp.sum(p)


EXACT = {
    "burgers": cole_hopf_jax,
    "convection": lambda x: jnp.sin(x[0] - 10 * x[1]),
    "deep_ritz1d": lambda x: jnp.cos(jnp.pi * x[0]),
    "heat1d": lambda x: jnp.exp(-(jnp.pi**2) * x[1] / 4) * jnp.sin(jnp.pi * x[0]),
    "poisson2d": lambda x: jnp.sin(jnp.pi * x[0]) * jnp.sin(jnp.pi * x[1]),
    "poisson5d": lambda x: jnp.cos(jnp.pi * x).sum(),
}
NAMES = tuple(EXACT)


def terms(problem, u):
    """The inner map of every term, on (some of) its points."""
    for name, term in problem.objective.terms.items():
        entry = problem.batch()[name]
        points = entry.points if isinstance(entry, so.Weighted) else entry
        points = points[:: max(1, len(points) // 200)]
        yield name, jit(jax.vmap(lambda x, inner=term.inner: inner(u, x)))(points)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "deep_ritz1d"])
def test_residuals_of_the_solution_vanish(name):
    for term, z in terms(problems.get(name), EXACT[name]):
        # In Burgers' shock u_xx is 1e4, and rounding with it.
        np.testing.assert_allclose(z, 0, atol=1e-9 if name == "burgers" else 1e-12, err_msg=term)


def test_residuals_of_another_function_do_not():
    for name in ("heat1d", "poisson2d"):
        for term, z in terms(problems.get(name), lambda x: jnp.sum(x**2) + x[0]):
            assert jnp.max(jnp.abs(z)) > 0.1, (name, term)


def test_periodic_burgers():
    problem = problems.get("burgers", boundary="periodic")
    term, pairs = problem.objective.terms["boundary"], problem.batch()["boundary"]
    assert pairs.shape == (40, 2, 2)
    # the solution is periodic; of x^2 the values agree and the slopes do not
    for u, expected in ((cole_hopf_jax, [0.0, 0.0]), (lambda x: x[0] ** 2, [0.0, -4.0])):
        z = jit(jax.vmap(lambda pair, u=u: term.inner(u, pair)))(pairs)
        np.testing.assert_allclose(z, np.broadcast_to(expected, (40, 2)), atol=1e-12)
    assert "periodic" in problem.description


class Cosine(eqx.Module):
    """`a cos(pi x) + b x + c sin(3 x)`."""

    a: jax.Array
    b: jax.Array
    c: jax.Array

    def __call__(self, x):
        return self.a * jnp.cos(jnp.pi * x[0]) + self.b * x[0] + self.c * jnp.sin(3 * x[0])


def test_energy_and_its_stationarity():
    problem = problems.get("deep_ritz1d")
    batch = problem.batch()
    np.testing.assert_allclose(batch["energy"].weights.sum(), 2, rtol=1e-14)
    loss = jit(jax.value_and_grad(problem.objective.bind(batch)))
    minimum, gradient = loss(Cosine(*jnp.array([1.0, 0.0, 0.0])))
    np.testing.assert_allclose(minimum, -(np.pi**2) / 2 - 9 / 16, rtol=1e-12)
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(gradient)), 0, atol=1e-11)
    for a, b, c in ((1.1, 0.0, 0.0), (1.0, 0.1, 0.0), (0.9, 0.0, -0.1), (-1.0, 0.0, 0.0)):
        assert loss(Cosine(*jnp.array([a, b, c])))[0] > minimum
    # E(b x) by hand: b^2 + b^4 / 10, since f is even
    np.testing.assert_allclose(loss(Cosine(*jnp.array([0.0, 2.0, 0.0])))[0], 4 + 16 / 10, rtol=1e-12)


def test_burgers_reference_against_a_fourier_method():
    n, times = 1024, (0.2, 0.5, 0.8, 1.0)  # 1024 points leave 1e-7 in the shock
    x = -1 + 2 * np.arange(n) / n
    k = np.pi * np.arange(n // 2 + 1)

    def rhs(t, u):
        flux = np.fft.rfft(0.5 * u * u)
        return np.fft.irfft(-1j * k * flux - VISCOSITY * k**2 * np.fft.rfft(u), n)

    found = solve_ivp(rhs, (0, 1), -np.sin(np.pi * x), "DOP853", times, rtol=1e-8, atol=1e-9)
    for t, u in zip(times, found.y.T, strict=True):
        np.testing.assert_allclose(cole_hopf(np.stack([x, np.full(n, t)], 1)), u, atol=1e-6)


def test_burgers_reference_has_converged():
    near = np.concatenate([np.linspace(-1, 1, 81), np.linspace(-0.05, 0.05, 41)])
    points = np.stack([a.ravel() for a in np.meshgrid(near, np.linspace(0, 1, 11))], 1)
    u = cole_hopf(points)
    np.testing.assert_allclose(u, cole_hopf(points, nodes=200), atol=1e-13)
    # another quadrature: the trapezoidal rule, which converges geometrically here
    z = np.arange(-14, 14, 0.05)
    y = points[:, :1] - np.sqrt(4 * VISCOSITY * points[:, 1:]) * z
    p = np.exp(-(z**2) - np.cos(np.pi * y) / (2 * np.pi * VISCOSITY))
    np.testing.assert_allclose(u, -np.sum(p * np.sin(np.pi * y), 1) / p.sum(1), atol=1e-13)
    np.testing.assert_allclose(cole_hopf(points * [-1, 1]), -u, atol=1e-13)  # odd


@pytest.mark.parametrize("name", NAMES)
def test_error_of_the_solution_and_of_zero(name):
    problem = problems.get(name)
    points = problem.test_points()
    u = jit(jax.vmap(EXACT[name]))(points)
    np.testing.assert_allclose(problem.reference(np.asarray(points)), u, atol=1e-12)
    error = jit(lambda a: problem.error(lambda x: a * EXACT[name](x)))
    for a, expected in ((1.0, 0.0), (0.0, 1.0), (1.5, 0.5)):
        np.testing.assert_allclose(error(a), expected, atol=1e-12)
    with pytest.raises(ValueError, match=rf"{name}.*scalar for one point, got \(1,\)"):
        problem.error(lambda x: x[:1])


@pytest.mark.parametrize("name", NAMES)
def test_points_lie_in_the_domain_and_never_change(name):
    problem = problems.get(name)
    lower, upper = np.array(list(problem.domain.values())).T
    for entry in (*problem.training_points().values(), np.asarray(problem.test_points())):
        points = entry.points if isinstance(entry, so.Weighted) else entry
        assert points.shape[-1] == len(problem.domain)
        assert (points >= lower).all() and (points <= upper).all()
        assert len(np.unique(points, axis=0)) == len(points)
    inside = problem.training_points().get("interior")
    if inside is not None:
        assert (inside > lower).all() and (inside < upper).all()
        np.testing.assert_allclose(inside.mean(0), (lower + upper) / 2, atol=0.01)
    for a, b in zip(jax.tree.leaves(problem.batch()), jax.tree.leaves(problem.training_points()), strict=True):
        np.testing.assert_array_equal(a, b)  # `training_points()` computes them anew


def test_boundary_points():
    batch = problems.get("poisson5d").training_points()
    assert batch["interior"].shape == (2048, 5) and batch["boundary"].shape == (640, 5)
    assert (((batch["boundary"] == 0) | (batch["boundary"] == 1)).sum(1) == 1).all()
    assert ((batch["boundary"] == 0).sum(0) == 64).all() and ((batch["boundary"] == 1).sum(0) == 64).all()
    batch = problems.get("poisson2d").training_points()
    assert len(batch["interior"]) == 900 and len(batch["boundary"]) == 120
    for name, ends in (("heat1d", (0, 1)), ("burgers", (-1, 1))):
        batch = problems.get(name).training_points()
        assert (batch["initial"][:, 1] == 0).all()
        assert [int((batch["boundary"][:, 0] == end).sum()) * 2 for end in ends] == [len(batch["boundary"])] * 2
    assert (
        np.mean(np.abs(problems.get("burgers").training_points()["interior"][:, 0]) < 0.1) > 0.3
    )  # 0.1, if they were uniform


@pytest.mark.parametrize("name", NAMES)
def test_dtypes_and_record(name):
    problem, dtype = problems.get(name), jnp.float32  # float64 is everywhere else
    batch = problem.batch(dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(batch)} == {jnp.dtype(dtype)}
    assert problem.test_points(dtype).dtype == dtype
    model = problem.model(jax.random.key(0), dtype=dtype)
    if isinstance(model, so.models.MLP):
        assert [len(b) for b in model.biases] == [*problem.layers, 1]
    # in float32 parameters on float64 points, too
    for points in (batch, problem.batch()):
        loss = jax.eval_shape(problem.objective.bind(points), model)
        assert loss.shape == () and loss.dtype == dtype
    error = jax.eval_shape(problem.error, model)
    assert error.shape == () and error.dtype == dtype


def test_error_compiles_once_and_first_use_inside_jit():
    problem = heat1d()

    @jax.jit
    @eqx.debug.assert_max_traces(max_traces=1)
    def error(model):
        return problem.error(model)

    models = [problem.model(jax.random.key(seed), layers=(4,)) for seed in range(3)]
    compiled = [error(model) for model in models]
    np.testing.assert_allclose(compiled, [problem.error(model) for model in models], rtol=1e-12)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    np.testing.assert_allclose(jax.vmap(problem.error)(stacked), compiled, rtol=1e-12)
    assert problem.test_points().shape == (3600, 2)  # no tracer was kept


def test_first_use_inside_a_trace_keeps_no_tracer():
    problems._registry._build.cache_clear()

    @jax.jit
    def value(model):
        problem = problems.get("poisson2d")
        return problem.objective.bind(problem.batch())(model)

    model = problems._poisson2d.poisson2d().model(jax.random.key(0), layers=(4,))
    inside = value(model)
    problem = problems.get("poisson2d")
    np.testing.assert_allclose(problem.objective.bind(problem.batch())(model), inside, rtol=1e-12)


@pytest.mark.bad_input
def test_registry():
    assert problems.get("burgers") is problems.get("burgers")
    assert problems.get("burgers", boundary="periodic") is problems.get("burgers", boundary="periodic")
    assert problems.get("burgers", boundary="periodic") is not problems.get("burgers")
    with pytest.raises(ValueError, match="Did you mean 'poisson2d'"):
        problems.get("poison2d")
    with pytest.raises(ValueError, match="Did you mean 'periodic'"):
        problems.get("burgers", boundary="periodical")
    with pytest.raises(TypeError, match="nu"):
        problems.get("burgers", nu=0.1)


def test_import_is_light_and_x64_may_come_later():
    script = """
import sys
import sciml_opt.problems as problems
assert not {"folx", "scipy.stats", "scipy.integrate"} & sys.modules.keys()
heat = problems.get("heat1d")
assert heat.batch()["interior"].dtype == "float32"
import jax
jax.config.update("jax_enable_x64", True)
assert heat.batch()["interior"].dtype == heat.model(jax.random.key(0)).weights[0].dtype == "float64"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", problems.names())
def test_the_recipe_reaches_the_target(name):
    """The command, which ends at the target; about a minute each, ten minutes for a few."""
    done = CliRunner().invoke(cli, ["run", name, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["rel_l2"] <= problems.get(name).target, report
