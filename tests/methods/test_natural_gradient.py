"""The natural-gradient family against dense textbook versions, step for step."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from small import BATCH, POISSON, RITZ, RITZ_BATCH, check_steps, network, partition, problem, value_and_slope

import sciml_opt as so
from sciml_opt.linear import SOLVES

STEPS = 8
STATIC = partition(network())[1]
H1 = so.sobolev(1, terms=("interior",))


# Many programs, each run a few times: half the time goes if LLVM does not optimise them.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@quick_jit
def run(tx, losses, params):
    """The start and the point after each step, flat, and the states; one loss a step; transformation an argument."""

    def body(carry, loss):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        params = optax.apply_updates(params, updates)
        return (params, state), (ravel_pytree(params)[0], state)

    path, states = jax.lax.scan(body, (params, tx.init(params)), losses)[1]
    return jnp.concatenate([ravel_pytree(params)[0][None], path]), states


def repeated(loss, steps=STEPS):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps, *jnp.shape(leaf))), loss)


def fresh(steps=STEPS):
    """Other interior points in every step."""
    points = jax.random.uniform(jax.random.key(1), (steps, 36, 2))
    losses = [POISSON.bind(BATCH | {"interior": x}, static=STATIC) for x in points]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *losses)


class Dense:
    """Residual and Jacobian of the loss of one step on a flat vector."""

    def __init__(self):
        unravel = ravel_pytree(problem()[0])[1]
        self._residual = quick_jit(lambda q, loss: loss.residual(unravel(q)))
        self._jacobian = quick_jit(jax.jacfwd(lambda q, loss: loss.residual(unravel(q))))

    def over(self, path, losses):
        """One `(q, r, J, f)` a step: its start on the path, residual, Jacobian, loss value."""
        for k, q in enumerate(np.asarray(path)[:-1]):
            loss = jax.tree.map(lambda leaf, k=k: leaf[k], losses)
            r = lambda q, loss=loss: np.asarray(self._residual(q, loss))
            J = lambda q, loss=loss: np.asarray(self._jacobian(q, loss))
            yield q, r, J, lambda q, r=r: 0.5 * np.sum(r(q) ** 2)


@pytest.fixture(scope="module")
def dense():
    return Dense()


def best_of_grid(f, q, d):
    sizes = [0.5**k for k in range(31)]
    values = [f(q + eta * d) for eta in sizes]
    return sizes[int(np.argmin(values))] if min(values) < f(q) else 0.0


def textbook_spring(dense, path, losses, mu, lam, learning_rate=None, C=None):
    phi, steps, sizes = np.zeros(path.shape[1]), [], []
    for k, (q, r, J, f) in enumerate(dense.over(path, losses), start=1):
        Jq = J(q)
        zeta = r(q) - mu * Jq @ phi
        scale = (Jq**2).sum(0).max()
        relative = lam(k - 1) if callable(lam) else lam
        kernel = Jq @ Jq.T + relative * scale * np.eye(len(zeta))
        phi = mu * phi + Jq.T @ np.linalg.solve(kernel, zeta)
        step = -phi / np.sqrt(1 - mu ** (2 * k))
        eta = best_of_grid(f, q, step) if C is None else min(learning_rate, np.sqrt(C) / np.linalg.norm(phi))
        steps.append(eta * step)
        sizes.append(eta)
    return steps, sizes


@pytest.mark.parametrize("C", [1e-3, np.inf])
def test_spring_with_a_fixed_learning_rate(dense, C):
    """Bias correction of the step but not of the momentum; norm constraint by the momentum."""
    losses = fresh()
    path, state = run(so.spring(0.1, damping=1e-3, momentum=0.9, norm_constraint=C), losses, problem()[0])
    steps, sizes = textbook_spring(dense, path, losses, 0.9, 1e-3, 0.1, C)
    check_steps(path, steps)
    np.testing.assert_allclose(so.info(state).step_size, sizes, rtol=1e-8)
    assert (min(sizes) < 0.1) == (C == 1e-3)  # the constraint was met
    assert np.all(so.info(state).evaluations == 1)


@pytest.mark.parametrize("mu", [0.0, 0.3])
@pytest.mark.parametrize("batches", ["the same", "fresh"])
def test_spring_and_engd_w_with_a_line_search(dense, mu, batches):
    losses = fresh() if batches == "fresh" else repeated(problem()[1])
    tx = so.spring(damping=1e-4, momentum=mu) if mu else so.engd_w(1e-4)
    path, state = run(tx, losses, problem()[0])
    steps, sizes = textbook_spring(dense, path, losses, mu, 1e-4)
    check_steps(path, steps)
    info = so.info(state)
    np.testing.assert_allclose(info.step_size, sizes, rtol=1e-12)
    assert np.all(info.trial_loss < info.loss) and np.all(info.evaluations == 31)


@pytest.mark.parametrize("solve", ["dual", "nystrom", "sketch"])
def test_spring_by_other_solves(dense, solve):
    """Here the sketch is of full rank, and so the system itself."""
    losses = repeated(problem()[1])
    path, state = run(so.spring(damping=1e-3, solve=solve), losses, problem()[0])
    check_steps(path, textbook_spring(dense, path, losses, 0.3, 1e-3)[0])
    assert {SOLVES[i] for i in np.asarray(so.info(state).solve)} == {solve}


def test_a_schedule_of_the_damping(dense):
    losses = repeated(problem()[1])
    schedule = optax.exponential_decay(1e-3, 1, 0.5)  # in float32, as the textbook must take it too
    path, _ = run(so.engd_w(lambda step: schedule(step)), losses, problem()[0])
    check_steps(path, textbook_spring(dense, path, losses, 0.0, lambda step: float(schedule(jnp.int32(step))))[0])


def textbook_anagram(dense, path, losses, cutoff, factors):
    steps, cutoffs = [], []
    for q, r, J, f in dense.over(path, losses):
        U, s, Vt = np.linalg.svd(J(q), full_matrices=False)
        tried = []
        for relative in np.minimum(cutoff * np.array(factors), 1):
            kept = s >= relative * s.max()
            d = -Vt[kept].T @ ((U[:, kept].T @ r(q)) / s[kept])
            step = best_of_grid(f, q, d) * d
            tried.append((f(q + step), relative, step))
        _, cutoff, step = min(tried, key=lambda one: one[0])
        steps.append(step)
        cutoffs.append(cutoff)
    return steps, cutoffs


@pytest.mark.parametrize("adaptive", [False, True])
def test_anagram(dense, adaptive):
    losses = repeated(problem()[1])
    path, state = run(so.anagram(3e-2, adaptive=adaptive), losses, problem()[0])
    steps, cutoffs = textbook_anagram(dense, path, losses, 3e-2, (2, 1, 0.5, 0.1) if adaptive else (1,))
    check_steps(path, steps)
    np.testing.assert_allclose(state.cutoff, cutoffs, rtol=1e-12)
    assert (len(set(cutoffs)) > 1) == adaptive
    assert np.all(so.info(state).evaluations == (124 if adaptive else 31))


@pytest.mark.parametrize("energy", [False, True], ids=["least squares", "energy"])
def test_natural_gradient_in_h1(energy):
    """`(G + lambda I) d = -grad L` with the dense Gram matrix of value and slope, whatever the loss is."""
    name = "energy" if energy else "interior"
    params, loss = problem(RITZ, RITZ_BATCH) if energy else problem()
    unravel = ravel_pytree(params)[1]
    X = jnp.asarray((RITZ_BATCH if energy else BATCH)[name])
    rows = quick_jit(jax.jacfwd(lambda q: jax.vmap(lambda x: value_and_slope(eqx.combine(unravel(q), STATIC), x))(X)))
    f, grad = quick_jit(lambda q: loss(unravel(q))), quick_jit(jax.grad(lambda q: loss(unravel(q))))
    path, state = run(so.natural_gradient(so.sobolev(1, terms=(name,))), repeated(loss), params)
    lam, steps = 1e-2, []
    for q in np.asarray(path)[:-1]:
        A = np.asarray(rows(q))
        G = np.einsum("nip,niq->pq", A, A) / len(X)
        d = -np.linalg.solve(G + lam * np.diag(G).max() * np.eye(len(q)), grad(q))
        eta = best_of_grid(lambda q: float(f(q)), q, d)
        lam *= 1 / 10 if eta >= 0.25 else 12 if eta == 0 else 4 if eta < 0.05 else 1
        steps.append(eta * d)
    check_steps(path, steps)
    info = so.info(state)
    assert np.all(info.linearizations == 2) and float(info.trial_loss[-1]) < float(info.loss[0])


def test_equal_metrics_do_not_retrace_and_a_new_number_neither():
    losses, params = repeated(problem()[1]), problem()[0]
    run(so.natural_gradient(H1), losses, params)
    size = run._cache_size()
    run(so.natural_gradient(so.sobolev(1, terms=("interior",)), 0.5), losses, params)
    assert run._cache_size() == size


def test_a_bad_batch_moves_nothing_and_is_forgotten():
    """NaN in the second step: no update, and the third is as if it had not been."""
    params, good = problem()
    bad = problem(batch=BATCH | {"interior": np.full((36, 2), np.nan)})[1]
    for tx in (so.spring(damping=1e-4), so.spring(0.1, damping=1e-3), so.anagram(3e-2, adaptive=True)):
        losses = [good, bad, *[good] * (STEPS - 2)]
        got, state = run(tx, jax.tree.map(lambda *leaves: jnp.stack(leaves), *losses), params)
        want, _ = run(tx, repeated(good), params)
        np.testing.assert_array_equal(got[2], got[1])
        np.testing.assert_allclose(got[3:], want[2:-1], rtol=1e-12)
        assert not so.info(state).accepted[1] and int(state.steps[-1]) == STEPS - 1


@pytest.mark.bad_input
def test_errors_say_what_to_do():
    params, loss = problem(RITZ, RITZ_BATCH)
    for make, name in ((so.spring, "SPRING"), (so.engd_w, "ENGD-W"), (so.anagram, "ANaGRAM")):
        with pytest.raises(ValueError, match=f"{name}.* least squares.*so.energy_natural_gradient"):
            tx = make()
            jax.eval_shape(lambda p, tx=tx: tx.update(p, tx.init(p), p, grad=p, value_fn=loss), params)
    for make, message in (
        (lambda: so.spring(momentum=1.0), "momentum must be less than 1"),
        (lambda: so.spring(damping=0.0), "damping must be greater than 0"),
        (lambda: so.spring(solve="skecth"), "Did you mean 'sketch'"),
        (lambda: so.anagram(-1.0), "cutoff must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
