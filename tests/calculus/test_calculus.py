"""Every operator against jax.grad / jax.hessian, and the contracts: transformations, dtypes, channels, errors."""

import subprocess
import sys
from functools import cache
from functools import partial as partial_function

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from sciml_opt.calculus import bundle, divergence, forward_laplacian, laplacian, partial
from sciml_opt.calculus._forward_laplacian import _rename_jitted

jax.config.update("jax_enable_x64", True)

# Most of the time here is XLA's; its optimisations change nothing that is tested.
jit = partial_function(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)
X = jnp.array([0.3, 0.7])
MLP = eqx.nn.MLP(2, "scalar", 16, 2, jnp.tanh, key=jax.random.key(0), dtype=jnp.float64)
A = np.array([[0.9, -0.4], [0.3, 1.1], [-0.7, 0.5]])
B = np.array([[3.0, 0.5], [-0.4, 2.0]])


def odd(x):
    """Primitives with a rule of their own in folx, each with both arguments depending on x."""
    r = jnp.sqrt(x @ x + 1.0)
    angle = jnp.arctan2(x[1], x[0] + 2.0) / r
    return angle * jax.nn.softplus(x[0] - x[1]) + jnp.where(x[0] > 0.1, jnp.sin(x[0] * x[1]), x[1] ** 3) + x[0] ** x[1]


@jax.jit
def softplus(x):  # NOT jax.nn.softplus: folx looks jitted functions up by name
    return jnp.log1p(jnp.exp(5.0 * x)) / 5.0


FUNCTIONS = {
    "mlp": MLP,
    "odd": odd,
    "vector": lambda x: jnp.tanh(A @ x),
    "matrix": lambda x: jnp.outer(jnp.sin(x), jnp.exp(A @ x)) / (1.0 + x @ x),
    "user_softplus": lambda x: softplus(jax.lax.scan(lambda c, a: (softplus(a * c), None), x, jnp.arange(3.0))[0]),
    "activations": lambda x: (jax.nn.gelu(A @ x) * jax.nn.silu(A @ x) + jax.nn.elu(A @ x)).sum(),
    "inner_gradient": lambda x: jax.grad(lambda y: jax.nn.softplus(y[0] - y[1]) * y[1])(x),
    "linear_algebra": lambda x: jnp.linalg.det(B + jnp.outer(x, x)) * jnp.linalg.solve(B + jnp.diag(x), x),
    "cond": lambda x: jax.lax.cond(x[0] > 0.0, lambda x: jnp.sin(x[0] * x[1]), lambda x: x.sum(), x),
    "identity": lambda x: x,
    "constant": lambda x: jnp.ones(3),
    "literal": lambda x: 1.0,
    "step": lambda x: jnp.floor(3.0 * x),
}


@cache
def reference(name):
    u = FUNCTIONS[name]
    value, J, H = map(np.asarray, jit(lambda x: (u(x), jax.jacfwd(u)(x), jax.jacfwd(jax.jacfwd(u))(x)))(X))
    return value, np.moveaxis(J, -1, 0), np.moveaxis(H, (-2, -1), (0, 1))


