"""What the tap takes for granted about jaxprs, so that a version of JAX that changed it fails here, and says what.

Only public modules are used (`jax.make_jaxpr`, `jax.extend.core`), but the names of primitives and of their parameters
are promised by none. The docstrings say what would happen where a name has changed.
"""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import pytest
from jax import lax

from sciml_opt.linearization._program import CALLS, REARRANGEMENTS, holds

VECTOR, MATRIX = jnp.ones(2), jnp.ones((2, 2))


@jax.custom_vjp
def custom(x):
    return x


custom.defvjp(lambda x: (x, None), lambda _, g: (g,))


def only(f, *args):
    """The one equation of a function."""
    (eqn,) = jax.make_jaxpr(f)(*args).jaxpr.eqns
    return eqn


def changed(what):
    return (
        f"JAX {jax.__version__} changed {what}; sciml_opt/linearization/_program.py, _split.py or _taps.py must follow"
    )


@pytest.mark.parametrize(("wrap", "what"), [(jax.jit, "jax.jit"), (jax.checkpoint, "jax.checkpoint")])
def test_calls(wrap, what):
    """Otherwise weights inside are dense."""
    eqn = only(wrap(jnp.sin), VECTOR)
    assert eqn.primitive.name in CALLS, changed(f"the name of {what} to {eqn.primitive.name!r}")
    key = CALLS[eqn.primitive.name]
    assert isinstance(eqn.params.get(key), jex.Jaxpr | jex.ClosedJaxpr), changed(f"the parameters of {what}")


def test_scan():
    """Otherwise an error, or loops over weights are dense."""

    def f(w, x, xs):
        return lax.scan(lambda c, y: ((jnp.sin(w @ c[0]) + y, c[1] + 1), c[0]), (x, 0), xs)

    eqn = only(f, MATRIX, VECTOR, jnp.ones((3, 2)))
    assert eqn.primitive.name == "scan", changed("the name of scan")
    assert {"jaxpr", "length", "reverse"} <= set(eqn.params), changed("the parameters of scan")
    body = eqn.params["jaxpr"]
    body = body.jaxpr if isinstance(body, jex.ClosedJaxpr) else body
    inside = [[v.aval.ndim for v in vs] for vs in (body.invars, body.outvars)]
    outside = [[v.aval.ndim for v in vs] for vs in (eqn.invars, eqn.outvars)]
    assert inside == [[2, 1, 0, 1], [1, 0, 1]], changed("the order of the operands of scan (constants, carry, xs)")
    assert outside == [[2, 1, 0, 2], [1, 0, 2]], changed("the order of the results of scan (carry, ys)")


def test_cond():
    """Otherwise weights in branches are dense, or the wrong branch."""

    def f(i, x):
        return lax.switch(i, [jnp.sin, jnp.cos, jnp.tan], x)

    eqn = jax.make_jaxpr(f)(1, VECTOR).jaxpr.eqns[-1]
    assert eqn.primitive.name == "cond", changed("the name of cond")
    assert len(eqn.params.get("branches", ())) == 3, changed("the branches of cond")
    assert eqn.invars[0].aval.dtype == jnp.int32, changed("the index of cond, its first operand")
    bodies = [b.jaxpr if isinstance(b, jex.ClosedJaxpr) else b for b in eqn.params["branches"]]
    assert [b.eqns[0].primitive.name for b in bodies] == ["sin", "cos", "tan"], changed(
        "the order of the branches of cond"
    )
    assert holds(eqn, "tan") and not holds(eqn, "while"), changed("how jaxprs lie in parameters")
    loop = only(lambda x: lax.while_loop(lambda y: y[0] > 0, jnp.sin, x), VECTOR)
    assert holds(loop, "while"), changed("the name of while_loop")


def test_dot_general():
    """Otherwise an error."""
    eqn = only(lambda w, x: w @ x, MATRIX, VECTOR)
    assert eqn.primitive.name == "dot_general", changed("the name of dot_general")
    assert eqn.params["dimension_numbers"] == (((1,), (0,)), ((), ())), changed("the parameters of dot_general")


def test_stop_gradient():
    """Otherwise frozen leaves have rows of zeros, and `explain` does not call them frozen."""
    eqn = only(lax.stop_gradient, VECTOR)
    assert eqn.primitive.name == "stop_gradient", changed("the name of stop_gradient")


def test_custom_vjp():
    """Otherwise products `J v` through a custom rule of a weight are an error."""
    eqn = only(custom, VECTOR)
    assert holds(eqn, "custom_vjp_call", "custom_vjp_call_jaxpr"), changed("the name of custom_vjp")


@pytest.mark.parametrize(
    "f",
    [
        lambda a: a.T,
        lambda a: a.reshape(4),
        lambda a: a[0:1],
        lambda a: lax.rev(a, (0,)),
        lambda a: lax.concatenate([a, a], 0),
        lambda a: a.astype(jnp.float32),
        lambda a: lax.squeeze(a[None], (0,)),
        lambda a: jnp.split(a, 2)[0],
        lambda a: lax.dynamic_slice(a, (1, 0), (1, 2)),
    ],
)
def test_rearrangements(f):
    """Otherwise a view is no view: pulled back, which is slower and as exact."""
    names = {eqn.primitive.name for eqn in jax.make_jaxpr(f)(MATRIX).jaxpr.eqns}
    assert names <= REARRANGEMENTS | set(CALLS), changed(f"a rearrangement to {names}")


def test_a_jaxpr_of_one_equation_can_be_built():
    """Otherwise an error: equations that hold functions are run like this."""
    eqn = only(custom, VECTOR)
    body = jax.make_jaxpr(lambda: ())().jaxpr
    body = body.replace(invars=list(eqn.invars), outvars=list(eqn.outvars), eqns=[eqn], effects=eqn.effects)
    (out,) = jex.jaxpr_as_fun(jex.ClosedJaxpr(body, ()))(VECTOR)
    assert (out == VECTOR).all(), changed("Jaxpr.replace, ClosedJaxpr or jaxpr_as_fun of jax.extend.core")
