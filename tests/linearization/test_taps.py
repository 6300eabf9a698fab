"""The tap against dense rows: every way in which a residual may use its parameters, as a table.

Asserted of each: the rows are those of `vmap(jacrev)`, and the leaves took the path that they should, so that a weight
that silently falls back fails here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sciml_opt.linearization._explain import explain_tapped
from sciml_opt.linearization._point_rows import point_rows
from sciml_opt.linearization._taps import Tapped

D, H, N = 2, 3, 4  # coordinates, width, points
# Hundreds of programs are compiled and each is run once.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
CASES = {}


def case(paths, points=None, **shapes):
    """A residual `f(params, point)`, the shapes of its parameters and the path of each, `"factored"` for most."""

    def register(f):
        expected = (
            dict.fromkeys(shapes, "factored") | paths if isinstance(paths, dict) else dict.fromkeys(shapes, paths)
        )
        assert f.__name__ not in CASES
        CASES[f.__name__] = (f, shapes, expected, points)
        return f

    return register


def draw(shape, seed, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(dtype))


def assemble(name):
    f, shapes, expected, points = CASES[name]
    params = {k: draw(shape, i) for i, (k, shape) in enumerate(shapes.items())}
    return lambda p, x: jnp.atleast_1d(f(p, x)), params, draw((N, D), 99) if points is None else points(), expected


def mlp(p, x):
    return p["V"] @ jnp.tanh(p["W"] @ x + p["b"])


MLP = {"W": (H, D), "b": (H,), "V": (H,)}


def laplacian(u, x):
    return jnp.trace(jax.hessian(u)(x))


@case({"b": "dense"}, **MLP)
def network(p, x):
    return mlp(p, x)


@case({"b": "dense"}, **MLP)
def network_gradient(p, x):
    return jax.grad(mlp, 1)(p, x)


@case({"b": "dense"}, **MLP)
def poisson(p, x):
    return laplacian(lambda y: mlp(p, y), x) + mlp(p, x) ** 3


@case({"b": "dense"}, W=(H, D), b=(H,), V=(2, H))
def vector_output(p, x):
    return jax.jacfwd(lambda y: p["V"] @ jnp.sin(p["W"] @ y + p["b"]))(x).reshape(-1)


@case({"b": "dense"}, lambda: (draw((N, D), 1), draw((N, D), 2)), **MLP)
def periodic_pair(p, pair):
    return mlp(p, pair[0]) - mlp(p, pair[1])


@case("factored", W=(D, D), V=(D,))
def shared_by_layers(p, x):
    return p["V"] @ jnp.tanh(p["W"] @ jnp.tanh(p["W"] @ jnp.tanh(p["W"] @ x)))


@case("factored", W=(D, D), V=(D,))
def weight_and_its_transpose(p, x):
    return p["V"] @ jnp.tanh(p["W"].T @ jnp.tanh(p["W"] @ x))


@case("pulled back", W=(D, D))
def reshape_that_transposes(p, x):
    return jnp.sum(jax.lax.reshape(p["W"], (D, D), (1, 0)) @ x * jnp.arange(1.0, D + 1))


@case({"W": "dense"}, W=(D, D))
def long_scan_of_calls(p, x):
    layers = jax.jit(lambda h: functools.reduce(lambda h, _: jnp.tanh(p["W"] @ h), range(10), h))
    return jax.lax.scan(lambda h, _: (layers(h), None), x, length=200)[0]


@case("factored", W=(H, H))
def quadratic_form(p, x):
    h = jnp.concatenate([x, x[:1]])
    return h @ p["W"] @ jnp.sin(h)


@case({"W": "dense"}, W=(H, D), V=(H,))
def product_and_elementwise(p, x):
    return p["V"] @ (p["W"] @ x) + jnp.sum(jnp.sin(p["W"] * x[None]))


@case({"W": "factored + pulled back"}, W=(H, D), V=(H,))
def product_and_weight_decay(p, x):
    return p["V"] @ jnp.tanh(p["W"] @ x) + jnp.sum(p["W"] ** 2) * x[0]


@case({"W": "dense"}, W=(H, D))
def both_operands(p, x):
    y = p["W"] * x[0]
    return jnp.trace(y.T @ y)


@case({"U": "pulled back", "L": "pulled back"}, U=(H, 1), L=(1, D), V=(H,))
def low_rank(p, x):
    return p["V"] @ jnp.tanh((p["U"] @ p["L"]) @ x)


@case({"U": "factored", "L": "factored"}, U=(H, 1), L=(1, D), V=(H,))
def low_rank_applied_in_turn(p, x):
    return p["V"] @ jnp.tanh(p["U"] @ (p["L"] @ x))


@case({"W": "pulled back", "g": "pulled back"}, W=(H, D), g=(H,), V=(H,))
def weight_normalisation(p, x):
    w = p["g"][:, None] * p["W"] / jnp.linalg.norm(p["W"], axis=1, keepdims=True)
    return laplacian(lambda y: p["V"] @ jnp.tanh(w @ y), x)


@case({"W": "pulled back", "s": "pulled back"}, W=(H, D), s=(H,), V=(H,))
def random_weight_factorisation(p, x):
    return laplacian(lambda y: p["V"] @ jnp.tanh((jnp.exp(p["s"])[:, None] * p["W"]) @ y), x)


@case({"W": "pulled back"}, W=(20, 20), V=(20,))
def spectral_norm(p, x):
    v = jnp.ones(20)
    for _ in range(3):
        v = p["W"].T @ (p["W"] @ v)
        v = v / jnp.linalg.norm(v)
    return p["V"] @ jnp.tanh(p["W"] / jnp.linalg.norm(p["W"] @ v) @ jnp.tile(x, 10))


@case({"W": "pulled back"}, W=(20, 20), V=(20,))
def spectral_norm_by_a_loop(p, x):
    def step(_, v):
        v = p["W"].T @ (p["W"] @ v)
        return v / jnp.linalg.norm(v)

    v = lax.fori_loop(0, 5, step, jnp.ones(20))
    return p["V"] @ jnp.tanh(p["W"] / jnp.linalg.norm(p["W"] @ v) @ jnp.tile(x, 10))


@case("factored", W=(H, D), V=(H,))
def ntk_scaling(p, x):
    return (p["V"] / jnp.sqrt(3.0)) @ jnp.tanh(-(p["W"] * 0.5) @ x)


@case({"b": "dense"}, theta=(H * D + H,), b=(H,))
def flat_vector(p, x):
    w, v = p["theta"][: H * D].reshape(H, D), p["theta"][H * D :]
    return laplacian(lambda y: v @ jnp.tanh(w @ y + p["b"]), x)


@case("factored", W=(3, D, D), V=(D,))
def stacked(p, x):
    for k in range(3):
        x = jnp.tanh(p["W"][k] @ x)
    return p["V"] @ x


@case("factored", A=(1, D), B=(2, D), V=(H,))
def concatenated(p, x):
    return p["V"] @ jnp.tanh(jnp.concatenate([p["A"], p["B"]]) @ x)


@case({"W": "pulled back"}, W=(2, D), V=(4,))
def concatenated_with_itself(p, x):
    return p["V"] @ jnp.tanh(jnp.concatenate([p["W"], p["W"]]) @ x)


@case("factored", W=(4, D), V=(2,))
def sliced_with_overlap(p, x):
    return p["V"] @ jnp.tanh(p["W"][:2] @ x) + jnp.sum(jnp.tanh(p["W"][1:3] @ x)) + jnp.sum(jnp.sin(p["W"] @ x))


@case("factored", W=(4, D), V=(2,))
def strided_and_reversed(p, x):
    return p["V"] @ jnp.tanh(p["W"][::2] @ x) + p["V"] @ jnp.tanh(p["W"][::-1][:2] @ x)


@case({"W": "pulled back"}, W=(4, D), V=(2,))
def gathered_rows(p, x):
    return p["V"] @ jnp.tanh(p["W"][jnp.array([2, 2])] @ x)


@case({"W": "pulled back"}, W=(H, H), V=(H,))
def triangular(p, x):
    return p["V"] @ jnp.tanh(jnp.tril(p["W"]) @ jnp.concatenate([x, x[:1]]))


@case("factored", W=(3, D, D), V=(D,))
def scan_over_layers(p, x):
    return p["V"] @ lax.scan(lambda h, w: (jnp.tanh(w @ h), None), x, p["W"])[0]


@case({"b": "dense"}, W=(3, D, D), b=(3, D), V=(D,))
def reverse_scan_with_outputs(p, x):
    h, ys = lax.scan(lambda h, wb: (jnp.tanh(wb[0] @ h + wb[1]), h), x, (p["W"], p["b"]), reverse=True)
    return p["V"] @ h + jnp.sum(ys[0] * jnp.arange(2.0))


@case("factored", lambda: draw((N, 3, D), 3), W=(D, D), U=(D, D), V=(D,))
def recurrent_network(p, xs):
    return p["V"] @ lax.scan(lambda h, x: (jnp.tanh(p["W"] @ h + p["U"] @ x), None), jnp.zeros(D), xs)[0]


@case("factored", W=(D, D), V=(D,))
def static_loop(p, x):
    return p["V"] @ lax.fori_loop(0, 3, lambda _, h: jnp.tanh(p["W"] @ h), x)


@case("factored", W=(3, D, D), V=(D,))
def static_loop_that_indexes(p, x):
    return p["V"] @ lax.fori_loop(0, 3, lambda i, h: jnp.tanh(p["W"][i] @ h), x)


@case({"W": "dense"}, W=(D, D), V=(D,))
def long_scan(p, x):
    return p["V"] @ lax.scan(lambda h, _: (h + 1e-3 * jnp.tanh(p["W"] @ h), None), x, None, length=3000)[0]


@case("factored", W=(D, D), V=(D,))
def nested_scans(p, x):
    def outer(h, _):
        return lax.scan(lambda h, _: (jnp.tanh(p["W"] @ h), None), h, None, length=2)[0], None

    return p["V"] @ lax.scan(outer, x, None, length=2)[0]


@case({"W": "dense"}, W=(D, D), V=(D,))
def scan_of_no_steps(p, x):
    h, ys = lax.scan(lambda h, _: (jnp.tanh(p["W"] @ h), h), x, None, length=0)
    return p["V"] @ h + jnp.sum(ys)


@case({"b": "dense"}, **MLP)
def while_loop_on_the_point(p, x):
    return mlp(p, lax.while_loop(lambda y: jnp.sum(y**2) > 0.5, lambda y: 0.8 * y, x))


@case("factored", W=(D, D), U=(D, D), V=(D,))
def cond_on_the_point(p, x):
    h = lax.cond(x[0] > 0, lambda h: jnp.tanh(p["W"] @ h), lambda h: jnp.sin(p["U"] @ h), x)
    return p["V"] @ h


@case({"b": "dense"}, W=(D, D), U=(D, D), V=(D,), b=(D,))
def switch_on_the_point(p, x):
    branches = [lambda h: jnp.tanh(p["W"] @ h), lambda h: p["U"] @ h + p["b"], lambda h: p["W"] @ h]
    return p["V"] @ lax.switch(jnp.floor(2 * x[0]).astype(jnp.int32), branches, x)


@case({"U": "unused"}, W=(D, D), U=(D, D), V=(D,))
def cond_on_a_constant(p, x):
    return p["V"] @ lax.cond(jnp.array(True), lambda h: jnp.tanh(p["W"] @ h), lambda h: p["U"] @ h, x)


@case("factored", W=(D, D), U=(D, D), V=(D,))
def cond_on_the_parameters(p, x):
    return p["V"] @ lax.cond(p["V"][0] > 0, lambda h: jnp.tanh(p["W"] @ h), lambda h: p["U"] @ h, x)


@case("factored", W=(D, D), U=(D, D), V=(D,))
def nested_cond(p, x):
    def inner(h):
        return lax.cond(x[1] > 0, lambda h: jnp.sin(p["W"] @ h), lambda h: p["U"] @ (p["U"] @ h), h)

    return p["V"] @ lax.cond(x[0] > 0, inner, lambda h: jnp.tanh(p["W"] @ h), x)


@case("factored", W=(D, D), V=(D,))
def cond_in_a_derivative(p, x):
    def u(y):
        return p["V"] @ lax.cond(y[0] > 0, lambda h: jnp.tanh(p["W"] @ h), lambda h: p["W"] @ jnp.sin(h), y)

    return laplacian(u, x)


@case("factored", W=(D, D), V=(D,))
def branch_that_is_not_finite_elsewhere(p, x):
    """`log` of the unselected branch is not a number there, and neither are its derivatives."""
    h = lax.cond(x[0] > 0, lambda h: p["W"] @ jnp.log(h[0] * jnp.ones(D)), lambda h: jnp.sin(p["W"] @ h), x)
    return p["V"] @ jnp.tanh(h)


@case("factored", W=(D, D), V=(D,))
def branch_not_finite_after_the_product(p, x):
    def risky(h):
        return jnp.sqrt(p["W"] @ h * jnp.sign(p["W"] @ h) * (h[0] / jnp.abs(h[0])))

    return p["V"] @ jnp.tanh(lax.cond(x[0] > 0, risky, lambda h: p["W"] @ h, x))


@case({"b": "dense"}, **MLP)
def guarded_where(p, x):
    inside = x[0] > 0
    safe = jnp.where(inside, x, jnp.ones_like(x))
    return jnp.where(inside, mlp(p, jnp.log(jnp.abs(safe))), mlp(p, x))


@jax.custom_jvp
def clipped(a):
    return jnp.clip(a, -0.1, 0.1)


@clipped.defjvp
def _(primals, tangents):  # a straight-through estimator: not the derivative
    return clipped(*primals), 3.0 * tangents[0]


@jax.custom_vjp
def reversing(a):
    return a * a


reversing.defvjp(lambda a: (reversing(a), jnp.cos(a)), lambda cosine, g: (-g * cosine,))


@case("factored", W=(H, D), V=(H,))
def custom_jvp_rule_is_honoured(p, x):
    return p["V"] @ clipped(p["W"] @ x)


@case("factored", W=(H, D), V=(H,))
def custom_vjp_rule_is_honoured(p, x):
    return p["V"] @ reversing(p["W"] @ x)


@jax.custom_jvp
def layer(w, x):
    return jnp.tanh(w @ x)


@layer.defjvp
def _(primals, tangents):
    return layer(*primals), 2.0 * (tangents[0] @ primals[1]) + primals[0] @ tangents[1]


@case({"W": "dense"}, W=(H, D), V=(H,))
def custom_jvp_with_the_weight_inside(p, x):
    return p["V"] @ layer(p["W"], x)


@case({"W": "pulled back"}, W=(H, D), V=(H,))
def custom_rule_of_the_weight_alone(p, x):
    return p["V"] @ jnp.tanh(clipped(p["W"]) @ x)


@case({"b": "dense"}, **MLP)
def checkpointed(p, x):
    return laplacian(jax.checkpoint(lambda y: jax.checkpoint(mlp)(p, y)), x)


@case({"b": "dense"}, **MLP)
def jitted(p, x):
    return laplacian(jax.jit(lambda y: jax.jit(mlp)(p, y)), x)


@case({"b": "dense"}, **MLP)
def named(p, x):
    with jax.named_scope("residual"):
        return mlp(p, x)


@case({"W": "frozen", "b": "dense"}, **MLP)
def frozen(p, x):
    return mlp(p | {"W": lax.stop_gradient(p["W"])}, x)


@case({"W": "factored"}, W=(H, D), V=(H,))
def partly_frozen(p, x):
    return p["V"] @ jnp.tanh(p["W"] @ x + lax.stop_gradient(p["W"]) @ x)


@case({"R": "dense", "I": "dense"}, lambda: draw((N, 4), 1), R=(3,), I=(3,), V=(4,))
def fourier_layer(p, u):
    spectrum = jnp.fft.rfft(u) * lax.complex(p["R"], p["I"])
    return p["V"] @ jnp.tanh(jnp.fft.irfft(spectrum, n=4))


@case({"R": "dense", "I": "dense"}, lambda: draw((N, 2, 4), 1), R=(3, 2, 2), I=(3, 2, 2), W=(2, 2))
def fourier_layer_with_channels(p, u):
    spectrum = jnp.einsum("ck,kdc->dk", jnp.fft.rfft(u), lax.complex(p["R"], p["I"]))
    return jnp.sum(jnp.tanh(jnp.fft.irfft(spectrum, n=4) + p["W"] @ u))


@case({"W": "dense"}, W=(H, D), V=(H,))
def complex_product(p, x):
    return p["V"] @ jnp.abs(p["W"].astype(complex) @ jnp.exp(lax.complex(x, 2 * x)))


@case({"K": "dense"}, lambda: draw((N, 1, 5), 1), K=(2, 1, 3), V=(2, 5))
def convolution(p, u):
    y = lax.conv_general_dilated(u[None], p["K"], (1,), "SAME")[0]
    return jnp.sum(p["V"] * 1.0 @ jnp.tanh(y).T)


@case("factored", lambda: draw((N, 3, D), 1), W=(3, H, D), V=(3, H))
def einsum_with_batch_axis(p, u):
    return jnp.einsum("kh,kh->", p["V"], jnp.tanh(jnp.einsum("khd,kd->kh", p["W"], u)))


@case({"W": "dense"}, lambda: draw((N, 20, D), 1), W=(20, H, D), V=(20, H))
def einsum_with_a_long_batch_axis(p, u):
    return jnp.einsum("kh,kh->", p["V"], jnp.tanh(jnp.einsum("khd,kd->kh", p["W"], u)))


@case("factored", W=(3, H, D), V=(3, H))
def ensemble(p, x):
    return jax.vmap(lambda w, v: v @ jnp.tanh(w @ x))(p["W"], p["V"])


@case("factored", lambda: (draw((N, 4), 1), draw((N, D), 2)), B=(H, 4), T=(H, D))
def deep_operator_network(p, pair):
    return jnp.tanh(p["B"] @ pair[0]) @ jnp.tanh(p["T"] @ pair[1])


@case({"T": "pulled back"}, lambda: draw((N, 4), 1), B=(H, 4), T=(H, D))
def trunk_on_fixed_nodes(p, u):
    return jnp.tanh(p["B"] @ u) @ jnp.sum(jnp.tanh(p["T"] @ draw((D, 50), 7)), axis=1)


@case("factored", lambda: draw((N, 5, D), 1), Q=(H, D), K=(H, D), V=(1, D))
def attention(p, x):
    scores = jax.nn.softmax((x @ p["Q"].T) @ (x @ p["K"].T).T, axis=-1)
    return jnp.sum(jnp.sin(scores @ (x @ p["V"].T)))


@case("dense", nu=(), b=())
def numbers(p, x):
    return p["nu"] * jnp.sin(x[0]) + jnp.exp(p["b"]) * x[1]


@case({"nu": "dense", "b": "dense"}, **MLP, nu=())
def trainable_coefficient(p, x):
    return jnp.exp(p["nu"]) * laplacian(lambda y: mlp(p, y), x)


@case({"idle": "unused", "empty": "unused", "b": "dense"}, **MLP, idle=(2, 2), empty=(0, 2))
def unused_leaves(p, x):
    return mlp(p, x)


@case({"a": "dense", "W": "unused"}, a=(2,), W=(2, 2))
def parameters_alone(p, x):
    return p["a"]


@case({"a": "pulled back", "W": "unused"}, a=(2,), W=(2, 2))
def function_of_parameters_alone(p, x):
    return jnp.sin(p["a"]) ** 2


@case("unused", a=(2,))
def point_alone(p, x):
    return jnp.sin(x)


@case("unused", a=(2,))
def constant_residual(p, x):
    return jnp.ones(2)


@case("factored", lambda: jnp.arange(N), E=(H, N), V=(H,))
def integer_points(p, i):
    return p["V"] @ jnp.tanh(p["E"] @ jax.nn.one_hot(i, N, dtype=p["E"].dtype))


@case({"E": "dense"}, lambda: jnp.arange(N), E=(N, H), V=(H,))
def embedding(p, i):
    return p["V"] @ jnp.tanh(p["E"][i])


@case({"b": "dense"}, lambda: {"x": draw((N, D), 1), "pair": (draw((N, 1), 2), draw((N,), 3))}, **MLP)
def pytree_points(p, point):
    return mlp(p, point["x"]) - point["pair"][0][0] * point["pair"][1]


@case({"b": "dense"}, **MLP)
def hard_constraint(p, x):
    return laplacian(lambda y: jnp.prod(jnp.sin(jnp.pi * y)) * mlp(p, y) + y[0], x)


@case({"b": "dense"}, W=(H, 6), b=(H,), V=(H,))
def fourier_features(p, x):
    B = draw((3, D), 11)

    def features(y):
        return jnp.concatenate([jnp.sin(B @ y), jnp.cos(B @ y)])

    return laplacian(lambda y: mlp(p, features(y)), x)


@case({"b": "dense"}, **MLP)
def inner_vmap_over_nodes(p, x):
    return jnp.mean(jax.vmap(lambda y: mlp(p, x + y))(draw((3, D), 12)))


@case({"W": "factored + pulled back", "V": "factored + pulled back", "b": "dense + pulled back"}, **MLP)
def nonlocal_term(p, x):
    """An integral over fixed nodes is computed once, not at every point."""
    return mlp(p, x) - jnp.mean(jax.vmap(lambda y: mlp(p, y))(draw((50, D), 12)))


@case({"W": "factored", "b": "dense"}, W=(H, D), b=(H,), V=(H,))
def solve_inside(p, x):
    h = jnp.tanh(p["W"] @ x + p["b"])
    return p["V"] @ jnp.linalg.solve(jnp.eye(H) + 0.1 * h[:, None] * h[None], h)


@case({"A": "pulled back"}, A=(H, H), V=(H,))
def solve_with_the_weight(p, x):
    h = jnp.concatenate([x, x[:1]])
    return p["V"] @ jnp.linalg.solve(p["A"] + 9 * jnp.eye(H), h)


@case("factored", W=(H, D), V=(H,))
def random_numbers_inside(p, x):
    return p["V"] @ jnp.tanh(p["W"] @ (x + jax.random.normal(jax.random.key(3), (D,))))


@case("factored", W=(H, D), V=(H,))
def shared_input_and_cotangent(p, x):
    y = p["W"] @ x
    return p["V"] @ (jnp.tanh(y) + jnp.sin(p["W"] @ x) + p["W"] @ jnp.cos(x))


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_plain_jax_and_leaves_take_their_path(name):
    f, params, points, expected = assemble(name)
    tapped = Tapped(f, params, jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), points))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def compute(params):
        jacobian = jax.vmap(jax.jacrev(f), (None, 0))(params, points)
        value, outputs = tapped.evaluate(params, points)
        rows = point_rows(tapped, outputs, params, jnp.ones(N))
        return jax.vmap(f, (None, 0))(params, points), jacobian, value, rows.explicit(), rows.rmv(value.reshape(-1))

    want_value, jacobian, value, rows, gradient = compute(params)
    want = np.concatenate([np.reshape(leaf, (value.size, -1)) for leaf in jax.tree.leaves(jacobian)], axis=1)
    scale = 1e-11 * max(np.abs(want).max(), 1e-30)
    np.testing.assert_allclose(value, want_value, rtol=0, atol=1e-13 * np.abs(want_value).max())
    np.testing.assert_allclose(rows, want, rtol=0, atol=scale)
    np.testing.assert_allclose(gradient, want.T @ value.reshape(-1), rtol=0, atol=scale * np.abs(value).sum())
    assert {r.leaf.strip("[]'"): r.path for r in explain_tapped(tapped, params)} == expected
