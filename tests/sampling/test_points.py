"""Point sets, domains, quadrature, and the samplers that do not see the model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial import cKDTree

import sciml_opt as so
from sciml_opt import sampling
from sciml_opt.sampling import Annulus, Ball, Box, LShape, RandomPool, Sampler, Shifted, TimeSlab

KINDS = ("grid", "uniform", "latin_hypercube", "sobol", "halton", "hammersley")
SQUARE = Box((-1, -1), (1, 1))


def inside_square(x, y):
    return (np.abs(x) < 1) & (np.abs(y) < 1)


# domain, membership by hand, volume, length or area of the boundary
DOMAINS = {
    "interval": (Box((-0.3,), (1.1,)), lambda x: (-0.3 < x) & (x < 1.1), 1.4, 2.0),
    "box": (Box((0, -1, 2), (1, 1, 5)), lambda x, y, z: (0 < x) & (x < 1) & (y**2 < 1) & (2 < z) & (z < 5), 6.0, 22.0),
    "disc": (Ball((0.5, -2), 0.7), lambda x, y: np.hypot(x - 0.5, y + 2) < 0.7, 0.49 * np.pi, 1.4 * np.pi),
    "ball": (Ball((0, 1, 0), 2), lambda x, y, z: x**2 + (y - 1) ** 2 + z**2 < 4, 32 / 3 * np.pi, 16 * np.pi),
    "ball4": (Ball((0,) * 4, 1), lambda *x: sum(a**2 for a in x) < 1, np.pi**2 / 2, 2 * np.pi**2),
    "annulus": (
        Annulus((0, 0), 0.5, 1),
        lambda x, y: (0.5 < np.hypot(x, y)) & (np.hypot(x, y) < 1),
        0.75 * np.pi,
        3 * np.pi,
    ),
    "L": (LShape(), lambda x, y: inside_square(x, y) & ((x < 0) | (y > 0)), 3.0, 8.0),
    "hole": (
        SQUARE - Ball((0.5, 0.5), 0.25),
        lambda x, y: inside_square(x, y) & (np.hypot(x - 0.5, y - 0.5) > 0.25),
        4 - np.pi / 16,
        8 + np.pi / 2,
    ),
    "union": (  # two edges are shared in part
        SQUARE | Box((0, -1), (2, 0)),
        lambda x, y: inside_square(x, y) | ((0 < x) & (x < 2) & (-1 < y) & (y < 0)),
        5.0,
        10.0,
    ),
    "quarter": (
        SQUARE & Ball((1, 1), 1),
        lambda x, y: inside_square(x, y) & (np.hypot(x - 1, y - 1) < 1),
        np.pi / 4,
        2 + np.pi / 2,
    ),
    "L by boxes": (  # the cut ends on the faces of the square
        SQUARE - Box((0, -1), (1, 0)),
        lambda x, y: inside_square(x, y) & ((x < 0) | (y > 0)),
        3.0,
        8.0,
    ),
    "slab": (
        TimeSlab(Annulus((0, 0), 0.5, 1), 1, 3),
        lambda x, y, t: (0.5 < np.hypot(x, y)) & (np.hypot(x, y) < 1) & (1 < t) & (t < 3),
        1.5 * np.pi,
        6 * np.pi,
    ),
}
NAMES = tuple(DOMAINS)
EXACT = ("interval", "box", "disc", "ball", "annulus")


@pytest.mark.parametrize("kind", KINDS)
def test_point_sets_have_the_count_and_follow_the_seed(kind):
    for dimension, count in ((1, 17), (2, 100), (5, 32)):
        points = sampling.unit_points(dimension, count, kind)
        assert points.shape == (count, dimension) and points.dtype == np.float64
        assert ((points >= 0) & (points < 1)).all()
        np.testing.assert_allclose(points.mean(0), 0.5, atol=4 / np.sqrt(12 * count))
        np.testing.assert_array_equal(points, sampling.unit_points(dimension, count, kind))
        other = sampling.unit_points(dimension, count, kind, seed=1)
        assert np.array_equal(points, other) == (kind == "grid")
    assert len(sampling.unit_points(2, 90, "grid")) == 100  # the next square
    assert len(sampling.unit_points(3, 27, "grid")) == 27


def test_stratification():
    n = 64
    for kind in ("latin_hypercube", "sobol"):  # one in each slice of every axis
        slices = np.sort(np.floor(n * sampling.unit_points(3, n, kind, 5)), axis=0)
        np.testing.assert_array_equal(slices, np.tile(np.arange(n)[:, None], 3))
    for rows in (2, 8, 32):  # a net: one in each elementary interval of the plane
        cells = np.floor(sampling.unit_points(2, n, "sobol", 7) * [rows, n // rows])
        assert len(np.unique(cells, axis=0)) == n
    np.testing.assert_allclose(np.sort(sampling.unit_points(2, n, "hammersley")[:, 0]), (np.arange(n) + 0.5) / n)


def test_order_of_the_quadrature_error():
    counts = [2**k for k in (5, 7, 9, 11)]

    def errors(kind, f, exact):
        return [
            np.sqrt(np.mean([(f(sampling.unit_points(2, n, kind, s)).mean() - exact) ** 2 for s in range(12)]))
            for n in counts
        ]

    def order(kind, f, exact):
        return -np.polyfit(np.log(counts), np.log(errors(kind, f, exact)), 1)[0]

    smooth, exact = lambda x: np.exp(x.sum(1)), (np.e - 1) ** 2
    assert 0.3 < order("uniform", smooth, exact) < 0.7
    assert order("sobol", smooth, exact) > 1.2
    assert order("halton", smooth, exact) > 0.8 and order("hammersley", smooth, exact) > 0.8
    assert order("latin_hypercube", lambda x: np.exp(x).sum(1), 2 * (np.e - 1)) > 1.2  # of a sum of functions
    for kind in ("sobol", "halton", "hammersley"):
        assert errors(kind, smooth, exact)[-1] < 0.1 * errors("uniform", smooth, exact)[-1]


@pytest.mark.parametrize("name", NAMES)
def test_points_lie_inside_and_on_the_boundary(name):
    domain, member, _, _ = DOMAINS[name]
    lower, upper = domain.bounds
    for kind in KINDS:
        inside = domain.interior(128, kind, seed=3)
        points, normals = domain.boundary_with_normals(96, kind, seed=3)
        if kind != "grid":
            assert len(inside) == 128 and len(points) == 96
        assert len(inside) >= 128 and len(points) >= 96 and inside.dtype == points.dtype == np.float64
        assert member(*inside.T).all() and ((inside > lower) & (inside < upper)).all()
        assert np.abs(domain.signed_distance(points)).max() < 1e-12
        np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-12)
        assert member(*(points - 1e-6 * normals).T).all() and not member(*(points + 1e-6 * normals).T).any()
        np.testing.assert_array_equal(points, domain.boundary(96, kind, seed=3))
        assert not np.array_equal(inside, domain.interior(128, kind, seed=4)) or kind == "grid"


@pytest.mark.parametrize("name", NAMES)
def test_normals_are_the_gradient_of_the_signed_distance(name):
    domain = DOMAINS[name][0]
    points, normals = domain.boundary_with_normals(64)
    shifted = points - 1e-6 * normals  # off the kink that max(q, 0) has on a face
    gradients = jax.jit(jax.vmap(jax.grad(domain.signed_distance)))(jnp.asarray(shifted))
    np.testing.assert_allclose(gradients, normals, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_signed_distance(name):
    domain, member, _, _ = DOMAINS[name]
    lower, upper = domain.bounds
    x = lower - 0.3 + (upper - lower + 0.6) * np.random.default_rng(0).random((400, len(lower)))
    d = domain.signed_distance(x)
    np.testing.assert_array_equal(d < 0, member(*x.T))
    np.testing.assert_array_equal(domain.contains(x), d < 0)
    if not name.startswith("slab"):  # whose boundary points do not cover the ends in time
        true, _ = cKDTree(domain.boundary(2**14)).query(x)
        assert (np.abs(d) <= true + 1e-9).all()
        exact = np.abs(d) >= true - (0.05 if domain.dimension > 2 else 2e-3)
        if name in EXACT:
            assert exact.all()
        if name == "L":
            assert exact[d < 0].all()
    np.testing.assert_allclose(jax.jit(domain.signed_distance)(jnp.asarray(x)), d, rtol=1e-12, atol=1e-14)
    assert domain.signed_distance(x[0]).shape == () == domain.contains(x[0]).shape


@pytest.mark.parametrize("name", NAMES)
def test_volume_and_interior_are_uniform(name):
    domain, member, volume, _ = DOMAINS[name]
    lower, upper = domain.bounds
    whole = np.prod(upper - lower)
    share = np.mean(domain.contains(lower + (upper - lower) * sampling.unit_points(len(lower), 20_000, "uniform")))
    assert abs(share - volume / whole) < 4.5 * np.sqrt(share * (1 - share) / 20_000) + 1e-12
    # a part of the domain has its share of the points
    n, middle = 4096, (lower + upper) / 2
    reference = lower + (upper - lower) * np.random.default_rng(1).random((200_000, len(lower)))
    reference = reference[member(*reference.T)]
    for half in (lambda x: x[:, 0] < middle[0], lambda x: x[:, -1] > middle[-1] + 0.2 * (upper - lower)[-1]):
        expected = np.mean(half(reference))
        assert abs(np.mean(half(domain.interior(n))) - expected) < 0.01
        assert abs(np.mean(half(domain.interior(n, "uniform"))) - expected) < 5 * np.sqrt(0.25 / n) + 0.005


def test_boundaries_are_covered_at_one_density():
    hole, _, _, length = DOMAINS["hole"]
    points = hole.boundary(1000)
    on_circle = np.abs(np.hypot(*(points - 0.5).T) - 0.25) < 1e-9
    assert abs(on_circle.sum() - 1000 * (np.pi / 2) / length) < 3
    for axis in (0, 1):
        for side in (-1, 1):
            face = np.sort(points[points[:, axis] == side][:, 1 - axis])
            assert abs(len(face) - 2000 / length) < 3
            assert np.diff([-1, *face, 1]).max() < 0.03  # corners included
    angles = np.sort(np.arctan2(*(points[on_circle] - 0.5).T))
    assert np.diff([*angles, angles[0] + 2 * np.pi]).max() < 2.5 * 2 * np.pi / on_circle.sum()
    union, _, _, length = DOMAINS["union"]
    points = union.boundary(1000)
    assert len(np.unique(points, axis=0)) == 1000
    shared = (points[:, 1] == -1) & (points[:, 0] > 0) & (points[:, 0] < 1)
    assert abs(shared.sum() - 1000 / length) < 4  # counted once
    for count in (7, 10, 41):  # counts that the faces cannot share equally
        assert len(Box((0, 0, 0), (1, 2, 3)).boundary(count)) == count
    assert np.unique(Box((0,), (2,)).boundary(2)).tolist() == [0, 2]


def test_time_slab():
    slab = TimeSlab(Box((-1,), (1,)), 0.5, 2.0)
    initial, (points, normals) = slab.initial(50), slab.boundary_with_normals(128)
    assert initial.shape == (50, 2) and (initial[:, 1] == 0.5).all() and (np.abs(initial[:, 0]) < 1).all()
    np.testing.assert_allclose(normals, np.stack([points[:, 0], np.zeros(128)], 1))
    for end in (-1, 1):
        times = np.sort(points[points[:, 0] == end][:, 1])
        np.testing.assert_array_equal(np.floor((times - 0.5) / 1.5 * 64), np.arange(64))
    disc = TimeSlab(Ball((0, 0), 1), 0, 1).boundary(256)
    cells = np.floor(np.stack([np.arctan2(disc[:, 1], disc[:, 0]) / (2 * np.pi) % 1, disc[:, 2]], 1) * 16)
    assert len(np.unique(cells, axis=0)) == 256  # a net of angle and time


POWERS = [(0, 0), (3, 2), (7, 5), (6, 7)]


def moment(box, i, j):
    return np.prod([(b ** (k + 1) - a ** (k + 1)) / (k + 1) for a, b, k in zip(box[0], box[1], (i, j), strict=True)])


def integral(entry, f):
    return np.dot(entry.weights, f(*entry.points.T))


def test_quadrature_is_exact_for_polynomials():
    box = ((-0.5, 1.0), (1.5, 1.7))
    for i, j in POWERS:
        for panels in (1, (2, 3)):
            entry = sampling.quadrature(Box(*box), panels, order=4)
            got = integral(entry, lambda x, y, i=i, j=j: x**i * y**j)
            np.testing.assert_allclose(got, moment(box, i, j), rtol=1e-12)
        entry = sampling.quadrature(LShape(), 2)
        exact = moment(((-1, -1), (1, 1)), i, j) - moment(((0, -1), (1, 0)), i, j)
        got = integral(entry, lambda x, y, i=i, j=j: x**i * y**j)
        np.testing.assert_allclose(got, exact, rtol=1e-12, atol=1e-14)
    assert entry.points.shape == (3 * 64, 2)
    np.testing.assert_allclose(entry.weights.sum(), 3, rtol=1e-14)
    assert LShape().contains(entry.points).all()
    inexact = sampling.quadrature(Box(*box), 1, order=3)
    assert abs(integral(inexact, lambda x, y: x**7) / moment(box, 7, 0) - 1) > 1e-4
    slab = sampling.quadrature(TimeSlab(LShape(), 0, 2), 1)
    np.testing.assert_allclose(integral(slab, lambda x, y, t: t**3), 3 * 4, rtol=1e-13)


def test_boundary_quadrature():
    box = sampling.boundary_quadrature(Box((0, 0), (2, 1)), (3,))
    np.testing.assert_allclose(integral(box, lambda x, y: x**3 + y), 2 * 4 + 2 + 8 + 1, rtol=1e-13)
    ell = sampling.boundary_quadrature(LShape(), 2)
    np.testing.assert_allclose(ell.weights.sum(), 8, rtol=1e-14)
    # left, lower, upper, right, and the two edges at the corner
    exact = 2 + 1 / 3 + 2 / 3 + 1 + 1 / 3 + 0
    np.testing.assert_allclose(integral(ell, lambda x, y: x**2), exact, rtol=1e-13)
    circle = sampling.boundary_quadrature(Ball((1, 0), 0.5), 8)
    np.testing.assert_allclose(integral(circle, lambda x, y: y**2), np.pi / 8, rtol=1e-10)
    ends = sampling.boundary_quadrature(Box((1,), (3,)), 5)
    np.testing.assert_allclose(integral(ends, lambda x: x**2), 10, rtol=1e-14)
    for name in ("box", "annulus", "slab"):
        domain, _, _, measure = DOMAINS[name]
        np.testing.assert_allclose(sampling.boundary_quadrature(domain, 1).weights.sum(), measure, rtol=1e-12)


def test_a_domain_is_a_static_part_of_a_model():
    domain = DOMAINS["hole"][0]
    assert jax.tree.leaves(domain) == [] and domain == SQUARE - Ball((0.5, 0.5), 0.25) and hash(domain) is not None
    assert domain != SQUARE - Ball((0.5, 0.5), 0.2)
    square = Box((-1, -1), (1, 1))
    term = so.Term(lambda theta, x: theta * square.signed_distance(x))
    points = jnp.array([[0.0, 0.0], [1.0, 0.3], [0.5, 0.2]])
    loss = so.Objective(energy=term).bind({"energy": points})
    np.testing.assert_allclose(jax.jit(loss)(jnp.float64(2.0)), 0.5 * (4 + 0 + 1) / 3)
    # no NaN in any derivative, at the centre and on kinks; dtypes follow
    shapes = square, Ball((0, 0), 1), DOMAINS["annulus"][0], domain
    hessians = jax.jit(lambda x: [jax.vmap(jax.hessian(shape.signed_distance))(x) for shape in shapes])(points)
    for shape, hessian in zip(shapes, hessians, strict=True):
        assert jnp.isfinite(hessian).all()
        for xp in (jnp, np):
            assert shape.signed_distance(xp.asarray(points, "float32")).dtype == "float32"


def test_shifted_points_are_uniform_and_stay_evenly_spread():
    box = TimeSlab(Box((-1,), (1,)), 0, 3)
    draws = jax.jit(jax.vmap(Shifted(box, 64)))(jax.random.split(jax.random.key(0), 400))
    assert draws.shape == (400, 64, 2)
    lower, upper = box.bounds
    u = (np.asarray(draws) - lower) / (upper - lower)
    assert (u >= 0).all() and (u <= 1).all()
    for point in (0, 17):  # a point by itself is uniform: mean and quarters of each coordinate
        np.testing.assert_allclose(u[:, point].mean(0), 0.5, atol=4.5 / np.sqrt(12 * 400))
        np.testing.assert_allclose((u[:, point] < 0.25).mean(0), 0.25, atol=4.5 * np.sqrt(0.1875 / 400))
    gaps = (u[0] - u[1]) % 1
    np.testing.assert_allclose(np.exp(2j * np.pi * gaps), np.tile(np.exp(2j * np.pi * gaps[:1]), (64, 1)), atol=1e-10)
    # the mean of a smooth function varies far less than that of 64 random points
    f = np.exp(u.sum(2)).mean(1)
    np.testing.assert_allclose(f.mean(), (np.e - 1) ** 2, atol=4.5 * f.std() / 20)
    random = np.exp(np.random.default_rng(0).random((400, 64, 2)).sum(2)).mean(1)
    assert f.std() < 0.25 * random.std()


def test_random_pool_and_sampler():
    ring = Annulus((0, 0), 0.5, 1)
    pool = (ring.interior(50), np.arange(50))  # any pytree of points
    sampler = Sampler(
        interior=RandomPool(pool, 20), edge=Shifted(SQUARE, 8), boundary=ring.boundary(6), fixed=so.Weighted(*pool)
    )
    draw = jax.jit(lambda sampler, key: sampler(key))
    batches = [jax.device_get(draw(sampler, key)) for key in jax.random.split(jax.random.key(1), 5)]
    assert draw._cache_size() == 1
    for batch in batches:
        assert set(batch) == {"interior", "edge", "boundary", "fixed"}
        points, numbers = batch["interior"]
        assert len(np.unique(numbers)) == 20
        np.testing.assert_array_equal(points, pool[0][numbers])
        np.testing.assert_array_equal(batch["boundary"], ring.boundary(6))
        assert isinstance(batch["fixed"], so.Weighted)
    assert not np.array_equal(batches[0]["interior"][1], batches[1]["interior"][1])
    assert not np.array_equal(batches[0]["edge"], batches[1]["edge"])
    drawn = jax.jit(jax.vmap(RandomPool(pool[1], 20)))(jax.random.split(jax.random.key(0), 500))
    counts = np.bincount(np.ravel(drawn), minlength=50)
    assert np.abs(counts - 200).max() < 5 * np.sqrt(500 * 0.4 * 0.6)
    assert draw(RandomPool(jnp.ones((5, 2), jnp.float32), 3), jax.random.key(0)).dtype == jnp.float32


def test_a_run_draws_from_a_sampler():
    objective = so.Objective(
        interior=so.Term(lambda theta, x: theta[0] * x[0] + theta[1] - 3 * x[0]),
        boundary=so.Term(lambda theta, x: theta[1] - 1.0),
    )
    sampler = Sampler(interior=Shifted(Box((0,), (1,)), 16), boundary=np.zeros((1, 1)))
    options = dict(steps=200, key=jax.random.key(0))
    result = jax.jit(lambda theta: so.train(theta, objective, optax.sgd(0.5), sampler, **options))(jnp.zeros(2))
    # the minimum of the integral, theta = (a, b): a / 3 + b / 2 = 1, a / 2 + 2 b = 5 / 2
    np.testing.assert_allclose(result.params, np.linalg.solve([[1 / 3, 1 / 2], [1 / 2, 2]], [1, 5 / 2]), atol=0.1)


@pytest.mark.bad_input
def test_errors():
    with pytest.raises(ValueError, match=r"kind must be one of .*Did you mean 'sobol'"):
        sampling.unit_points(2, 4, "sobel")
    with pytest.raises(ValueError, match="count must be a positive integer, got 0"):
        SQUARE.interior(0)
    for corners in (((0, 0), (1,)), ((0, 2), (1, 1)), ((), ()), ((0,), (np.nan,))):
        with pytest.raises(ValueError, match="Box needs lower < upper"):
            Box(*corners)
    with pytest.raises(ValueError, match="Ball needs a positive radius, got -1"):
        Ball((0, 0), -1)
    with pytest.raises(ValueError, match="two dimensions or more"):
        Ball((0,), 1)
    with pytest.raises(ValueError, match="two dimensions or more"):
        Annulus((0,), 0, 1)
    with pytest.raises(ValueError, match="0 <= inner < outer"):
        Annulus((0, 0), 2, 1)
    with pytest.raises(ValueError, match="lower < corner < upper"):
        LShape(corner=(0, 1))
    with pytest.raises(ValueError, match="start < stop"):
        TimeSlab(SQUARE, 1, 1)
    with pytest.raises(ValueError, match="Domains of 2 and 3 dimensions have no union"):
        SQUARE | Box((0, 0, 0), (1, 1, 1))
    with pytest.raises(ValueError, match=r"x must have shape \(..., 2\) in this domain, got \(4, 3\)"):
        SQUARE.signed_distance(np.zeros((4, 3)))
    with pytest.raises(TypeError, match="x must be floating, got int"):
        SQUARE.contains(np.zeros((4, 2), int))
    for empty in (SQUARE & Ball((5, 5), 1), SQUARE - Box((-2, -2), (2, 2))):
        with pytest.raises(ValueError, match=r"fewer than 10 lie in the domain .* it is empty"):
            empty.interior(10)
    with pytest.raises(TypeError, match=r"domain made of boxes .*, got Ball"):
        sampling.quadrature(Ball((0, 0), 1), 2)
    with pytest.raises(TypeError, match=r"domain made of boxes .*, got TimeSlab"):
        sampling.quadrature(TimeSlab(Ball((0, 0), 1), 0, 1), 2)
    with pytest.raises(TypeError, match="a combined domain has only parts of them"):
        sampling.boundary_quadrature(DOMAINS["hole"][0], 2)
    with pytest.raises(ValueError, match="panels must be one number or 2"):
        sampling.quadrature(SQUARE, (1, 2, 3))
    with pytest.raises(TypeError, match="Shifted needs a Box or a TimeSlab of one, got LShape"):
        Shifted(LShape(), 8)
    with pytest.raises(ValueError, match="cannot draw count=9 different points from 8"):
        RandomPool(np.zeros((8, 2)), 9)
    with pytest.raises(ValueError, match="Sampler needs an entry that is a function"):
        Sampler(interior=np.zeros((8, 2)))
