"""Laplacian, partial derivatives, divergence, and bundles of derivatives, of functions of one point."""

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._forward_laplacian import as_point, forward_laplacian

Function = Callable[[Float[Array, " d"]], Float[Array, "..."]]


class Bundle(NamedTuple):
    """What `bundle` yields: `u`, its full gradient (leading axis d), the chosen second derivatives (leading axis)."""

    value: Float[Array, "..."]
    gradient: Float[Array, "d ..."]
    second: Float[Array, "pairs ..."]


def laplacian(u: Function) -> Function:
    r"""The Laplacian of `u`, componentwise for an array-valued `u`.

        (laplacian u)(x) = sum_i d^2 u / dx_i^2 (x)

    **Arguments:** `u`, a function of ONE point `x` of shape `(d,)`, any array shape out.

    **Returns:** a function of `x` with the output shape of `u`.

    **Raises:** as `forward_laplacian`, whose limits apply: `ValueError` unless `x` is one-dimensional.

    **Cost:** d + 2 channels, forward only; the trace of `jax.hessian` sends d + 1 channels through a forward AND a
    reverse sweep, which are differentiated once more for the parameter gradient: there the difference shows.
    **Source:** arXiv:2307.08214.

    ```python
    >>> import jax.numpy as jnp
    >>> from sciml_opt.calculus import laplacian
    >>> print(laplacian(lambda x: jnp.sum(x**2))(jnp.array([1.0, 2.0, 3.0])))
    6.0

    ```
    """
    seeded = forward_laplacian(u)
    return lambda x: seeded(x).second


def partial(u: Function, *indices: int) -> Function:
    r"""The partial derivative of `u` along the given coordinates, of any order >= 1.

        partial(u, i, j, ...) = d/dx_i d/dx_j ... u

    **Arguments:**

    - `u`: a function of ONE point `x` of shape `(d,)`, any array shape out, smooth: the order of the indices is free.
    - `indices`: coordinates in `0 .. d-1`, repeated for higher orders: `partial(u, 0, 0)` is `u_xx`.

    **Returns:** a function of `x` with the output shape of `u`; it can be differentiated again.

    **Raises:** at once `ValueError` without indices and `TypeError` for an index that is no integer; at trace time
    `IndexError` for an index out of range, `ValueError` unless `x` is one-dimensional.

    **Cost:** a factor of 2 channels for each single index (a jvp), of 3 for each equal pair (a forward Laplacian with
    one column, whose limits apply): `u_xx` 3, `u_xy` 4, `u_xxx` 6, `u_xxxx` 9. **Source:** arXiv:2307.08214.

    ```python
    >>> import jax.numpy as jnp
    >>> from sciml_opt.calculus import partial
    >>> u = lambda x: x[0] ** 3 * x[1] ** 2
    >>> x = jnp.array([1.0, 2.0])
    >>> print(partial(u, 0)(x), partial(u, 0, 0)(x), partial(u, 0, 1)(x), partial(u, 0, 0, 1)(x))
    12.0 24.0 12.0 24.0

    ```
    """
    if not indices:
        raise ValueError("`partial(u, *indices)` needs at least one index: partial(u, 0) is du/dx_0.")
    order = sorted(operator.index(i) for i in indices)
    while order:
        i = order.pop(0)
        if order and order[0] == i:
            order.pop(0)
            u = _second(u, i)
        else:
            u = _first(u, i)
    return u


def _first(u: Function, i: int) -> Function:
    return lambda x: jax.jvp(u, (as_point(x),), (_unit(x, i),))[1]


def _second(u: Function, i: int) -> Function:
    return lambda x: forward_laplacian(u, columns=_unit(as_point(x), i)[None])(x).second


def _unit(x: Array, *indices: int) -> Array:
    """The sum of the coordinate directions `indices`, a constant of the trace."""
    v = np.zeros(x.shape, x.dtype)
    for i in indices:
        if not 0 <= i < x.size:
            raise IndexError(f"coordinate index {i} is out of range for `x` of shape {x.shape}: 0 <= i < {x.size}.")
        v[i] = 1
    return jnp.asarray(v)


