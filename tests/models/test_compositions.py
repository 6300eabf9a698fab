"""What the models promise beyond their formulas: exact conditions, starts, windows, slabs, spreads; and errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sciml_opt as so
from sciml_opt.models import (
    FBPINN,
    MLP,
    AdaptiveTanh,
    Chain,
    FourierFeatures,
    HardConstraint,
    ModifiedMLP,
    PeriodicEmbedding,
    PirateNet,
    ResNet,
    Separable,
    Sine,
    TimeSlabs,
    ensemble,
    siren,
)

KEY = jax.random.key(0)
NET = MLP(2, layers=(4,), key=KEY)


def trained(model):
    return eqx.filter(model, eqx.is_inexact_array)


def fit_error(features, target):
    """The relative error of the best combination of features: what a fresh network can already represent."""
    coefficients = np.linalg.lstsq(features, target, rcond=1e-10)[0]
    return np.linalg.norm(features @ coefficients - target) / np.linalg.norm(target)


def hidden(net, X):
    """The last hidden layer of a tanh network with one, at the points X."""
    return np.tanh(X @ np.asarray(net.weights[0]).T + np.asarray(net.biases[0]))


class TestMLP:
    def test_one_slope_for_all_layers_is_one_leaf(self):
        model = MLP(2, layers=(4, 4), activation=AdaptiveTanh(scale=5.0), key=KEY)
        assert model.activation.slope.shape == () and len(jax.tree.leaves(model)) == 7
        plain = MLP(2, layers=(4, 4), key=KEY)
        np.testing.assert_allclose(model(jnp.ones(2)), plain(jnp.ones(2)), rtol=1e-14)  # at the start

    def test_slopes_get_the_dtype_of_the_weights(self):
        model = MLP(2, layers=(4,), activation=[AdaptiveTanh(4)], key=KEY, dtype=jnp.float32)
        assert {a.dtype for a in jax.tree.leaves(model)} == {jnp.dtype("float32")}

    def test_models_of_one_activation_have_one_structure(self):
        for make in (lambda key: MLP(2, key=key), lambda key: siren(2, key=key)):
            first, second = (jax.tree.structure(make(jax.random.key(seed))) for seed in range(2))
            assert first == second

    @pytest.mark.parametrize("seed", range(5))
    def test_siren_keeps_its_variance_through_depth(self, seed):
        net = siren(3, 4, (256, 256, 256), omega=30.0, key=jax.random.key(seed))
        weights, biases = jax.tree.map(np.asarray, (net.weights, net.biases))
        assert np.abs(weights[0]).max() <= 1 / 3 and np.abs(biases[0]).max() <= 3**-0.5
        assert all(np.abs(W).max() <= np.sqrt(6 / 256) / 30 for W in weights[1:])
        h = np.random.default_rng(seed).uniform(-1, 1, (3, 200))
        for layer in range(3):
            argument = 30 * weights[layer] @ h
            if layer:
                assert abs(argument.var() - 1) < 0.1
            h = np.sin(argument + 30 * biases[layer][:, None])


class TestFourierFeatures:
    def test_what_is_not_trained_is_no_parameter(self):
        fixed, free = (FourierFeatures(2, 3, 1.0, trainable, key=KEY) for trainable in (False, True))
        assert not jax.tree.leaves(trained(fixed)) and len(jax.tree.leaves(trained(free))) == 1
        np.testing.assert_array_equal(fixed.B, free.B)
        assert fixed.out_size == 6 and jax.jit(lambda m: m.B)(fixed).dtype == jnp.float64

    def test_scale(self):
        B = FourierFeatures(10, 500, 3.0, key=KEY).B
        assert abs(np.std(B) / 3 - 1) < 5 / np.sqrt(2 * B.size)

    @pytest.mark.parametrize("seed", range(5))
    def test_they_hold_high_frequencies_from_the_start(self, seed):
        x = np.linspace(0, 1, 200)[:, None]
        target = np.sin(2 * np.pi * 8 * x[:, 0])
        phase = 2 * np.pi * x @ np.asarray(FourierFeatures(1, 32, 5.0, key=jax.random.key(seed)).B).T
        waves = np.hstack([np.cos(phase), np.sin(phase)])
        plain = hidden(MLP(1, layers=(64,), key=jax.random.key(seed)), x)
        assert fit_error(waves, target) < 1e-3 < 0.5 < fit_error(plain, target)


def test_periodic_with_all_derivatives():
    embedding = PeriodicEmbedding(3, {-1: 2.0, 0: 0.5}, bounds={1: (1.0, 3.0)})
    assert embedding.out_size == 5
    model = Chain(embedding, MLP(5, layers=(4,), key=KEY), jnp.exp)
    both = jax.jit(lambda x: (model(x), jax.grad(model)(x), embedding(x)))
    x = jnp.array([0.1, 1.5, 0.3])
    value, slope, waves = both(x)
    for shift in ([0.5, 0, 0], [0, 0, 2.0]):
        moved = both(x + jnp.array(shift))
        np.testing.assert_allclose(moved[0], value, rtol=1e-13)
        np.testing.assert_allclose(moved[1], slope, rtol=1e-12)
    angle = 2 * np.pi * np.array([0.2, 0.15])
    expected = [np.cos(angle[0]), np.sin(angle[0]), -0.5, np.cos(angle[1]), np.sin(angle[1])]
    np.testing.assert_allclose(waves, expected, rtol=1e-14)


def test_hard_constraint_holds_for_any_parameters():
    net = MLP(2, 2, (4,), key=KEY)
    distance = lambda x: jnp.stack([x[0] * (1 - x[0]), x[1] ** 2])
    model = HardConstraint(net, distance, lambda x: jnp.stack([x[1], jnp.cos(x[0])]))
    assert jax.tree.structure(trained(model).net) == jax.tree.structure(trained(net))
    both = jax.jit(lambda x: (model(x), jax.jacfwd(model)(x)))
    for x in (0.0, 1.0):
        np.testing.assert_allclose(both(jnp.array([x, 0.3]))[0][0], 0.3, rtol=1e-15)
    value, slope = both(jnp.array([0.4, 0.0]))
    np.testing.assert_allclose(value[1], np.cos(0.4), rtol=1e-15)
    assert slope[1, 1] == 0  # a distance of second order holds the slope of the lift, too
    zero = HardConstraint(net, lambda x: 2.0)
    np.testing.assert_allclose(zero(jnp.ones(2)), 2 * net(jnp.ones(2)))


def test_a_fresh_pirate_net_is_linear_in_its_embedding_and_trains():
    keys = jax.random.split(KEY)
    features = FourierFeatures(1, 4, 1.0, key=keys[0])
    model = Chain(features, PirateNet(8, layers=(8, 8), key=keys[1]))
    x = jnp.array([0.3])
    np.testing.assert_allclose(model(x), (model.maps[1].weights[-1] @ features(x))[0], rtol=1e-14)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    objective = so.Objective(data=so.Term(lambda u, x: u(x) - jnp.abs(x[0])))
    batch = {"data": jnp.linspace(-1, 1, 21)[:, None]}
    start = objective.bind(batch, static=static)(params)
    run = jax.jit(lambda p: so.train(p, objective, optax.adam(1e-2), batch, steps=200, static=static))
    with jax.numpy_dtype_promotion("standard"):  # for optax
        result = run(params)
    assert result.loss < 0.05 * start
    end = eqx.combine(result.params, static)
    assert np.all(np.asarray(end.maps[1].alphas) != 0)
    np.testing.assert_array_equal(end.maps[0].B, features.B)


@pytest.mark.parametrize("out_size, shape", [("scalar", ()), (3, (3,))])
@pytest.mark.parametrize("make", [ModifiedMLP, PirateNet, ResNet, Separable, FBPINN])
def test_output_shape(make, out_size, shape):
    first = ((0.0, 1.0), (0.0, 1.0)) if make is FBPINN else 2
    model = jax.eval_shape(lambda key: make(first, out_size, layers=(4, 4), key=key), KEY)
    assert jax.eval_shape(lambda model, x: model(x), model, jnp.zeros(2)).shape == shape


def test_separable_is_a_sum_of_products():
    """The values on a grid are a matrix of rank R."""
    model = Separable(2, layers=(8,), rank=2, key=KEY)
    side = jnp.linspace(-2, 2, 7)
    values = jax.jit(jax.vmap(jax.vmap(lambda a, b: model(jnp.stack([a, b])), (None, 0)), (0, None)))(side, side)
    singular = np.linalg.svd(values, compute_uv=False)
    assert np.all(singular[:2] > 1e-6) and np.all(singular[2:] < 1e-14)


class TestFBPINN:
    model = FBPINN(((0.0, 1.0), (-1.0, 1.0)), layers=(4,), levels=(1, (4, 3)), overlap=2.5, key=KEY)

    def test_windows_are_a_partition_of_unity_on_their_boxes(self):
        X = np.random.default_rng(0).uniform([0, -1], [1, 1], (50, 2))
        windows, slopes = jax.jit(jax.vmap(lambda x: (self.model.windows(x), jax.jacfwd(self.model.windows)(x))))(X)
        np.testing.assert_allclose(np.sum(windows, axis=1), 1, rtol=1e-14)
        np.testing.assert_allclose(np.sum(slopes, axis=1), 0, atol=1e-12)
        lower, upper = np.moveaxis(self.model.boxes, -1, 0)
        inside = np.all((X[:, None] > lower) & (X[:, None] < upper), axis=2)
        np.testing.assert_array_equal(np.asarray(windows) > 0, inside)
        assert self.model.boxes.shape == (13, 2, 2) and inside.sum(1).max() > 5

    def test_a_subdomain_acts_in_its_box_only(self):
        j = 6
        moved = eqx.tree_at(lambda m: m.networks.biases[-1], self.model, replace_fn=lambda b: b.at[j].add(1.0))
        X = np.random.default_rng(0).uniform([0, -1], [1, 1], (50, 2))
        change, window = jax.jit(
            lambda a, b: jax.vmap(lambda x: (b(x) - a(x), a.windows(x)[j]))(X),
        )(self.model, moved)
        np.testing.assert_allclose(change, window, atol=1e-14)
        assert 0 < np.count_nonzero(window) < 50

    @pytest.mark.parametrize("seed", range(5))
    def test_high_frequencies_are_low_ones_in_a_window(self, seed):
        """24 windows of 8 neurons, against one network of 192."""
        x = np.linspace(0, 1, 400)[:, None]
        target = np.sin(2 * np.pi * 12 * x[:, 0])
        model = FBPINN(((0.0, 1.0),), layers=(8,), levels=(24,), overlap=1.9, key=jax.random.key(seed))
        bias = np.random.default_rng(seed).uniform(-1, 1, (24, 8))
        lower, upper = model.boxes[:, 0].T
        s = (2 * x - lower - upper) / (upper - lower)
        w = np.where(np.abs(s) < 1, np.cos(np.pi / 2 * s) ** 4, 0)
        w /= w.sum(1, keepdims=True)
        local = np.tanh(s[..., None] * np.asarray(model.networks.weights[0])[:, :, 0] + bias)
        one = np.tanh(x * np.asarray(MLP(1, layers=(192,), key=jax.random.key(seed)).weights[0])[:, 0] + bias.ravel())
        assert fit_error((w[..., None] * local).reshape(400, -1), target) < 1e-3 < 0.5 < fit_error(one, target)


class TestTimeSlabs:
    models = tuple(MLP(2, layers=(4,), key=key) for key in jax.random.split(KEY, 3))

    def test_every_slab_has_its_time_and_the_ends_go_on(self):
        apply = jax.jit(lambda model, x: model(x))
        whole = TimeSlabs(self.models, 0.5)
        for t, j in [(-0.1, 0), (0.0, 0), (0.49, 0), (0.5, 1), (1.2, 2), (1.5, 2), (1.7, 2)]:
            expected = apply(self.models[j], jnp.array([0.3, t - 0.5 * j]))
            np.testing.assert_allclose(apply(whole, jnp.array([0.3, t])), expected, rtol=1e-13)

    def test_the_time_may_be_any_axis(self):
        whole = TimeSlabs(self.models, 0.5, axis=0)
        assert whole.count == 3
        np.testing.assert_allclose(whole(jnp.array([0.7, 0.3])), self.models[1](jnp.array([0.2, 0.3])), rtol=1e-13)

    def test_a_time_that_is_no_number_shows(self):
        assert np.isnan(TimeSlabs(self.models, 0.5)(jnp.array([0.3, np.nan])))


def test_ensemble_of_frozen_features():
    """Every member draws its own, also what is not trained."""

    def make(key):
        keys = jax.random.split(key)
        return Chain(FourierFeatures(1, 2, 1.0, key=keys[0]), MLP(4, 2, (4,), key=keys[1]))

    keys = jax.random.split(KEY, 3)
    model, x = ensemble(make, keys), jnp.array([0.4])
    each = np.stack([make(key)(x) for key in keys])
    mean, std, predictions = jax.jit(lambda m: (m(x), m.std(x), m.predictions(x)))(model)
    np.testing.assert_allclose(predictions, each, rtol=1e-13)
    np.testing.assert_allclose(mean, each.mean(0), rtol=1e-13)
    np.testing.assert_allclose(std, each.std(0, ddof=1), rtol=1e-12)
    assert len(np.unique(np.asarray(model.members.maps[0].frequencies.bits))) == 6


BOX = ((0.0, 1.0),)
ERRORS = [
    (lambda: MLP(2, layers=(4, 4), activation=[jnp.tanh], key=KEY), ValueError, "one a hidden layer: 2, got 1"),
    (lambda: MLP(2, activation="tanh", key=KEY), ValueError, "one a hidden layer"),
    (lambda: MLP(2, activation=3, key=KEY), TypeError, r"MLP\(activation=...\) must be a model or a function, got int"),
    (lambda: AdaptiveTanh(0), ValueError, r"AdaptiveTanh\(size=...\) must be positive"),
    (lambda: AdaptiveTanh(scale=-1.0), ValueError, r"AdaptiveTanh\(scale=...\) must be a finite number greater than 0"),
    (lambda: Sine(np.nan), ValueError, r"Sine\(omega=...\).*got nan"),
    (lambda: siren(2, omega="high", key=KEY), ValueError, "omega=.*got 'high'"),
    (lambda: siren(2, layers=(), key=KEY), ValueError, "at least one hidden width"),
    (lambda: ModifiedMLP(2, layers=(4, 5), key=KEY), ValueError, r"ModifiedMLP\(layers=...\) must have equal widths"),
    (lambda: ResNet(2, layers=(4, 5), key=KEY), ValueError, r"ResNet.*equal widths.*\(4, 5\)"),
    (lambda: PirateNet(2, layers=(4, 5), key=KEY), ValueError, "PirateNet.*equal widths"),
    (lambda: PirateNet(2, dtype=int, key=KEY), TypeError, "PirateNet.*floating dtype"),
    (lambda: ResNet(2.5, key=KEY), TypeError, r"ResNet\(in_size=...\) must hold integers"),
    (lambda: Separable(2, rank=0, key=KEY), ValueError, r"Separable\(rank=...\) must be positive"),
    (lambda: FourierFeatures(2, 0, 1.0, key=KEY), ValueError, r"count=...\) must be positive"),
    (lambda: FourierFeatures(2, 3, 0.0, key=KEY), ValueError, r"scale=...\) must be a finite number greater than 0"),
    (lambda: FourierFeatures(2, 3, 1.0, key=KEY, dtype="float16"), TypeError, "float32 or float64"),
    (lambda: FourierFeatures(2, 3, 1.0, key=KEY)(jnp.zeros(3)), ValueError, r"ONE point, of shape \(2,\)"),
    (lambda: PeriodicEmbedding(2, {2: 1.0}), ValueError, r"periods=...\) must name one of the 2 coordinates, got 2"),
    (lambda: PeriodicEmbedding(2, {0: -1.0}), ValueError, "greater than 0, got -1.0"),
    (lambda: PeriodicEmbedding(2, {0: 1.0}, bounds={-2: (0, 1)}), ValueError, r"axes \[0\] are periodic"),
    (lambda: PeriodicEmbedding(2, {0: 1.0}, bounds={1: (1, 1)}), ValueError, "a < b"),
    (lambda: Chain(), ValueError, "at least one map"),
    (lambda: Chain(NET, 3), TypeError, "must be a model or a function, got int"),
    (lambda: HardConstraint(NET, 1.0), TypeError, r"HardConstraint\(distance=...\) must be a model or a function"),
    (lambda: HardConstraint(NET, lambda x: x)(jnp.zeros(2)), ValueError, r"distance=...\) must return.*got \(2,\)"),
    (lambda: HardConstraint(NET, jnp.sum, lambda x: x)(jnp.zeros(2)), ValueError, r"lift=...\) must return"),
    (lambda: FBPINN((), key=KEY), ValueError, "at least one dimension"),
    (lambda: FBPINN(BOX, levels=(), key=KEY), ValueError, "at least one level"),
    (lambda: FBPINN(BOX, levels=((2, 2),), key=KEY), ValueError, "one a dimension: 1"),
    (lambda: FBPINN(BOX, overlap=1.0, key=KEY), ValueError, r"overlap=...\) must be a finite number greater than 1"),
    (lambda: FBPINN(((1.0, 0.0),), key=KEY), ValueError, "a < b"),
    (lambda: TimeSlabs([], 1.0), ValueError, r"TimeSlabs\(models=...\) must hold at least one"),
    (lambda: TimeSlabs([NET, MLP(2, layers=(5,), key=KEY)], 1.0), ValueError, "one structure"),
    (lambda: TimeSlabs([NET, MLP(2, layers=(4,), activation=jnp.sin, key=KEY)], 1.0), ValueError, "one structure"),
    (lambda: TimeSlabs([NET], 0.0), ValueError, r"length=...\) must be a finite number greater than 0"),
    (lambda: TimeSlabs([NET], 1.0, axis=2)(jnp.zeros(2)), ValueError, r"axis=...\) must name one of the 2 coordinates"),
    (lambda: ensemble(lambda key: NET, jax.random.split(KEY, 1)), ValueError, "at least two keys"),
    (lambda: ensemble(lambda key: NET, KEY), ValueError, "at least two keys"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize("case", range(len(ERRORS)))
def test_errors(case):
    make, error, words = ERRORS[case]
    with pytest.raises(error, match=words):
        make()
