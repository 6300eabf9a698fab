"""The forward Laplacian: value, chosen first derivatives and one second-order operator in a single forward pass."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


class ForwardLaplacian(NamedTuple):
    """What one pass of `forward_laplacian` yields: `u`, `D_{v_k} u` (leading axis K) and the second-order operator."""

    value: Float[Array, "..."]
    first: Float[Array, "K ..."]
    second: Float[Array, "..."]


def forward_laplacian(
    u: Callable[[Float[Array, " d"]], Float[Array, "..."]],
    columns: ArrayLike | Sequence[Any] | None = None,
    drift: ArrayLike | Sequence[Any] | None = None,
) -> Callable[[Float[Array, " d"]], ForwardLaplacian]:
    r"""Value, directional derivatives and a second-order operator of `u`, in one forward pass.

        value = u(x),   first_k = D_{v_k} u(x),   second = sum_k D^2_{v_k v_k} u(x) + D_b u(x)

    With `columns` the rows of `sqrt(A)^T`, `second` is `A : Hess u + b . grad u`, the generator of a diffusion. So a
    parabolic operator takes the spatial directions as columns and MINUS time as drift, and travels in three channels:
    `u_t - c u_xx = -second` for `columns = [sqrt(c) e_x]`, `drift = -e_t`.

    **Arguments:**

    - `u`: a function of ONE coordinate vector `x` of shape `(d,)`; any array shape out. Use `jax.vmap` for batches.
    - `columns`: the directions `v_k`, shape `(K, d)`, cast to the dtype of `x`; K = 0 is allowed. Default: identity.
    - `drift`: the direction `b`, shape `(d,)`, cast to the dtype of `x`. Default: zero.

    **Returns:** a function `x -> ForwardLaplacian(value, first, second)` with shapes `(...)`, `(K, ...)`, `(...)`.

    **Raises:** `ValueError` (shapes of `x`, `columns`, `drift`) or `TypeError` (`x` or the output is not a floating
    array), all at trace time.

    **Cost:** K + 2 channels (value, K first derivatives, one second-order slot), where each channel is one evaluation
    of `u`; nested forward mode takes 2K + 1 and more. One trace of `u`.

    **Limits:** a `u` that holds a loop (`scan`, `while_loop`, `fori_loop`, `jnp.interp`) goes through nested forward
    mode instead, in `4 K` channels; a `custom_vjp` has no forward mode in jax at all. Primitives that folx has no rule
    for (`sort`, `cond`, `jax.checkpoint`, `fft`) are right, at the cost of K nested jvps each and of a logged warning;
    so is a `custom_jvp`, without the warning. At a kink (`abs`, `relu`) the second derivative is that of one side.

    **Source:** forward Laplacian, arXiv:2307.08214; the propagation is folx.

    ```python
    >>> import jax.numpy as jnp
    >>> from sciml_opt.calculus import forward_laplacian
    >>> u = lambda xt: xt[0] ** 3 * xt[1]                      # x^3 t at (2, 1): u_t - 0.25 u_xx = 8 - 3
    >>> heat = forward_laplacian(u, columns=jnp.array([[0.5, 0.0]]), drift=jnp.array([0.0, -1.0]))
    >>> print(-heat(jnp.array([2.0, 1.0])).second)
    5.0

    ```
    """

    def at(x: Float[Array, " d"]) -> ForwardLaplacian:
        x = as_point(x)
        d = x.size
        V = jnp.eye(d, dtype=x.dtype) if columns is None else jnp.asarray(columns, x.dtype)
        b = jnp.zeros_like(x) if drift is None else jnp.asarray(drift, x.dtype)
        if V.ndim != 2 or V.shape[1] != d:
            raise ValueError(f"`columns` must have shape (K, d) = (K, {d}), one direction a row; got {V.shape}.")
        if b.shape != (d,):
            raise ValueError(f"`drift` must be one direction of shape (d,) = ({d},); got shape {b.shape}.")
        if len(V) == 0:  # folx cannot carry an empty Jacobian; without columns only the drift is left
            value, second = jax.jvp(u, (x,), (b,))
            return ForwardLaplacian(value, jnp.zeros((0, *value.shape), value.dtype), second)
        return _propagate(u, x, V, b)

    return at


def as_point(x: Float[Array, " d"]) -> Float[Array, " d"]:
    """`x` itself, after the check that it is the floating coordinate vector of ONE point."""
    x = jnp.asarray(x)
    if x.ndim != 1:
        raise ValueError(
            f"`x` must be the coordinate vector of one point, of shape (d,); got shape {x.shape}. "
            "Differential operators are written for ONE point; use jax.vmap for a batch of points."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"`x` must have a floating dtype, since it is differentiated; got {x.dtype}.")
    return x


def _propagate(u: Callable, x: Array, columns: Array, drift: Array) -> ForwardLaplacian:
    import folx  # lazily: `import sciml_opt` stays light
    from folx.api import FwdJacobian, FwdLaplArray

    # `u` is traced here, under the caller's promotion rules and only once. folx gets the jaxpr, under permissive rules:
    # it broadcasts (n,) against (K, n) and adds float64 zeros to float32 arrays, and that is nothing a user can mend.
    traced, shape = jax.make_jaxpr(u, return_shape=True)(x)
    if not isinstance(shape, jax.ShapeDtypeStruct):
        raise TypeError(f"`u` must return ONE array, a scalar or a vector; got {shape}.")
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        raise TypeError(f"`u` must return a floating array; got {shape.dtype}.")
    if _holds_a_loop(traced.jaxpr):
        return _nested(jex.jaxpr_as_fun(traced), x, columns, drift)
    evaluate = jex.jaxpr_as_fun(traced.replace(jaxpr=_rename_jitted(traced.jaxpr)))
    seed = FwdLaplArray(x, FwdJacobian.from_dense(columns), drift)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        (out,) = folx.forward_laplacian(evaluate, sparsity_threshold=0, disable_jit=True)(seed)
    if not isinstance(out, FwdLaplArray):  # `u` does not depend on x (or only through a step function)
        value = jnp.asarray(out, shape.dtype)
        return ForwardLaplacian(value, jnp.zeros((len(columns), *shape.shape), shape.dtype), jnp.zeros_like(value))
    return ForwardLaplacian(out.x, out.dense_jacobian, out.laplacian)


def _nested(u: Callable, x: Array, columns: Array, drift: Array) -> ForwardLaplacian:
    def along(v):
        return jax.jvp(lambda y: jax.jvp(u, (y,), (v,)), (x,), (v,))

    (value, first), (_, seconds) = jax.vmap(along, out_axes=((None, 0), (0, 0)))(columns)
    (_, (slope,)) = jax.jvp(u, (x,), (drift,))
    return ForwardLaplacian(value[0], first[0], jnp.sum(seconds[0], axis=0) + slope)


def _holds_a_loop(jaxpr: jex.Jaxpr) -> bool:
    # folx takes some scans and no while loop, and which ones depends on the version of jax; so does the packing of
    # searchsorted (jnp.interp), a `call_hi_primitive` since jax 0.11.
    def inner(eqn):
        return [body for body in eqn.params.values() if isinstance(body, jex.ClosedJaxpr | jex.Jaxpr)]

    def closed(body):
        return body.jaxpr if isinstance(body, jex.ClosedJaxpr) else body

    return any(
        eqn.primitive.name in ("scan", "while", "call_hi_primitive")
        or any(_holds_a_loop(closed(body)) for body in inner(eqn))
        for eqn in jaxpr.eqns
    )


def _rename_jitted(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    # folx replaces every jitted function CALLED softplus, sigmoid, solve, inv, ... by a rule for jax's function of that
    # name. That is silently wrong for a user's own `@jax.jit def softplus(x)`, and breaks on jax's own under an inner
    # jax.grad, which keeps the name and changes the body. Without the name, folx walks through the body, as it should.
    def rename(eqn):
        if eqn.primitive.name not in ("jit", "pjit"):
            return eqn
        body = eqn.params["jaxpr"]
        if _is_elementwise_activation(eqn.params["name"], body):
            return eqn
        body = body.replace(jaxpr=_rename_jitted(body.jaxpr))
        return eqn.replace(params={**eqn.params, "jaxpr": body, "name": "u." + eqn.params["name"]})

    return jaxpr.replace(eqns=[rename(eqn) for eqn in jaxpr.eqns])


def _is_elementwise_activation(name: str, body: jex.ClosedJaxpr) -> bool:
    # The two names worth keeping, since the rule by name is up to three times faster than the walk through the body:
    # they stay where the body is, equation by equation, the one that jax writes for the same shapes.
    own = {"softplus": jax.nn.softplus, "silu": jax.nn.silu}.get(name)
    if own is None or len(body.in_avals) != 1:
        return False
    return str(body) == str(jax.make_jaxpr(own)(*body.in_avals).eqns[0].params["jaxpr"])
