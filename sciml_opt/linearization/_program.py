"""Traced functions as flat programs: calls inlined, common subexpressions merged.

A `Program` is a jaxpr in which every product of a parameter matrix with data is an equation of its own. Only public
jax: `jax.make_jaxpr` and `jax.extend.core`.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}
CALLS |= {"checkpoint": "jaxpr", "remat": "jaxpr"}  # older and newer names of the same
UNROLL = 2000  # equations that a loop over parameter matrices may become
UNSTACK = 16  # matrices that one batched product may become
COMMUTATIVE = {"add", "mul", "add_any", "max", "min"}


class _Value(NamedTuple):
    """A traced value and what it depends on."""

    array: Any
    on_params: bool
    on_point: bool

    @property
    def is_parameter(self) -> bool:
        return self.on_params and not self.on_point


class Program:
    """A flat jaxpr after common-subexpression elimination.

    **Attributes:** `inputs`, `outputs`: variables (an output may be a literal); `equations`: `(eqn, operands)` with
    merged operands; `constants`: variable -> closed-over array.
    """

    def __init__(self, closed: jex.ClosedJaxpr):
        jaxpr = closed.jaxpr
        self._same: dict[Any, Any] = {}
        seen: dict[Hashable, list] = {}
        self.inputs = list(jaxpr.invars)
        self.constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        by_identity: dict[int, Any] = {}
        for var, const in self.constants.items():
            self._same[var] = by_identity.setdefault(id(const), var)
        self.equations: list[tuple[Any, list]] = []
        for eqn in jaxpr.eqns:
            operands = [self._merged(v) for v in eqn.invars]
            alias = _identity(eqn, operands)
            if alias is not None:
                self._same[eqn.outvars[0]] = alias
                continue
            key = _key(eqn, operands)
            if key in seen:
                self._same.update(zip(eqn.outvars, seen[key], strict=True))
                continue
            if key is not None:
                seen[key] = eqn.outvars
            self.equations.append((eqn, operands))
        self.outputs = [self._merged(v) for v in jaxpr.outvars]

    def _merged(self, var):
        return var if isinstance(var, jex.Literal) else self._same.get(var, var)

    def evaluate(self, *inputs: Array) -> list[Array]:
        env = dict(self.constants) | dict(zip(self.inputs, inputs, strict=True))
        run(self.equations, env)
        return [read(env, v) for v in self.outputs]


def read(env: dict, var) -> Any:
    return var.val if isinstance(var, jex.Literal) else env[var]


def run(equations: Iterable[tuple[Any, Sequence]], env: dict) -> None:
    """Evaluate equations in order, adding their results to `env`."""
    for eqn, operands in equations:
        env.update(zip(eqn.outvars, bind(eqn, [read(env, v) for v in operands]), strict=True))


def bind(eqn, operands: Sequence) -> list:
    """One equation on other operands. Those that hold functions are run as a jaxpr of one equation."""
    if any(isinstance(p, jex.Jaxpr | jex.ClosedJaxpr) or callable(p) for p in jax.tree.leaves(list(eqn.params.values()))):
        return list(_as_function(eqn)(*operands))
    out = eqn.primitive.bind(*operands, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _as_function(eqn) -> Callable:
    body = jax.make_jaxpr(lambda: ())().jaxpr  # an empty jaxpr, to be filled
    free = [v for v in eqn.invars if not isinstance(v, jex.Literal)]
    once = list(dict.fromkeys(free))
    call = jex.jaxpr_as_fun(jex.ClosedJaxpr(body.replace(invars=once, outvars=list(eqn.outvars), eqns=[eqn], effects=eqn.effects), ()))

    def apply(*operands):
        given = {v: x for v, x in zip(eqn.invars, operands, strict=True) if not isinstance(v, jex.Literal)}
        return call(*(given[v] for v in once))

    return apply


def _identity(eqn, operands) -> Any:
    """The operand that an equation merely repeats, if it does."""
    name, (out, *others) = eqn.primitive.name, eqn.outvars
    if others or not operands:
        return None

    def same(v):
        return not isinstance(v, jex.Literal) and (v.aval.shape, v.aval.dtype) == (out.aval.shape, out.aval.dtype)

    def constant(v, number):
        return isinstance(v, jex.Literal) and np.ndim(v.val) == 0 and v.val == number

    if name in ("copy", "copy_p", "convert_element_type", "reshape", "squeeze", "broadcast_in_dim", "reduce_precision"):
        plain = name not in ("reduce_precision",) and len(operands) == 1 and same(operands[0])
        return operands[0] if plain else None
    if name == "mul" and same(operands[0]) and constant(operands[1], 1):
        return operands[0]
    if name == "mul" and same(operands[1]) and constant(operands[0], 1):
        return operands[1]
    return None


def _key(eqn, operands) -> Hashable | None:
    """Equal for equations that compute the same; `None` for those that must stay apart."""
    if eqn.effects:
        return None
    names = [(v.val.dtype, np.shape(v.val), np.asarray(v.val).tobytes()) if _plain_literal(v) else id(v) for v in operands]
    if eqn.primitive.name in COMMUTATIVE:
        names.sort(key=str)
    key = (eqn.primitive, tuple(sorted(eqn.params.items(), key=lambda kv: kv[0])), tuple(names))
    try:
        hash(key)
    except TypeError:  # an unhashable parameter
        return None
    return key


def _plain_literal(v) -> bool:
    return isinstance(v, jex.Literal) and hasattr(v.val, "dtype")


def trace(f: Callable[[PyTree, PyTree], PyTree], params: PyTree, point: PyTree) -> Program:
    """`f(params, point)` as a flat program whose inputs are the leaves of `params`, then those of `point`.

    Calls (`jit`, `checkpoint`) are inlined. A loop (`scan`) or a batched product in which a parameter matrix meets the
    point is unrolled while it stays small, so that each matrix shows. Custom derivatives and branches are kept whole:
    what enters them is differentiated by their own rules.
    """
    leaves, treedef = jax.tree.flatten((params, point))
    count = len(jax.tree.leaves(params))
    closed = jax.make_jaxpr(lambda *a: f(*jax.tree.unflatten(treedef, a)))(*leaves)

    def inlined(*arrays):
        given = [_Value(a, i < count, i >= count) for i, a in enumerate(arrays)]
        return [v.array for v in _inline(closed.jaxpr, closed.consts, given)]

    return Program(jax.make_jaxpr(inlined)(*leaves))


def _inline(jaxpr, consts, args: Sequence[_Value]) -> list[_Value]:
    env: dict[Any, _Value] = {v: _Value(c, False, False) for v, c in zip(jaxpr.constvars, consts, strict=True)}
    env |= zip(jaxpr.invars, args, strict=True)

    def value(v):
        return _Value(v.val, False, False) if isinstance(v, jex.Literal) else env[v]

    for eqn in jaxpr.eqns:
        ins = [value(v) for v in eqn.invars]
        name = eqn.primitive.name
        on_params, on_point = any(v.on_params for v in ins), any(v.on_point for v in ins)
        met = on_point and any(v.is_parameter and np.ndim(v.array) >= 2 for v in ins)
        if name in CALLS:
            body, body_consts = _body(eqn.params[CALLS[name]])
            outs = _inline(body, body_consts, ins)
        elif name == "scan" and met and _unrollable(eqn):
            outs = _unroll(eqn, ins)
        elif name == "dot_general" and met and _is_stack(eqn, ins):
            outs = [_Value(_unstack(eqn, *(v.array for v in ins)), on_params, on_point)]
        else:
            outs = [_Value(out, on_params, on_point) for out in bind(eqn, [v.array for v in ins])]
        env |= zip(eqn.outvars, outs, strict=True)
    return [value(v) for v in jaxpr.outvars]


def _body(jaxpr) -> tuple[Any, Sequence]:
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, jex.ClosedJaxpr) else (jaxpr, ())


def _unrollable(eqn) -> bool:
    return eqn.params["length"] * len(eqn.params["jaxpr"].jaxpr.eqns) <= UNROLL


def _unroll(eqn, ins: Sequence[_Value]) -> list[_Value]:
    p = eqn.params
    consts, rest = ins[: p["num_consts"]], ins[p["num_consts"] :]
    carry, xs = list(rest[: p["num_carry"]]), rest[p["num_carry"] :]
    rows = []
    for i in reversed(range(p["length"])) if p["reverse"] else range(p["length"]):
        here = [_Value(lax.index_in_dim(x.array, i, keepdims=False), x.on_params, x.on_point) for x in xs]
        out = _inline(p["jaxpr"].jaxpr, p["jaxpr"].consts, [*consts, *carry, *here])
        carry, ys = out[: p["num_carry"]], out[p["num_carry"] :]
        rows.append(ys)
    if p["reverse"]:
        rows.reverse()
    stacked = [
        _Value(jnp.stack([y.array for y in ys]), any(y.on_params for y in ys), any(y.on_point for y in ys))
        for ys in zip(*rows, strict=True)
    ]
    return [*carry, *stacked]


def _is_stack(eqn, ins: Sequence[_Value]) -> bool:
    """Whether this is a product of a small stack of parameter matrices, one a batch index, with data."""
    (_, (batch, _)) = eqn.params["dimension_numbers"]
    return len(batch) == 1 and ins[0].array.shape[batch[0]] <= UNSTACK and sum(v.is_parameter for v in ins) == 1


def _unstack(eqn, lhs, rhs):
    (contract, ((left,), (right,))) = eqn.params["dimension_numbers"]

    def without(axes, batch):
        return tuple(a - (a > batch) for a in axes)

    numbers = ((without(contract[0], left), without(contract[1], right)), ((), ()))
    params = {**eqn.params, "dimension_numbers": numbers}
    products = [
        eqn.primitive.bind(lax.index_in_dim(lhs, i, left, False), lax.index_in_dim(rhs, i, right, False), **params)
        for i in range(lhs.shape[left])
    ]
    return jnp.stack(products)