def close(actual, desired, rtol=1e-13):
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert actual.shape == desired.shape
    np.testing.assert_allclose(actual, desired, rtol=0, atol=rtol * max(1.0, np.max(np.abs(desired), initial=0.0)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_against_jacfwd_and_hessian(name):
    u = FUNCTIONS[name]
    value, J, H = reference(name)
    V, b = np.array([[1.0, 2.0], [0.5, -1.0], [0.3, 0.0]]), np.array([-0.4, 1.5])
    pairs = (1, 1), (0, 1), (0, 0), (1, 0)
    seeded, bundled, trace = jit(lambda x: (forward_laplacian(u, V, b)(x), bundle(u, *pairs)(x), laplacian(u)(x)))(X)
    close(seeded.value, value)
    close(seeded.first, np.tensordot(V, J, 1))
    close(seeded.second, np.einsum("ki,kj,ij...->...", V, V, H) + np.tensordot(b, J, 1))
    close(bundled.value, value)
    close(bundled.gradient, J)
    close(bundled.second, np.stack([H[1, 1], H[0, 1], H[0, 0], H[0, 1]]))
    close(trace, H[0, 0] + H[1, 1])


@pytest.mark.parametrize("pairs", [(), ((0, 0),), ((1, 1),)])
def test_bundle_fills_the_gradient_and_traces_once(pairs):
    value, J, H = reference("vector")
    calls = []

    def u(x):
        calls.append(1)
        return FUNCTIONS["vector"](x)

    out = jit(bundle(u, *pairs))(X)
    assert len(calls) == 1
    close(out.value, value)
    close(out.gradient, J)
    close(out.second, np.stack([H[p] for p in pairs]) if pairs else np.zeros((0, 3)))


def test_no_columns_leaves_the_drift():
    value, J, _ = reference("matrix")
    out = jit(forward_laplacian(FUNCTIONS["matrix"], np.zeros((0, 2)), np.array([1.0, -1.0])))(X)
    close(out.value, value)
    close(out.second, J[0] - J[1])
    assert out.first.shape == (0, *value.shape)


@pytest.mark.parametrize(
    "indices", [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 1, 0), (1, 1, 1), (0, 0, 0, 0), (0, 1, 1, 0)]
)
def test_partial_of_any_order(indices):
    def ref(u, i, *rest):
        def du(x):
            return jax.grad(u)(x)[i]

        return ref(du, *rest) if rest else du

    def u(x):
        return jnp.sin(x[0] * x[1]) * jnp.tanh(x[0] - 2.0 * x[1])

    close(jit(partial(u, *indices))(X), jit(ref(u, *indices))(X), rtol=1e-12)


def test_partial_of_the_exact_soliton_of_kdv():
    def u(x):
        return 0.5 / jnp.cosh(0.5 * (x[0] - x[1])) ** 2

    def residual(x):
        return partial(u, 1)(x) + 6.0 * u(x) * partial(u, 0)(x) + partial(u, 0, 0, 0)(x)

    close(jit(jax.vmap(residual))(jnp.linspace(-2.0, 2.0, 10).reshape(5, 2)), np.zeros(5), rtol=1e-15)


def test_divergence():
    _, _, H = reference("odd")
    close(jit(divergence(jax.grad(odd)))(X), H[0, 0] + H[1, 1])


def heat(u, c):
    seeded = forward_laplacian(u, columns=[[c**0.5, 0.0]], drift=[0.0, -1.0])
    return lambda x: -seeded(x).second


def burgers(u, nu):
    seeded = forward_laplacian(u, columns=[[nu**0.5, 0.0]], drift=[0.0, -1.0])

    def residual(x):
        value, first, second = seeded(x)
        return value * first[0] / nu**0.5 - second

    return residual


def test_residuals_by_seeds():
    u = MLP
    ours = jit(lambda x: (heat(u, 0.25)(x), burgers(u, 0.04)(x)))(X)
    value, g, H = jit(lambda x: (u(x), jax.grad(u)(x), jax.hessian(u)(x)))(X)
    close(ours[0], g[1] - 0.25 * H[0, 0], rtol=1e-14)
    close(ours[1], g[1] + value * g[0] - 0.04 * H[0, 0], rtol=1e-14)


def rows_through(jaxpr, width):
    """Rows that meet a (width, width) matrix in any dot_general of the jaxpr: the number of channels."""
    rows = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general" and any(v.aval.shape == (width, width) for v in eqn.invars):
            rows += eqn.outvars[0].aval.size // width
        rows += sum(rows_through(sub, width) for sub in jaxprs_in_params(eqn.params))
    return rows


@pytest.mark.parametrize(
    ("build", "channels"),
    [
        (lambda u: heat(u, 0.25), 3),
        (lambda u: burgers(u, 0.25), 3),
        (laplacian, 4),
        (lambda u: partial(u, 0, 0), 3),
        (lambda u: partial(u, 0, 1), 4),
        (lambda u: partial(u, 0, 0, 0), 6),
        (lambda u: bundle(u, (0, 0), (1, 1)), 5),
        (lambda u: bundle(u, (0, 0), (0, 1)), 7),
    ],
    ids=["heat", "burgers", "laplacian", "u_xx", "u_xy", "u_xxx", "bundle", "bundle_mixed"],
)
def test_number_of_channels(build, channels):
    assert rows_through(jax.make_jaxpr(build(MLP))(X).jaxpr, 16) == channels


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_quadratic_forms_are_exact(seed):
    rng = np.random.default_rng(seed)
    Q, c = rng.integers(-8, 9, (3, 3)).astype(float), rng.integers(-8, 9, 3).astype(float)
    x = rng.integers(-4, 5, 3).astype(float)
    H, D = Q + Q.T, np.diag_indices(3)
    value, gradient, second, trace = quadratic(Q, c, x)  # integers: no rounding anywhere
    assert value == x @ Q @ x + c @ x
    assert np.array_equal(gradient, H @ x + c)
    assert np.array_equal(second, [*H[D], H[0, 1], H[1, 2], H[0, 2]])
    assert trace == np.trace(H)


@jit
def quadratic(Q, c, x):
    def u(x):
        return x @ Q @ x + c @ x

    return *bundle(u, (0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2))(x), laplacian(u)(x)


@settings(max_examples=30, deadline=None)
@given(st.floats(-10, 10), st.floats(-10, 10))
def test_laplacian_is_linear(a, b):
    both, first, second = combination(a, b, X)
    close(both, a * first + b * second)


@jit
def combination(a, b, x):
    def v(x):
        return jnp.sin(x @ x)

    return laplacian(lambda x: a * MLP(x) + b * v(x))(x), laplacian(MLP)(x), laplacian(v)(x)


def test_parameter_gradient():
    params, static = eqx.partition(MLP, eqx.is_array)
    points = jax.random.uniform(jax.random.key(1), (7, 2), jnp.float64)

    def loss(operator):
        return lambda p: 0.5 * jnp.mean(jax.vmap(operator(eqx.combine(p, static)))(points) ** 2)

    ours = jit(jax.grad(loss(laplacian)))(params)
    theirs = jit(jax.grad(loss(lambda u: lambda x: jnp.trace(jax.hessian(u)(x)))))(params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        close(a, b)


def test_jvp_of_jvp_in_the_parameters():
    def along(operator):
        def f(s):
            return operator(lambda x: jnp.tanh(s * (A @ x)).prod())(X)

        return jit(lambda s: jax.jvp(lambda s: jax.jvp(f, (s,), (1.0,))[1], (s,), (1.0,))[1])(0.8)

    close(along(laplacian), along(lambda u: lambda x: jnp.trace(jax.hessian(u)(x))))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_and_strict_promotion(dtype):
    weights, biases = np.asarray(A, dtype), np.ones(3, dtype)
    x = np.asarray(X, dtype)

    def mlp(x):
        return jnp.tanh(jnp.asarray(weights) @ x + biases)

    def everything(x):
        return (
            forward_laplacian(mlp, columns=np.eye(2), drift=np.ones(2))(x),
            bundle(mlp, (0, 1))(x),
            laplacian(lambda x: x @ x / jnp.sqrt(x[0]) + x[1])(x),
            partial(mlp, 0, 0, 1)(x),
            divergence(lambda x: mlp(x)[:2])(x),
        )

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        batch = jit(jax.vmap(everything))(x[None])
    for leaf in jax.tree.leaves(batch):
        assert leaf.dtype == dtype
        assert not leaf.weak_type
        assert np.all(np.isfinite(np.asarray(leaf)))


def test_only_the_activations_of_jax_keep_the_name_that_folx_looks_up():
    def names(u):
        return {eqn.params["name"] for eqn in _rename_jitted(jax.make_jaxpr(u)(X).jaxpr).eqns if "name" in eqn.params}

    assert names(jax.nn.softplus) == names(jax.vmap(jax.nn.softplus)) == {"softplus"}
    assert names(jax.nn.silu) == names(jax.vmap(jax.nn.silu)) == {"silu"}
    assert names(softplus) == names(jax.vmap(jax.grad(jax.nn.softplus))) == {"u.softplus"}


def test_folx_is_imported_lazily():
    code = "import sys, sciml_opt, sciml_opt.calculus; assert not any(m.split('.')[0] == 'folx' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


OPERATORS = [
    forward_laplacian,
    laplacian,
    divergence,
    lambda u: partial(u, 0),
    lambda u: partial(u, 0, 0),
    lambda u: bundle(u, (0, 0)),
    lambda u: bundle(u),
]


@pytest.mark.bad_input
@pytest.mark.parametrize("operator", OPERATORS)
def test_x_must_be_one_floating_point(operator):
    for bad in (jnp.ones((4, 2)), jnp.asarray(1.0)):
        with pytest.raises(ValueError, match=r"`x` must be .* shape \(d,\); got shape .* ONE point; use jax.vmap"):
            jax.eval_shape(operator(jnp.sin), bad)
    with pytest.raises(TypeError, match=r"floating dtype.*got int"):
        jax.eval_shape(operator(jnp.sin), jnp.arange(2))


@pytest.mark.bad_input
def test_errors():
    for operator in (partial(odd, 2), partial(odd, -1, -1), bundle(odd, (0, 2))):
        with pytest.raises(IndexError, match=r"index -?\d is out of range for `x` of shape \(2,\)"):
            jax.eval_shape(operator, X)
    with pytest.raises(ValueError, match="at least one index"):
        partial(odd)
    with pytest.raises(TypeError, match="integer"):
        partial(odd, X)
    with pytest.raises(ValueError, match="`pairs`"):
        bundle(odd, (0, 1, 1))
    with pytest.raises(ValueError, match=r"`columns` must have shape \(K, d\) = \(K, 2\)"):
        jax.eval_shape(forward_laplacian(odd, columns=np.ones(2)), X)
    with pytest.raises(ValueError, match=r"`drift` .* \(2,\); got shape \(1, 2\)"):
        jax.eval_shape(forward_laplacian(odd, drift=np.ones((1, 2))), X)
    with pytest.raises(ValueError, match=r"`F` must map"):
        jax.eval_shape(divergence(lambda x: A @ x), X)
    with pytest.raises(TypeError, match="ONE array"):
        jax.eval_shape(laplacian(lambda x: (x, x)), X)
    with pytest.raises(TypeError, match="floating array; got int"):
        jax.eval_shape(laplacian(jnp.argmax), X)
