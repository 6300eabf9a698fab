"""Elliptic, high-dimensional and variational problems: equations, references, points, conditions that hold exactly."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_array, diags_array, eye_array, kron
from scipy.sparse.linalg import spsolve

import sciml_opt as so
from sciml_opt.problems import (
    _darcy2d,
    _deep_ritz_l_shape,
    _helmholtz,
    _log_fokker_planck,
    _poisson2d_c,
    _poisson10d,
    _poisson100d,
    _poisson_nd,
)
from sciml_opt.problems.references import load
from sciml_opt.problems.references._darcy2d import _permeability, darcy2d
from sciml_opt.problems.references._poisson2d_c import misfit, poisson2d_c

BUILDERS = {
    "darcy2d": _darcy2d.darcy2d,
    "deep_ritz_l_shape": _deep_ritz_l_shape.deep_ritz_l_shape,
    "helmholtz": _helmholtz.helmholtz,
    "helmholtz66": _helmholtz.helmholtz66,
    "log_fokker_planck": _log_fokker_planck.log_fokker_planck,
    "poisson10d": _poisson10d.poisson10d,
    "poisson100d": _poisson100d.poisson100d,
    "poisson2d_c": _poisson2d_c.poisson2d_c,
    "poisson_nd": _poisson_nd.poisson_nd,
}
get = cache(lambda name: BUILDERS[name]())


def normal_density(x):
    variance = 2 - jnp.exp(-x[-1])
    return jax.scipy.stats.norm.logpdf(x[:-1], 0.0, jnp.sqrt(variance)).sum()


def corner(x):
    """`r^(2/3) cos(2 phi / 3)`, with the angle to the bisector (-1, 1) of the domain."""
    phi = jnp.arctan2(-x[0] - x[1], x[1] - x[0])
    return jnp.sum(x**2) ** (1 / 3) * jnp.cos(2 / 3 * phi)


EXACT = {
    "deep_ritz_l_shape": corner,
    "helmholtz": lambda x: jnp.sin(jnp.pi * x[0]) * jnp.sin(4 * jnp.pi * x[1]),
    "helmholtz66": lambda x: jnp.sin(6 * jnp.pi * x[0]) * jnp.sin(6 * jnp.pi * x[1]),
    "log_fokker_planck": normal_density,
    "poisson10d": lambda x: (x.reshape(5, 2).prod(1)).sum() / 1.34,
    "poisson100d": lambda x: x @ x / 33.47,
    "poisson_nd": lambda x: jnp.sin(jnp.pi * x / 2).sum(),
}
LEAST_SQUARES = [name for name in EXACT if name != "deep_ritz_l_shape"]


def points_of(entry):
    return entry.points if isinstance(entry, so.Weighted) else entry


def terms(problem, u, most: int = 40):
    """The inner map of every term, on some of its points."""
    for name, term in problem.objective.terms.items():
        points = points_of(problem.batch()[name])
        points = points[:: -(-len(points) // most)]
        yield name, points, jax.jit(jax.vmap(partial(term.inner, u)))(points)


@pytest.mark.parametrize("name", LEAST_SQUARES)
def test_residuals_of_the_solution_vanish(name):
    for term, points, z in terms(get(name), EXACT[name]):
        np.testing.assert_allclose(z, 0, atol=1e-10, err_msg=term)
        assert len(points) >= 20


def test_residuals_of_another_function_do_not():
    def u(x):
        return x[0] ** 2 + jnp.sin(3 * x[1]) + x[0] * x[1] + 0.3

    for name in ("helmholtz", "poisson_nd", "poisson10d", "poisson100d", "poisson2d_c"):
        for term, _, z in terms(get(name), u):
            assert jnp.max(jnp.abs(z)) > 0.1, (name, term)


def test_log_fokker_planck_against_the_density():
    # p_t = div(x p) / 2 + Lap p for a Gaussian that does NOT solve it: both forms of the residual must agree
    def q(x):
        return -0.1 * jnp.sum(x[:-1] ** 2) * (1 + x[-1]) + 0.3 * x[0] * x[1]

    def of_density(x):
        def p(y):
            return jnp.exp(q(y))

        slope, second = jax.grad(p)(x), jax.hessian(p)(x)
        drift = 0.5 * (9 * p(x) + x[:-1] @ slope[:-1])
        return (jnp.trace(second[:-1, :-1]) + drift - slope[-1]) / p(x)

    ((_, points, z),) = terms(get("log_fokker_planck"), q)
    np.testing.assert_allclose(z, jax.jit(jax.vmap(of_density))(points), rtol=1e-9)


def test_darcy_residual_by_hand():
    def u(x):
        return x[0] * (1 - x[0]) * jnp.sin(2 * x[1])

    ((_, points, z),) = terms(get("darcy2d"), u)
    x, y = np.asarray(points).T
    a, a_x, a_y = _permeability(x, y)
    second = -2 * np.sin(2 * y) - 4 * x * (1 - x) * np.sin(2 * y)
    flux = a_x * (1 - 2 * x) * np.sin(2 * y) + a_y * x * (1 - x) * 2 * np.cos(2 * y)
    np.testing.assert_allclose(z, a * second + flux + 1, rtol=1e-10)


def test_darcy_reference_against_finite_volumes():
    """Volumes know the permeability only, not its slopes; their error falls by four when the width halves."""
    table = load("darcy2d")
    np.testing.assert_allclose(darcy2d(32)["u"], table["u"], atol=1e-6 * table["u"].max())
    assert table["error"] < 1e-7 and get("darcy2d").reference_error >= table["error"]

    def volumes(n):
        h = 1 / n
        nodes, faces = np.arange(1, n) * h, (np.arange(n) + 0.5) * h
        D = csr_array(np.diff(np.eye(n + 1)[:, 1:-1], axis=0)) / h
        one = eye_array(n - 1)
        ax, ay = (_permeability(*np.meshgrid(*axes, indexing="ij"))[0] for axes in ((faces, nodes), (nodes, faces)))
        Dx, Dy = kron(D, one), kron(one, D)
        A = Dx.T @ diags_array(ax.ravel()) @ Dx + Dy.T @ diags_array(ay.ravel()) @ Dy
        return spsolve(A.tocsc(), np.ones((n - 1) ** 2)).reshape(n - 1, n - 1)

    inner = table["u"][1:-1, 1:-1]
    coarse = np.linalg.norm(volumes(50) - inner[1::2, 1::2]) / np.linalg.norm(inner[1::2, 1::2])
    fine = np.linalg.norm(volumes(100) - inner) / np.linalg.norm(inner)
    assert fine < 1e-3 and 3.8 < coarse / fine < 4.2


def test_holes_reference():
    problem = get("poisson2d_c")
    u = poisson2d_c()
    # the maximum principle: harmonic inside and right on the boundary is right everywhere
    assert misfit(u) < problem.reference_error and problem.reference_error <= 1e-12
    centres = np.random.default_rng(0).uniform(-0.5, 0.5, (200, 2))
    holes = np.linalg.norm(np.abs(centres) - 0.3, axis=1) - 0.1
    radii = 0.9 * np.minimum(holes, 0.5 - np.abs(centres).max(1))
    centres, radii = centres[radii > 0.02], radii[radii > 0.02]
    angle = 2 * np.pi * np.arange(400) / 400
    rings = centres[:, None] + radii[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    assert len(centres) > 50
    np.testing.assert_allclose(u(rings.reshape(-1, 2)).reshape(-1, 400).mean(1), u(centres), atol=1e-12)
    np.testing.assert_allclose(poisson2d_c(12)(centres), u(centres), atol=1e-8)
    np.testing.assert_allclose(u(centres[:, ::-1] * [1, -1]), u(centres), atol=1e-12)
    # the terms on the boundary
    batch = problem.batch()
    assert (np.abs(batch["outer"]).max(1) == 0.5).all() and len(batch["outer"]) == len(batch["holes"]) == 128
    np.testing.assert_allclose(np.linalg.norm(np.abs(batch["holes"]) - 0.3, axis=1), 0.1, atol=1e-12)
    for points in (batch["interior"], problem.test_points()):
        assert (np.linalg.norm(np.abs(points) - 0.3, axis=1) > 0.1).all()
    inner = {name: term.inner for name, term in problem.objective.terms.items()}
    x = jnp.array([0.5, 0.1])
    assert inner["outer"](lambda x: x[0], x) == -0.5 and inner["holes"](lambda x: x[0], x) == 0.5


def test_energy_on_the_l_shape():
    problem = get("deep_ritz_l_shape")
    batch = problem.batch()
    (x, y), weights = np.asarray(batch["energy"].points).T, np.asarray(batch["energy"].weights)
    assert ((x < 0) | (y > 0)).all() and (np.maximum(np.abs(x), np.abs(y)) < 1).all()
    for power, expected in ((0, 3.0), (2, 1.0), (4, 0.6)):  # of x^p over three unit squares
        np.testing.assert_allclose(weights @ x**power, expected, rtol=1e-12)
    (x, y), weights = np.asarray(batch["boundary"].points).T, np.asarray(batch["boundary"].weights)
    assert ((np.maximum(np.abs(x), np.abs(y)) == 1) | ((x * y == 0) & (x >= 0) & (y <= 0))).all()
    np.testing.assert_allclose([weights.sum(), weights @ x**2], [8.0, 13 / 3], rtol=1e-12)

    def energy(c, smooth):
        return problem.objective.bind(batch)(
            jax.tree_util.Partial(lambda c, x: corner(x) + c * smooth(x), jnp.asarray(c))
        )

    # u* is harmonic: its energy is half the integral of u* du*/dn over the outer sides, by symmetry twice over three
    s, w = np.polynomial.legendre.leggauss(60)
    s, w = (s + 1) / 2, w / 2

    def flux(x, normal):
        return jax.vmap(lambda x: corner(x) * (jax.grad(corner)(x) @ normal))(x)

    sides = (((np.ones(60), s), (1.0, 0.0)), ((s, np.ones(60)), (0.0, 1.0)), ((-s, np.ones(60)), (0.0, 1.0)))
    half = sum(w @ np.asarray(flux(jnp.stack([*side], axis=1), jnp.array(normal))) for side, normal in sides)

    def bubble(x):
        return (1 - x[0] ** 2) * (1 - x[1] ** 2) * x[0] * x[1] * (1 + x[0])

    value, slope = jax.jit(jax.value_and_grad(lambda c: energy(c, bubble)))(jnp.zeros(()))
    np.testing.assert_allclose(value, half, rtol=2e-4)  # Gauss points near the corner
    np.testing.assert_allclose(slope, 0, atol=1e-4)  # stationary: a perturbation of the right-hand side is first order
    np.testing.assert_allclose(energy(0.5, bubble), value + 0.25 * curvature(bubble, batch["energy"]), rtol=1e-4)
    # without the boundary values, the penalty
    assert energy(0.1, lambda x: 1.0 + 0 * x[0]) > value + 100 * 0.5 * 8 * 0.1**2


def curvature(v, entry):
    slopes = jax.vmap(jax.grad(v))(jnp.asarray(entry.points))
    return 0.5 * jnp.sum(entry.weights * jnp.sum(slopes**2, axis=1))


@pytest.mark.parametrize("name", list(EXACT))
def test_reference_and_error(name):
    problem = get(name)
    points = np.asarray(problem.test_points())
    u = jax.jit(jax.vmap(EXACT[name]))(points)
    np.testing.assert_allclose(problem.reference(points), u, atol=1e-12 * np.abs(u).max())
    assert problem.error(EXACT[name]) < 1e-12
    np.testing.assert_allclose(problem.error(lambda x: 0 * x[0]), 1, rtol=1e-12)


@pytest.mark.parametrize("name", ["darcy2d", "poisson2d_c"])
def test_error_of_zero(name):
    np.testing.assert_allclose(get(name).error(lambda x: 0 * x[0]), 1, rtol=1e-12)


def test_norms_and_published_figures():
    """Figures of the papers are absolute there: solutions of norm 1, and the logarithm of the density."""
    for name in ("poisson10d", "poisson100d"):
        values = get(name).reference(np.asarray(get(name).test_points()))
        np.testing.assert_allclose(np.sqrt(np.mean(values**2)), 1, rtol=5e-3)
    problem = get("log_fokker_planck")
    values = problem.reference(np.asarray(problem.test_points()))
    np.testing.assert_allclose(1.5e-3 / np.sqrt(np.mean(values**2)), problem.published.error, rtol=0.05)


@pytest.mark.parametrize("name", list(BUILDERS))
def test_points_lie_in_the_domain(name):
    problem = get(name)
    lower, upper = np.array(list(problem.domain.values())).T
    entries = [*problem.training_points().values(), problem.test_points()]
    for entry in entries:
        points = np.asarray(points_of(entry))
        assert points.shape[1] == len(lower) and (points >= lower).all() and (points <= upper).all()
        assert len(np.unique(points, axis=0)) == len(points)


@pytest.mark.parametrize("name", ["poisson_nd", "poisson10d", "poisson100d"])
def test_boundary_of_the_cube(name):
    boundary = np.asarray(get(name).batch()["boundary"])
    on_a_face = (boundary == 0) | (boundary == 1)
    assert (on_a_face.sum(1) == 1).all() and (on_a_face.sum(0) > 0).all()


def values(name, *points):
    """Of a random model, at some points."""
    problem = get(name)
    return jax.jit(lambda key, points: jax.vmap(problem.model(key, layers=(4,)))(points))(
        jax.random.key(3), jnp.array(points)
    )


def test_slopes_of_the_boundary_data_along_the_face():
    inner = get("poisson100d").objective.terms["boundary"].inner
    w, x = np.random.default_rng(2).random((2, 100))
    x[7] = 1.0
    z = inner(lambda x: jnp.asarray(w) @ x, jnp.asarray(x))
    expected = w - 2 * x / 33.47
    expected[7] = 0
    np.testing.assert_allclose(z, [*expected, w @ x - x @ x / 33.47], rtol=1e-12)


def test_conditions_that_hold_exactly():
    u = values("darcy2d", [0.0, 0.3], [1.0, 0.7], [0.4, 0.0], [0.2, 1.0], [0.3, 0.6])
    assert (u[:4] == 0).all() and u[4] != 0
    u = values("helmholtz", [-1.0, 0.3], [0.2, -1.0], [1.0, 0.3], [0.2, 1.0], [0.5, 0.5])
    np.testing.assert_allclose(u[:2], u[2:4], atol=1e-13)
    assert len(np.unique(np.round(u, 6))) == 3
    u = values("poisson2d_c", [0.4, -0.1], [-0.4, 0.1], [0.1, 0.4])
    assert u[0] == u[1] != u[2]
    x = np.linspace(-5.0, 4.0, 9)
    u = values("log_fokker_planck", [*x, 0.0], [*x, 1.0])
    np.testing.assert_allclose(u[0], np.sum(-(x**2) / 2 - np.log(2 * np.pi) / 2), rtol=1e-14)
    assert abs(u[1] - u[0]) > 0.01


@pytest.mark.bad_input
def test_waves_of_helmholtz():
    other = _helmholtz.helmholtz(a=(2, 3))
    assert "(2, 3)" in other.title and other.published is None
    assert other.error(lambda x: jnp.sin(2 * jnp.pi * x[0]) * jnp.sin(3 * jnp.pi * x[1])) < 1e-12
    for a in ((1.5, 2), (0, 4)):  # no zero on the boundary
        with pytest.raises(ValueError, match=f"a must be a positive integer, got {min(a)}"):
            _helmholtz.helmholtz(a=a)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["deep_ritz_l_shape", "poisson2d_c"])
def test_levenberg_marquardt_lowers_the_loss(name):
    problem = get(name)
    model = jax.jit(lambda key: problem.model(key, layers=(4,)))(jax.random.key(0))
    few = jax.tree.map(lambda leaf: leaf[:: max(1, len(leaf) // 20)], problem.batch())
    result = jax.jit(lambda model: so.train(model, problem.objective, so.levenberg_marquardt(), few, steps=5))(model)
    assert result.loss < result.history["loss"][0]
