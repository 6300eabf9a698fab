"""The samplers that see the model: against the papers' equations in NumPy, on residuals that are known by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small

import sciml_opt as so
from sciml_opt.sampling import R3, RAD, RARD, Box, RandomPool, Shifted, _adaptive, importance_sampled

RNG = np.random.default_rng(0)
POOL = RNG.normal(size=(12, 2))
TIES = np.zeros((3, 1))
OBJECTIVE = so.Objective(
    interior=so.Term(lambda theta, x: theta * x),
    boundary=so.Term(lambda theta, x: theta - x, weight=2.0),
)
BATCH = {"boundary": TIES}
THETA = jnp.float64(1.5)
SIZES = 1.5 * np.linalg.norm(POOL, axis=1)


def compiled(function):
    """Jitted, with NumPy results: slices of jax arrays compile, too."""
    jitted = eqx.filter_jit(function)
    return lambda *args: jax.device_get(jitted(*args))


@compiled
def draw(sampler, key, model, state):
    return sampler.draw(key, model, state)


@compiled
def draws(sampler, keys, model):
    """Many draws of a sampler without a state."""
    return jax.vmap(lambda key: sampler.draw(key, model, ())[0]["interior"])(keys)


@compiled
def sample(keys, p, count, replace):
    return jax.vmap(lambda key: importance_sampled(key, POOL, p, count, replace=replace))(keys)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def exact_loss(points):
    """With the boundary points at 0."""
    return 0.5 * 1.5**2 * (np.mean(np.sum(np.asarray(points) ** 2, axis=1)) + 2)


def places(points, pool=POOL):
    """Which candidates the points are."""
    distance = np.abs(np.asarray(points)[..., None, :] - pool).sum(-1)
    assert (distance.min(-1) == 0).all()
    return distance.argmin(-1)


def rad_density(sizes, k, c):
    p = sizes**k / np.mean(sizes**k) + c
    return p / p.sum()


def check_counts(chosen, p):
    """Counts of independent draws within 4.5 standard deviations of their expectation, and by chi^2."""
    counts, n = np.bincount(chosen.ravel(), minlength=len(p)), chosen.size
    np.testing.assert_array_less(np.abs(counts - n * p), 4.5 * np.sqrt(n * p * (1 - p)))
    assert np.sum((counts - n * p) ** 2 / (n * p)) < len(p) - 1 + 4.5 * np.sqrt(2 * (len(p) - 1))


def test_rad_draws_by_its_density():
    for k, c in ((1.0, 1.0), (2.0, 0.0), (0.5, 3.0)):
        rad = RAD(OBJECTIVE, "interior", POOL, 20, BATCH, power=k, offset=c, replace=True)
        check_counts(places(draws(rad, keys(300), THETA)), rad_density(SIZES, k, c))
    # Without replacement the first is drawn by p, the second by p among the others.
    rad = RAD(OBJECTIVE, "interior", POOL, 2, BATCH)
    chosen = places(draws(rad, keys(4000), THETA))
    p = rad_density(SIZES, 1, 1)
    check_counts(chosen[:, 0], p)
    ratio = p / (1 - p)
    check_counts(chosen[:, 1], p * (ratio.sum() - ratio))
    assert (chosen[:, 0] != chosen[:, 1]).all()
    all_of_them = RAD(OBJECTIVE, "interior", POOL, 12, BATCH, importance=True)
    points, weights = draws(all_of_them, keys(5), THETA)
    np.testing.assert_array_equal(np.sort(places(points)), np.tile(np.arange(12), (5, 1)))
    np.testing.assert_allclose(weights, 1 / 12)


def test_rad_from_fresh_candidates():
    fresh = Shifted(Box((0, 0), (1, 1)), 64)
    rad = RAD(OBJECTIVE, "interior", fresh, 16, BATCH, power=4, offset=0)
    pools = compiled(jax.vmap(lambda key: fresh(jax.random.split(key)[0])))(keys(50))
    for points, pool in zip(draws(rad, keys(50), THETA), pools, strict=True):
        assert len(np.unique(places(points, pool))) == 16
        assert np.linalg.norm(points, axis=1).mean() > np.linalg.norm(pool, axis=1).mean()  # where z is large


def test_a_large_pool_is_evaluated_in_chunks(monkeypatch):
    monkeypatch.setattr(_adaptive, "CHUNK", 5)
    residual = _adaptive.Residual(OBJECTIVE, "interior", BATCH)
    np.testing.assert_allclose(residual(THETA, jnp.asarray(POOL)), SIZES, rtol=1e-14)
    in_one, in_chunks = (str(jax.make_jaxpr(lambda x: residual(THETA, x))(POOL[:count])) for count in (5, 12))
    assert "f64[5,2]" in in_one and "scan" not in in_one
    assert "scan" in in_chunks and "f64[2,5,2]" in in_chunks  # two whole ones, and the two points that are left


@pytest.mark.parametrize("replace", [False, True])
def test_importance_weights_are_unbiased(replace):
    f = np.sin(3 * POOL[:, 0]) + POOL[:, 1] ** 2
    for seed in range(5):
        p = np.random.default_rng(seed).gamma(2.0, size=12) + 0.3  # no rare and heavy points
        points, weights = sample(keys(2000, seed), jnp.asarray(p), 5, replace)
        for g in (f, np.ones(12)):
            for number in (200, 2000):
                estimates = np.sum(weights * g[places(points)], axis=1)[:number]
                assert abs(estimates.mean() - g.mean()) < 4 * estimates.std() / np.sqrt(number)
        if replace:
            np.testing.assert_allclose(weights, p.sum() / (5 * 12 * p[places(points)]), rtol=1e-12)
    # a density like f: nearly no noise, and far less than that of uniform points
    loss = SIZES**2
    spread = {}
    for name, p in (("like f", loss + 0.01), ("uniform", np.ones(12))):
        points, weights = sample(keys(2000), jnp.asarray(p), 5, replace)
        spread[name] = np.std(np.sum(weights * loss[places(points)], axis=1))
    assert spread["like f"] < 0.6 * spread["uniform"]


def test_importance_sampling_leaves_out_what_has_no_density():
    p = np.where(np.arange(12) < 3, 1.0, 0.0)
    points, weights = sample(keys(50), jnp.asarray(p), 2, True)
    assert (places(points) < 3).all() and np.isfinite(weights).all()
    points, weights = sample(keys(50), jnp.asarray(p), 5, False)  # more than have a density
    for which, w in zip(places(points), weights, strict=True):
        assert sorted(which[w > 0]) == [0, 1, 2]
        np.testing.assert_allclose(np.sort(w), [0, 0, 1 / 12, 1 / 12, 1 / 12])


def test_rad_with_importance_keeps_the_loss():
    rad = RAD(OBJECTIVE, "interior", POOL, 4, BATCH, importance=True)
    value, grad = exact_loss(POOL), exact_loss(POOL) * 2 / 1.5

    @compiled
    def losses(rad):
        one = lambda key: jax.value_and_grad(OBJECTIVE.bind(rad.draw(key, THETA, ())[0]))(THETA)
        return jax.vmap(one)(keys(2000))

    for got, want in zip(losses(rad), (value, grad), strict=True):
        assert abs(np.mean(got) - want) < 4 * np.std(got) / np.sqrt(2000)
    plain, _ = losses(RAD(OBJECTIVE, "interior", POOL, 4, BATCH))
    assert np.mean(plain) > value + 4 * np.std(plain) / np.sqrt(2000)  # the emphasis of the paper


def test_r3_keeps_what_is_above_the_mean():
    fresh = Shifted(Box((-1, -1), (1, 1)), 50, "uniform")
    r3 = R3(OBJECTIVE, "interior", fresh, BATCH)
    state = r3.init(jax.random.key(0))
    np.testing.assert_array_equal(state.points, fresh(jax.random.key(0)))
    population, initial = np.asarray(state.points), np.asarray(state.points)
    for key in keys(30, 1):
        batch, state = draw(r3, key, THETA, state)
        sizes = 1.5 * np.linalg.norm(population, axis=1)
        population = np.where((sizes > sizes.mean())[:, None], population, fresh(key))
        np.testing.assert_allclose(batch["interior"], population, rtol=1e-14)
        np.testing.assert_array_equal(batch["interior"], state.points)
        np.testing.assert_array_equal(batch["boundary"], TIES)
    # the points have gone to where the residual is large
    assert np.linalg.norm(population, axis=1).mean() > 1.2 * np.linalg.norm(initial, axis=1).mean()


def test_rard_grows_until_it_is_full():
    start, loss = RNG.normal(size=(4, 2)), jax.jit(lambda batch: OBJECTIVE.bind(batch)(THETA))
    rard = RARD(OBJECTIVE, "interior", POOL, 3, BATCH, start=start, capacity=12)
    key = jax.random.key(0)
    state = rard.init(key)
    assert int(state.used) == 0 and state.used.dtype == jnp.int32
    known = start
    for key, used in zip(keys(5), (4, 7, 10, 12, 12), strict=True):
        batch, state = draw(rard, key, THETA, state)
        points, weights = batch["interior"]
        assert points.shape == (12, 2) and int(state.used) == used
        np.testing.assert_array_equal(points[: len(known)], known)  # what was there stays
        assert len(np.unique(places(points[len(known) : used]))) == used - len(known)
        known = points[:used]
        np.testing.assert_allclose(weights, np.where(np.arange(12) < used, 1 / used, 0), rtol=1e-15)
        np.testing.assert_allclose(loss(batch), exact_loss(known), rtol=1e-13)
    # the additions follow the density
    rard = RARD(OBJECTIVE, "interior", POOL, 1, BATCH, start=start, capacity=5)
    second = rard.init(key)._replace(used=jnp.int32(4))
    added = compiled(jax.vmap(lambda key: rard.draw(key, THETA, second)[1].points[4]))(keys(3000))
    check_counts(places(added), rad_density(SIZES, 2, 0))


def test_residuals_that_are_not_finite_count_as_zero():
    objective = so.Objective(interior=so.Term(lambda theta, x: theta * jnp.sqrt(x[0]) / (x[1] - 1)))
    pool = np.array([[4.0, 2.0], [-1.0, 0.0], [9.0, 2.0], [1.0, 1.0]])  # |z| = 2, NaN, 3, inf
    for importance in (False, True):
        rad = RAD(objective, "interior", pool, 1, replace=True, importance=importance)
        drawn = draws(rad, keys(4000), jnp.float64(1.0))
        check_counts(places(drawn[0] if importance else drawn, pool), rad_density(np.array([2.0, 0, 3, 0]), 1, 1))
    r3 = R3(objective, "interior", lambda key: jnp.full((4, 2), 7.0))
    _, state = draw(r3, jax.random.key(0), jnp.float64(1.0), r3.init(jax.random.key(0))._replace(points=pool))
    np.testing.assert_array_equal(state.points, [[4, 2], [7, 7], [9, 2], [7, 7]])  # the mean is 5 / 4
    rad = RAD(OBJECTIVE, "interior", POOL, 1, BATCH, power=4, offset=0)
    for theta in (jnp.nan, 0.0):  # nowhere finite, or zero everywhere: uniform
        check_counts(places(draws(rad, keys(2000), jnp.float64(theta))), np.full(12, 1 / 12))
    # powers that overflow
    check_counts(places(draws(rad, keys(2000), jnp.float64(1e150))), rad_density(SIZES, 4, 0))


SAMPLERS = {
    "RAD": lambda pool: RAD(OBJECTIVE, "interior", pool, 6, BATCH, importance=True),
    "RARD": lambda pool: RARD(OBJECTIVE, "interior", pool, 2, BATCH, start=pool[:4], capacity=9),
    "R3": lambda pool: R3(OBJECTIVE, "interior", RandomPool(pool, 6), BATCH),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_scan_dtypes_and_traces(name):
    traces = []

    @eqx.filter_jit
    def run(sampler, key, theta):
        traces.append(None)

        def body(state, key):
            batch, state = sampler.draw(key, theta, state)
            return state, (OBJECTIVE.bind(batch)(theta), batch["interior"])

        return jax.lax.scan(body, sampler.init(key), jax.random.split(key, 4))

    dtype = jnp.float32
    theta, sampler = THETA.astype(dtype), SAMPLERS[name](jnp.asarray(POOL, dtype))
    state, (losses, entries) = run(sampler, jax.random.key(0), theta)
    assert losses.dtype == dtype and np.isfinite(losses).all()
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} <= {jnp.dtype(dtype), jnp.dtype("int32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(entries)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(run(sampler, jax.random.key(0), theta)[1][0], losses)
    assert not np.array_equal(run(sampler, jax.random.key(1), theta)[1][0], losses)
    if name != "R3":
        other = eqx.tree_at(lambda s: s.power, sampler, jnp.asarray(9.0, sampler.power.dtype))
        assert not np.array_equal(run(other, jax.random.key(0), theta)[1][0], losses)
    run(sampler, jax.random.key(1), 2 * theta)
    assert len(traces) == 1  # neither for another key, nor another model, nor another power


def test_a_run_carries_the_set_that_grows():
    rard = RARD(OBJECTIVE, "interior", Shifted(Box((0, 0), (1, 1)), 32), 3, BATCH, start=POOL[:4], capacity=12)
    options = dict(steps=7, resample_every=2, key=jax.random.key(0))
    result = jax.jit(lambda theta: so.train(theta, OBJECTIVE, optax.sgd(0.1), rard, **options))(THETA)
    (batch, state), losses = result.state.sampled, result.history["loss"]
    assert int(state.used) == 12  # drawn at steps 0, 2, 4 and 6; the buffer is full
    np.testing.assert_allclose(losses[0], exact_loss(POOL[:4]))
    np.testing.assert_array_equal(batch["interior"].points, state.points)
    assert np.isfinite(losses).all() and losses[-1] < losses[0] and abs(result.params) < THETA


def test_points_may_be_any_pytree_and_the_model_a_network():
    objective = so.Objective(
        interior=so.Term(small.value),
        pair=so.Term(lambda u, pair: u(pair["left"]) - u(pair["right"]) + pair["jump"]),
    )
    left = RNG.uniform(size=(40, 2))
    pool = {"left": left, "right": left[:, ::-1].copy(), "jump": np.linspace(0, 50, 40)}
    rad = RAD(objective, "pair", pool, 8, {"interior": small.grid(3)}, power=8, offset=0)
    r3 = R3(objective, "pair", RandomPool(pool, 20), {"interior": small.grid(3)})

    @compiled
    def run(model):
        z = jax.vmap(lambda point: objective.terms["pair"].inner(model, point))(pool)
        kept, _ = r3.draw(jax.random.key(0), model, r3.init(jax.random.key(1)))
        return rad.draw(jax.random.key(0), model, ())[0], kept, rad.residual(model, pool), z

    batch, kept, sizes, z = run(small.network())
    for entry, count in ((batch["pair"], 8), (kept["pair"], 20)):
        assert jax.tree.map(jnp.shape, entry) == {"left": (count, 2), "right": (count, 2), "jump": (count,)}
        which = places(entry["left"], left)
        np.testing.assert_array_equal(entry["right"], pool["right"][which])
        np.testing.assert_array_equal(entry["jump"], pool["jump"][which])
    assert batch["pair"]["jump"].min() > 15  # p ~ jump^8
    np.testing.assert_allclose(sizes, np.abs(z), rtol=1e-12)


@pytest.mark.bad_input
def test_errors():
    with pytest.raises(ValueError, match="Did you mean 'interior'"):
        RAD(OBJECTIVE, "interor", POOL, 4, BATCH)
    with pytest.raises(ValueError, match=r"batch lacks the entries \['boundary'\]"):
        R3(OBJECTIVE, "interior", lambda key: POOL)
    with pytest.raises(ValueError, match="the sampler brings those of 'interior'"):
        RAD(OBJECTIVE, "interior", POOL, 4, BATCH | {"interior": POOL})
    with pytest.raises(ValueError, match="power must be greater than 0, got 0"):
        RAD(OBJECTIVE, "interior", POOL, 4, BATCH, power=0)
    with pytest.raises(ValueError, match="offset must be at least 0, got -1"):
        RARD(OBJECTIVE, "interior", POOL, 4, BATCH, start=POOL, capacity=20, offset=-1)
    with pytest.raises(ValueError, match="capacity must be at least the 12 points of the start, got 5"):
        RARD(OBJECTIVE, "interior", POOL, 4, BATCH, start=POOL, capacity=5)
    with pytest.raises(TypeError, match="must be a function `key -> points`, got ndarray"):
        R3(OBJECTIVE, "interior", POOL, BATCH)
    with pytest.raises(ValueError, match="count=13 different points cannot be drawn from a pool of 12"):
        RAD(OBJECTIVE, "interior", POOL, 13, BATCH).draw(jax.random.key(0), THETA, ())
    with pytest.raises(TypeError, match="plain points, not Weighted"):
        RAD(OBJECTIVE, "interior", so.Weighted(POOL, np.ones(12)), 4, BATCH).draw(jax.random.key(0), THETA, ())
    product = so.Objective(field=so.Term(so.Product(lambda m, f: f, lambda m, y: y)))
    with pytest.raises(TypeError, match="'field' is a Product"):
        RAD(product, "field", POOL, 4)
    with pytest.raises(ValueError, match=r"density must have shape \(12,\), one number a point, got \(5,\)"):
        importance_sampled(jax.random.key(0), POOL, jnp.ones(5), 3)
