"""The choice of `solve="auto"`: a table of sizes, memory, dtype and cost."""

import jax
import jax.numpy as jnp
import pytest

import sciml_opt as so
from sciml_opt.linear import SOLVES, choose, factorize
from sciml_opt.linearization import Cost

GIB = 2**30


def dense(N, P):
    return Cost(product=4.0 * N * P, gram=2.0 * N * P * P, kernel=2.0 * N * N * P, rows=0.0)


def wide_layers(N, P):
    """A factored Jacobian of width 256, whose kernel is eight times cheaper than from rows (`kernels.md`)."""
    return Cost(product=16.0 * N * P, gram=2.0 * N * P * P, kernel=0.25 * N * N * P, rows=2.0 * N * P)


@pytest.mark.parametrize(
    "N, P, itemsize, residual_form, memory, want",
    [
        (1000, 129, 8, True, 2 * GIB, "primal"),
        (1000, 1185, 8, True, 2 * GIB, "dual"),
        (500, 500, 8, True, 2 * GIB, "primal"),  # a tie
        (1000, 10**6, 8, True, 2 * GIB, "dual"),
        (10**6, 1000, 8, True, 2 * GIB, "primal"),
        (9000, 9000, 8, True, 2 * GIB, "primal"),
        (10_000, 10_000, 8, True, 2 * GIB, "nystrom"),  # 3 n^2 numbers are 2.2 GiB
        (10_000, 10_000, 8, True, 4 * GIB, "primal"),
        (1000, 10_000, 8, True, 20 * 2**20, "nystrom"),  # the kernel needs 24 MB
        (1000, 10_000, 8, True, 2**18, "lsmr"),  # no room for twenty vectors
        (10**7, 10**7, 8, True, 2 * GIB, "lsmr"),
        # energies stay in parameter space
        (100, 1000, 8, False, 2 * GIB, "primal"),
        (1000, 100_000, 8, False, 2 * GIB, "nystrom"),
        (1000, 100_000, 8, False, 8 * 2**20, "cg"),
        # float32 works on J itself
        (1000, 129, 4, True, 2 * GIB, "qr"),
        (1000, 1185, 4, True, 2 * GIB, "qr"),
        (1000, 337, 4, False, 2 * GIB, "qr"),
        (100, 1000, 4, False, 2 * GIB, "primal"),  # Woodbury is no gain
        (1000, 10**6, 4, True, 2 * GIB, "dual"),  # no room for Q
        (1000, 10**6, 4, True, 32 * GIB, "qr"),
    ],
)
def test_dense_jacobians(N, P, itemsize, residual_form, memory, want):
    choice = choose(N, P, dense(N, P), itemsize, residual_form=residual_form, memory=memory)
    assert choice.solve == want
    assert choice.dual == (want != "primal" and residual_form and N < P)
    assert 0 < choice.flops < float("inf") and 1 <= choice.rank <= max(N, P)


def test_a_factored_kernel_counts():
    N, P = 1000, 66_817
    assert choose(N, P, wide_layers(N, P), 8).solve == "dual"
    assert choose(N, P, wide_layers(N, P), 4, memory=64 * GIB).solve == "dual"  # rows would cost ten times as much
    assert choose(1000, 600, dense(1000, 600)._replace(kernel=1e6), 8).solve == "dual"  # though N > P


def test_an_iteration_that_is_ten_times_cheaper_wins():
    N, P = 8000, 10**6
    cheap = dense(N, P)._replace(product=1e8)
    assert choose(N, P, cheap, 8).solve == "nystrom"
    assert choose(N, P, cheap._replace(product=1e11), 8).solve == "dual"


@pytest.mark.parametrize("solve", SOLVES)
def test_a_named_solve_is_taken(solve):
    choice = choose(50, 80, dense(50, 80), 8, solve=solve, memory=1)
    assert choice.solve == solve and choice.flops > 0
    assert choice.dual == (solve != "primal")


def test_larger_problems_cost_more():
    for solve in SOLVES:
        flops = [choose(n, n, dense(n, n), 8, solve=solve).flops for n in (10, 100, 1000, 10_000)]
        assert flops == sorted(flops) and flops[0] < flops[-1]


@pytest.mark.parametrize("dtype, want", [(jnp.float64, "primal"), (jnp.float32, "qr")])
def test_factorize_reports_it(dtype, want):
    J = so.StructuredJacobian(jnp.ones((3, 8), dtype), jnp.zeros(3, dtype))
    factor = jax.jit(lambda J: factorize(J, jnp.ones((), dtype)))(J)
    assert SOLVES[int(factor.choice)] == want
    assert factor.predicted_flops.dtype == dtype
    assert float(factor.predicted_flops) == pytest.approx(choose(8, 3, J.cost, jnp.dtype(dtype).itemsize).flops)
    limited = factorize(J, jnp.ones((), dtype), memory=20)
    assert SOLVES[int(limited.choice)] == "lsmr"
