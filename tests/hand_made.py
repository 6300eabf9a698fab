"""A network of two layers whose derivatives are propagated by hand, with a perturbation on every product `W z`.

Independent of the library's taps: the cotangents come from `jax.vjp` with respect to the perturbations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def draw(outputs: int = 1, width: int = 6, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = {"W1": (width, 2), "W2": (outputs, width), "b1": (width,), "b2": (outputs,)}
    return {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}


def network(p, x):
    return p["W2"] @ jnp.tanh(p["W1"] @ x + p["b1"]) + p["b2"]


def with_one(z):
    return jnp.append(z, 1.0)


def with_zero(z):
    return jnp.append(z, 0.0)


def second_order(p, x, e1, e2, c):
    """`u, (u_0, u_1), sum_i c_i u_ii`, and the inputs of all products: value, first derivatives, second."""
    axes = jnp.eye(2)
    y = p["W1"] @ x + p["b1"] + e1[0]
    dy = [p["W1"] @ axes[i] + e1[1 + i] for i in range(2)]
    h = jnp.tanh(y)
    slope = 1 - h**2
    dh = [slope * d for d in dy]
    ddh = -2 * h * slope * (c[0] * dy[0] ** 2 + c[1] * dy[1] ** 2)
    u = p["W2"] @ h + p["b2"] + e2[0]
    du = [p["W2"] @ d + e2[1 + i] for i, d in enumerate(dh)]
    ddu = p["W2"] @ ddh + e2[3]
    z1 = jnp.stack([with_one(x), *map(with_zero, axes)])
    z2 = jnp.stack([with_one(h), *map(with_zero, dh), with_zero(ddh)])
    return (u, du, ddu), (z1, z2)


DIRECTIONS = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
BIHARMONIC = np.array([2 / 3, 2 / 3, 1 / 6, 1 / 6])  # Delta^2 u in fourth derivatives along them


def fourth_order(p, x, e1, e2):
    """`Delta^2 u` from Taylor coefficients along four directions; the first layer is linear along each."""
    y = p["W1"] @ x + p["b1"] + e1[0]
    t = jnp.tanh(y)
    fourth = 8 * t * (1 - t**2) * (2 - 3 * t**2)  # of tanh
    hs = [fourth * (p["W1"] @ v + e1[1 + k]) ** 4 / 24 for k, v in enumerate(jnp.asarray(DIRECTIONS))]
    u = sum(24 * c * (p["W2"] @ h + e2[k]) for k, (c, h) in enumerate(zip(BIHARMONIC, hs, strict=True)))
    z1 = jnp.stack([with_one(x), *map(with_zero, jnp.asarray(DIRECTIONS))])
    return u, (z1, jnp.stack([with_zero(h) for h in hs]))


@functools.partial(jax.jit, static_argnums=0)
def cotangents_and_inputs(tapped, p, points):
    """Of a `tapped(p, x, e1, e2) -> (m,), (z1, z2)`: `g (n, m, T, rows)` and `z (n, T, columns)` of both layers."""
    outputs, width = p["W2"].shape

    def one(x):
        taps = jnp.zeros((5, width)), jnp.zeros((5, outputs))
        _, pull, inputs = jax.vjp(lambda e1, e2: tapped(p, x, e1, e2), *taps, has_aux=True)
        m = jax.eval_shape(lambda: tapped(p, x, *taps)[0]).shape[0]
        return jax.vmap(pull)(jnp.eye(m)), inputs

    return jax.vmap(one)(points)


def factors(tapped, used, p, points, weight):
    """`(L, R)` of both layers for one term of weight `weight / n` a point; `used`: the products that the term sees."""
    gs, zs = cotangents_and_inputs(tapped, p, points)
    found = []
    for g, z, rows in zip(gs, zs, used, strict=True):
        g, z = np.asarray(g)[:, :, rows], np.asarray(z)[:, rows]
        L = np.einsum("nmti,nmtj->ij", g, g) * weight / len(points)
        found.append((L, np.einsum("nti,ntj->ij", z, z) / (len(points) * len(rows))))
    return found
