"""Random networks under random differential operators: the factored Jacobian is that of `jax.jacrev`."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sciml_opt.linearization._point_rows import point_rows
from sciml_opt.linearization._taps import Tapped

D, N = 2, 3  # coordinates, points
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}

ACTIVATIONS = {
    "tanh": jnp.tanh,
    "sin": jnp.sin,
    "softplus": jax.nn.softplus,
    "swish": jax.nn.swish,
    "gauss": lambda a: jnp.exp(-(a**2)),
}


def plain(w, extra):
    return w


def ntk(w, extra):
    return w / float(np.sqrt(w.shape[1]))


def factorised(w, extra):
    return jnp.exp(0.1 * extra)[:, None] * w


def normalised(w, extra):
    return extra[:, None] * w / jnp.sqrt(jnp.sum(w**2, axis=1, keepdims=True))


def transposed(w, extra):
    return w.T.T


WEIGHTS = {f.__name__: f for f in (plain, ntk, factorised, normalised, transposed)}


class Architecture(NamedTuple):
    depth: int
    width: int
    out: int
    activation: str
    weights: str
    features: bool  # Fourier features before the first layer
    shared: bool  # one matrix for all hidden layers
    skip: bool  # residual connections
    bias: bool
    hard: bool  # a factor that vanishes on the boundary


ARCHITECTURES = st.builds(
    Architecture,
    depth=st.integers(1, 3),
    width=st.integers(2, 5),
    out=st.integers(1, 2),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    weights=st.sampled_from(sorted(WEIGHTS)),
    features=st.booleans(),
    shared=st.booleans(),
    skip=st.booleans(),
    bias=st.booleans(),
    hard=st.booleans(),
)


def initial(a: Architecture, seed: int, dtype: str):
    rng = np.random.default_rng(seed)
    inputs = 6 if a.features else D
    shapes = {"W0": (a.width, inputs), "V": (a.out, a.width)}
    hidden = [f"W{k}" for k in range(1, a.depth)]
    shapes |= dict.fromkeys(hidden[:1] if a.shared else hidden, (a.width, a.width))
    if a.bias:
        shapes |= {f"b{k}": (a.width,) for k in range(a.depth)}
    if a.weights in ("factorised", "normalised"):
        shapes |= {f"s{k}": (a.width,) for k in range(a.depth)}
    return {
        name: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-1]), dtype) for name, shape in sorted(shapes.items())
    }


def network(a: Architecture, p, x):
    """`R^2 -> R^out`."""
    h = x
    if a.features:
        frequencies = jnp.asarray(np.arange(1.0, 7.0).reshape(3, D) / 4, x.dtype)
        h = jnp.concatenate([jnp.sin(frequencies @ x), jnp.cos(frequencies @ x)])
    for k in range(a.depth):
        w = WEIGHTS[a.weights](p[f"W{min(k, 1) if a.shared else k}"], p.get(f"s{k}"))
        y = w @ h
        if a.bias:
            y = y + p[f"b{k}"]
        y = ACTIVATIONS[a.activation](y)
        h = h + y if a.skip and k > 0 else y
    u = p["V"] @ h
    return u * x[0] * (1 - x[0]) if a.hard else u


def derivative(u, *axes):
    """`d^k u / dx_axes`, by nested forward mode."""
    for axis in axes:

        def u(x, u=u, axis=axis):
            return jax.jvp(u, (x,), (jnp.eye(D, dtype=x.dtype)[axis],))[1]

    return u


def laplacian(u):
    return lambda x: derivative(u, 0, 0)(x) + derivative(u, 1, 1)(x)


OPERATORS = {
    "value": lambda u: u,
    "advection": lambda u: lambda x: derivative(u, 0)(x) + 2 * derivative(u, 1)(x),
    "jacobian": lambda u: lambda x: jax.jacrev(u)(x).reshape(-1),
    "poisson": laplacian,
    "helmholtz": lambda u: lambda x: laplacian(u)(x) + 4 * u(x),
    "hessian": lambda u: (
        lambda x: jnp.einsum("oij,ij->o", jax.hessian(u)(x), jnp.asarray([[1, 0.5], [0.5, 2]], x.dtype))
    ),
    "mixed": lambda u: derivative(u, 0, 1),
    "burgers": lambda u: lambda x: derivative(u, 1)(x) + u(x) * derivative(u, 0)(x) - 0.1 * derivative(u, 0, 0)(x),
    "monge_ampere": lambda u: lambda x: derivative(u, 0, 0)(x) * derivative(u, 1, 1)(x) - derivative(u, 0, 1)(x) ** 2,
    "eikonal": lambda u: lambda x: jnp.sum(jax.jacfwd(u)(x) ** 2, axis=1) - 1,
    "dispersion": lambda u: lambda x: derivative(u, 1)(x) + 6 * u(x) * derivative(u, 0)(x) + derivative(u, 0, 0, 0)(x),
    "biharmonic": lambda u: laplacian(laplacian(u)),
    "fourth": lambda u: derivative(u, 0, 0, 1, 1),
    "system": lambda u: lambda x: jnp.concatenate([u(x) ** 2, laplacian(u)(x), jnp.sin(derivative(u, 0)(x))]),
    "periodic": lambda u: lambda x: u(x) - u(x + jnp.asarray([1, 0], x.dtype)),
}


def compare(a: Architecture, operator: str, seed: int, dtype: str) -> tuple[int, int]:
    """Asserts equality with `jacrev`; how many weight matrices there are, and how many of them are factored."""
    if operator == "biharmonic":  # of a deep network it takes seconds to compile
        a = a._replace(depth=1)
    params = initial(a, seed, dtype)
    points = jnp.asarray(np.random.default_rng(seed + 1).uniform(0.1, 0.9, (N, D)), dtype)

    def inner(p, x):
        return OPERATORS[operator](functools.partial(network, a, p))(x)

    tapped = Tapped(inner, params, jax.ShapeDtypeStruct((D,), dtype))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def both(params):
        rows = jax.vmap(jax.jacrev(inner), (None, 0))(params, points)
        flat = [leaf.reshape(-1, int(np.prod(leaf.shape[2:]))) for leaf in jax.tree.leaves(rows)]
        outputs = tapped.evaluate(params, points).outputs
        return jnp.concatenate(flat, axis=1), point_rows(tapped, outputs, params, jnp.ones(N, dtype)).explicit()

    want, got = both(params)
    assert got.dtype == dtype
    assert np.abs(got - want).max() <= TOLERANCE[dtype] * np.abs(want).max()
    matrices = {i for i, leaf in enumerate(jax.tree.leaves(params)) if leaf.ndim == 2}
    unfactored = set().union(*(use.leaves for use in tapped.uses if not use.sites))
    return len(matrices), len(matrices - unfactored)


def run(examples: int, dtype: str) -> None:
    counts = []

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(ARCHITECTURES, st.sampled_from(sorted(OPERATORS)), st.integers(0, 2**31))
    def check(architecture, operator, seed):
        counts.append(compare(architecture, operator, seed, dtype))

    check()
    total, factored = np.sum(counts, axis=0)
    print(f"{len(counts)} examples in {dtype}: {factored} of {total} weight matrices factored")
    assert len(counts) >= examples
    assert factored >= 0.8 * total


@pytest.mark.parametrize(("examples", "dtype"), [(12, "float64"), (5, "float32")])
def test_some(examples, dtype):
    run(examples, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_hundred(dtype):
    run(100, dtype)
