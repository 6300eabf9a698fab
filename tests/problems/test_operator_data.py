"""Operator data: the law of the random fields, and every solver against an independent one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from numpy.polynomial.legendre import leggauss

from sciml_opt.problems import operators
from sciml_opt.problems.operators._burgers import _solve as solve_burgers
from sciml_opt.problems.operators._darcy import _solve as solve_darcy
from sciml_opt.problems.operators._data import Part
from sciml_opt.problems.operators._diffusion_reaction import _solve as solve_diffusion_reaction
from sciml_opt.problems.operators._random_field import RandomField, fourier_series
from sciml_opt.problems.references._etdrk4 import etdrk4

KEY = jax.random.key(3)
DATA = {
    "antiderivative": lambda: operators.antiderivative(KEY, 6, 4, sensors=20, queries=15),
    "burgers": lambda: operators.burgers_operator(KEY, 6, 4, points=32, solver_points=128, steps=100),
    "diffusion_reaction": lambda: operators.diffusion_reaction(KEY, 6, 4, sensors=20, grid=(9, 7)),
    "darcy": lambda: operators.darcy(KEY, 3, 2, points=9),
}


# --- random fields


@pytest.mark.parametrize("periodic", [False, True])
def test_covariance(periodic):
    x, count, length = np.linspace(0, 1, 9), 20_000, 0.15
    values = operators.gaussian_random_field(KEY, count, length, periodic=periodic)(x)
    shifts = range(-3, 4) if periodic else (0,)
    want = sum(np.exp(-((x[:, None] - x[None] + n) ** 2) / (2 * length**2)) for n in shifts)
    # the variance of a product of two standard normal numbers is at most two
    assert np.max(np.abs(values.T @ values / count - want)) < 5 * np.sqrt(2 / count)
    assert np.max(np.abs(np.mean(values, axis=0))) < 5 / np.sqrt(count)
    assert np.allclose(values[:, 0], values[:, -1], atol=1e-12) == periodic


@pytest.mark.parametrize("length", [0.05, 0.2, 1.0])
def test_the_series_has_the_kernel_to_rounding(length):
    """The covariance of the series itself, from its variances, without sampling."""
    period = 1 + 9 * length
    k = np.arange(operators.gaussian_random_field(KEY, 1, length).cosines.shape[1])
    variances = np.sqrt(2 * np.pi) * length / period * np.exp(-((2 * np.pi * k * length / period) ** 2) / 2)
    distance = np.linspace(0, 1, 50)
    series = np.cos(2 * np.pi / period * np.outer(distance, k)) @ (np.where(k == 0, 1, 2) * variances)
    np.testing.assert_allclose(series, np.exp(-(distance**2) / (2 * length**2)), atol=1e-14)


def test_antiderivative_of_a_field():
    field = operators.gaussian_random_field(KEY, 4, 0.2)
    nodes, weights = leggauss(40)
    for y in (0.0, 0.3, 1.0):
        want = y / 2 * field(y * (nodes + 1) / 2) @ weights
        np.testing.assert_allclose(field.antiderivative(np.array([y]))[:, 0], want, atol=1e-13)


def test_keys_decide():
    first, again = (operators.gaussian_random_field(KEY, 3) for _ in range(2))
    other = operators.gaussian_random_field(jax.random.key(4), 3)
    assert np.array_equal(first.cosines, again.cosines) and not np.array_equal(first.cosines, other.cosines)
    with jax.enable_x64(False):
        assert np.array_equal(first.sines, operators.gaussian_random_field(KEY, 3).sines)


# --- solvers


def test_etdrk4_is_of_fourth_order():
    """u' = -c u + u^2 with u = c / (1 + (c / u_0 - 1) e^{ct}), from slow to stiff."""
    c, u0 = np.array([0.1, 1.0, 30.0]), 0.4
    exact = c / (1 + (c / u0 - 1) * np.exp(c))
    errors = []
    for steps in (20, 40):
        path = etdrk4(-c, np.square, np.full((1, 3), u0), 1 / steps, steps, 10)
        assert path.shape == (steps // 10 + 1, 1, 3)
        errors.append(np.abs(path[-1, 0] - exact))
    assert np.all(errors[0] / errors[1] > 12) and np.all(errors[1] < 1e-8)


@pytest.mark.parametrize("viscosity", [0.1, 0.02])
def test_burgers_against_cole_and_hopf(viscosity):
    """u = m + v(x - m t, t), v = -2 nu phi_x / phi with the heat equation for phi = exp(-int (u_0 - m) / (2 nu))."""
    data = operators.burgers_operator(KEY, 3, 1, viscosity=viscosity, points=32, solver_points=512, steps=400)
    field = fourier_series(KEY, 4, 625 / ((2 * np.pi * np.arange(512 // 3)) ** 2 + 25) ** 2, 1.0)
    np.testing.assert_allclose(data.inputs, field(np.arange(32) / 32), rtol=1e-12)
    n = 2048
    mean = field.cosines[:, 0]
    zero_mean = RandomField(np.append(0 * mean[:, None], field.cosines[:, 1:], axis=1), field.sines, 1.0)
    spectrum = np.fft.rfft(np.exp(-zero_mean.antiderivative(np.arange(n) / n) / (2 * viscosity)))[:, :800] / n
    frequency = 2 * np.pi * np.arange(800)
    spectrum = spectrum * np.exp(-viscosity * frequency**2) * np.where(frequency == 0, 1, 2)
    want = []
    for m, s in zip(mean, spectrum, strict=True):
        waves = s * np.exp(1j * np.outer(np.arange(32) / 32 - m, frequency))
        want.append(m - 2 * viscosity * np.sum(1j * frequency * waves, 1).real / np.sum(waves, 1).real)
    error = np.linalg.norm(data.outputs - want) / np.linalg.norm(want)
    assert error < 1e-6
    assert data.solver_error < 1e-6


def test_burgers_error_by_refinement():
    """A coarse solver admits it: the estimate is the error within a factor of two."""
    coarse = operators.burgers_operator(KEY, 5, 3, viscosity=0.02, points=32, solver_points=64, steps=60)
    field = fourier_series(KEY, 8, 625 / ((2 * np.pi * np.arange(64 // 3)) ** 2 + 25) ** 2, 1.0)
    exact = solve_burgers(field, 0.02, 512, 500)[:, ::16]
    error = np.linalg.norm(coarse.outputs - exact) / np.linalg.norm(exact)
    assert coarse.solver_error / 2 < error < 2 * coarse.solver_error


def test_diffusion_with_one_mode():
    """Without reaction and f = sin(pi x): u = (1 - exp(-D pi^2 t)) sin(pi x) / (D pi^2)."""
    sine = RandomField(np.zeros((1, 2)), np.array([[0.0, 1.0]]), 2.0)
    x, t = np.linspace(0, 1, 11), np.linspace(0, 1, 6)
    u = solve_diffusion_reaction(sine, 0.3, 0.0, x, t, 24, 4)[0]
    rate = 0.3 * np.pi**2
    np.testing.assert_allclose(u, np.outer(np.sin(np.pi * x), (1 - np.exp(-rate * t)) / rate), atol=1e-12)


def test_diffusion_reaction_against_differences():
    field = operators.gaussian_random_field(KEY, 2, 0.3)
    D, k, n = 0.05, 1.5, 200
    z, t = np.arange(1, n) / n, np.array([0.0, 0.1, 1.0])
    got = solve_diffusion_reaction(field, D, k, np.arange(0, n + 1, 20) / n, np.linspace(0, 1, 11), 48, 4)

    def slope(_, u):
        u = np.pad(u.reshape(2, -1), ((0, 0), (1, 1)))
        second = (u[:, 2:] - 2 * u[:, 1:-1] + u[:, :-2]) * n**2
        return (D * second + k * u[:, 1:-1] ** 2 + field(z)).ravel()

    options = {"method": "LSODA", "rtol": 1e-8, "atol": 1e-10, "lband": 1, "uband": 1, "t_eval": t}
    path = scipy.integrate.solve_ivp(slope, (0, 1), np.zeros(2 * (n - 1)), **options).y.reshape(2, n - 1, 3)
    want = np.pad(path, ((0, 0), (1, 1), (0, 0)))[:, ::20]
    assert np.max(np.abs(got[:, :, [0, 1, 10]] - want)) < 1e-4 * np.max(np.abs(want))


def test_darcy_against_a_dense_system():
    field = np.random.default_rng(1).normal(size=(64, 64)) / (1 + np.arange(64) ** 2)
    cells = 8
    x = np.arange(cells + 1) / cells
    cosines = np.cos(np.pi * np.outer(x, np.arange(64)))
    a = np.where(np.einsum("ik,jl,kl->ij", cosines, cosines, field) >= 0, 12.0, 3.0)
    assert 0 < np.mean(a == 12) < 1
    inner = [(i, j) for i in range(1, cells) for j in range(1, cells)]
    A = np.zeros((len(inner), len(inner)))
    for row, (i, j) in enumerate(inner):
        for neighbour in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
            face = cells**2 * 2 / (1 / a[i, j] + 1 / a[neighbour])
            A[row, row] += face
            if neighbour in inner:
                A[row, inner.index(neighbour)] -= face
    u = solve_darcy(field, cells)
    np.testing.assert_allclose(u[1:-1, 1:-1].ravel(), np.linalg.solve(A, np.ones(len(inner))), rtol=1e-10)
    assert not u[[0, -1]].any() and not u[:, [0, -1]].any()


def test_darcy_in_one_material():
    """a = 12: Poisson's equation, whose series gives 0.0736713 / 12 in the middle; second order."""
    odd = np.arange(1, 400, 2)
    signs = (-1.0) ** ((odd - 1) / 2)
    series = 16 / np.pi**4 * np.sum(np.outer(signs / odd, signs / odd) / (odd[:, None] ** 2 + odd[None] ** 2)) / 12
    field = np.zeros((64, 64))
    field[0, 0] = 1
    errors = [abs(solve_darcy(field, n)[n // 2, n // 2] - series) for n in (8, 16)]
    assert 3.5 < errors[0] / errors[1] < 4.5 and errors[1] < 1e-2 * series


def test_darcy_error_by_refinement():
    data = operators.darcy(KEY, 3, 1, points=9, refinement=4)
    finest = operators.darcy(KEY, 3, 1, points=9, refinement=16)
    assert np.array_equal(data.inputs, finest.inputs)
    error = np.linalg.norm(data.outputs - finest.outputs) / np.linalg.norm(finest.outputs)
    assert data.solver_error / 3 < error < 3 * data.solver_error < 0.3


# --- the record


@pytest.mark.parametrize("name", DATA)
def test_record(name):
    data = DATA[name]()
    assert data.name == name
    assert 0 < data.solver_error < (0.3 if name == "darcy" else 1e-5)
    count = len(data.inputs)
    assert data.inputs.shape == (count, *data.sensors.shape[:-1])
    assert data.outputs.shape == (count, *data.queries.shape[:-1])
    parts: tuple[tuple[Part, int], ...] = (("training", data.training), ("test", count - data.training))
    for part, number in parts:
        pairs, (a, u) = data.pairs(part), data.fields(part)
        assert len(a) == len(u) == len(pairs.left) == number
        assert pairs.pair.shape == (number, data.queries[..., 0].size) and pairs.right.ndim == 2
        for prediction, want in ((pairs.pair, 0.0), (u, 0.0), (0 * u, 1.0)):
            np.testing.assert_allclose(data.error(prediction, part), want, atol=1e-15)
    seen, unseen = (np.asarray(data.fields(part)[0]) for part, _ in parts)
    assert not any(np.array_equal(a, b) for a in seen for b in unseen)
    pairs = data.pairs(dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(pairs)} == {jnp.dtype("float32")}
    assert data.error(pairs.pair, "training").dtype == jnp.float32


def test_antiderivative_is_the_integral():
    data = operators.antiderivative(KEY, 3, 2, sensors=400, queries=400)
    x, f, u = data.sensors[:, 0], data.inputs, data.outputs
    assert not u[:, 0].any()
    trapezium = np.concatenate([np.zeros((5, 1)), np.cumsum((f[:, 1:] + f[:, :-1]) / 2 * np.diff(x), axis=1)], axis=1)
    assert np.max(np.abs(u - trapezium)) < 1e-4


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: operators.gaussian_random_field(KEY, 3, -1.0), "length_scale must be greater than 0"),
        (lambda: operators.gaussian_random_field(KEY, 0), "count must be a positive integer, got 0"),
        (lambda: operators.antiderivative(KEY, training=0), "training must be a positive"),
        (lambda: operators.burgers_operator(KEY, viscosity=0.0), "viscosity must be greater than 0"),
        (lambda: operators.burgers_operator(KEY, points=60), "multiple of points = 60, got 256"),
        (lambda: operators.diffusion_reaction(KEY, diffusion=-1.0), "diffusion must be greater"),
        (lambda: operators.burgers_operator(KEY, steps=0), "steps must be a positive"),
        (lambda: operators.diffusion_reaction(KEY, grid=(5, 1)), "grid - 1 must be a positive integer, got 0"),
        (lambda: operators.darcy(KEY, refinement=0), "refinement must be a positive"),
        (lambda: operators.darcy(KEY, points=1), "points - 1 must be a positive integer, got 0"),
        (lambda: operators.burgers_operator(KEY, 3, 1, viscosity=1e-4, steps=20), "outputs of burgers .* not finite"),
        (lambda: operators.diffusion_reaction(KEY, 3, 1, reaction=500.0), "blows up"),
        (
            lambda: operators.diffusion_reaction(jax.random.key(0), 8, 1, reaction=1.25),
            "blows up",
        ),  # the finer solution does
        (lambda: DATA["antiderivative"]().pairs("tset"), "part must be one of.*Did you mean 'test'"),  # type: ignore
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