def divergence(F: Function) -> Callable[[Float[Array, " d"]], Float[Array, ""]]:
    r"""The divergence of a vector field.

        (div F)(x) = sum_i dF_i / dx_i (x)

    **Arguments:** `F`, a function of ONE point `x` of shape `(d,)` with values of shape `(d,)`.

    **Returns:** a scalar function of `x`.

    **Raises:** at trace time `ValueError` unless `x` and `F(x)` have the same shape `(d,)`.

    **Cost:** d + 1 channels. For a flux `F = A grad u` with constant A, `forward_laplacian(u, columns=sqrt(A)^T)` is
    cheaper: d + 2 channels of `u` in place of d + 1 of its gradient.

    ```python
    >>> import jax.numpy as jnp
    >>> from sciml_opt.calculus import divergence
    >>> print(divergence(lambda x: x**2)(jnp.array([1.0, 2.0])))
    6.0

    ```
    """

    def at(x: Float[Array, " d"]) -> Float[Array, ""]:
        x = as_point(x)
        jacobian = jax.jacfwd(F)(x)
        if jacobian.shape != (x.size, x.size):
            raise ValueError(f"`F` must map shape {x.shape} to the same shape; it returned {jacobian.shape[:-1]}.")
        return jnp.trace(jacobian)

    return at


def bundle(u: Function, *pairs: tuple[int, int]) -> Callable[[Float[Array, " d"]], Bundle]:
    r"""Value, full gradient and the chosen second derivatives of `u`, in one pass.

        value = u,   gradient_i = du/dx_i,   second_k = d^2 u / dx_i dx_j   for the k-th pair (i, j)

    Each pair `(i, i)` is one forward Laplacian with the single column `e_i`, all under one `jax.vmap`, so that the
    value is shared; a mixed pair polarises, `u_ij = (D^2_{i+j} u - D^2_i u - D^2_j u) / 2`. The first derivatives along
    the seeds come with them; the coordinates that no pair names take one jvp each.

    **Arguments:**

    - `u`: a function of ONE point `x` of shape `(d,)`, any array shape out.
    - `pairs`: pairs `(i, j)` of coordinates in `0 .. d-1`; none at all asks for value and gradient only.

    **Returns:** a function `x -> Bundle(value, gradient, second)`, shapes `(...)`, `(d, ...)`, `(len(pairs), ...)`, the
    second derivatives in the order asked.

    **Raises:** at once `TypeError` or `ValueError` for a pair that is not two integers; at trace time as `partial`.

    **Cost:** 1 + 2K channels for K seeds (the coordinates named, plus one for each mixed pair), and 1 + M where M > 0
    coordinates are not named. If only the SUM of second derivatives is wanted, `forward_laplacian` is cheaper.
    One trace of `u`. **Source:** arXiv:2307.08214.

    ```python
    >>> import jax.numpy as jnp
    >>> from sciml_opt.calculus import bundle
    >>> value, gradient, second = bundle(lambda x: x[0] ** 2 * x[1], (0, 0), (0, 1))(jnp.array([3.0, 2.0]))
    >>> print(value, gradient, second)
    18.0 [12.  9.] [4. 6.]

    ```
    """
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"`pairs` are pairs (i, j) of coordinate indices; got {pairs}.")
    ordered = [(min(i, j), max(i, j)) for i, j in (map(operator.index, pair) for pair in pairs)]
    named = sorted({i for pair in ordered for i in pair})
    seeds = [(i,) for i in named] + sorted({(i, j) for i, j in ordered if i != j})
    row = {seed: k for k, seed in enumerate(seeds)}
    traced_once = jax.jit(lambda x: u(x), inline=True)

    def along(x, v):
        value, first, second = forward_laplacian(traced_once, columns=v[None])(x)
        return value, first[0], second

    def second_of(D2, i, j):
        if i == j:
            return D2[row[i,]]
        return 0.5 * (D2[row[i, j]] - D2[row[i,]] - D2[row[j,]])

    def at(x: Float[Array, " d"]) -> Bundle:
        x = as_point(x)
        columns = [_unit(x, *seed) for seed in seeds]
        others = [_unit(x, i) for i in range(x.size) if i not in named]
        D1 = D2 = D1_others = ()
        if others:
            value, D1_others = jax.vmap(lambda v: jax.jvp(traced_once, (x,), (v,)))(jnp.stack(others))
        if columns:
            value, D1, D2 = jax.vmap(along, in_axes=(None, 0))(x, jnp.stack(columns))
        # The same in every lane, and computed once: vmap leaves it unbatched until it is returned. A point has a
        # coordinate, so one of the two branches has run.
        value = value[0]  # pyright: ignore[reportPossiblyUnboundVariable]
        rest = iter(D1_others)
        gradient = jnp.stack([D1[row[i,]] if i in named else next(rest) for i in range(x.size)])
        second = [second_of(D2, i, j) for i, j in ordered]
        return Bundle(value, gradient, jnp.stack(second) if second else jnp.zeros((0, *value.shape), value.dtype))

    return at
