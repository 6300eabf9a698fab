"""Traced functions as flat programs: calls inlined, common subexpressions merged.

A `Program` is a jaxpr in which every product of a parameter matrix with data is an equation of its own. Only public
jax: `jax.make_jaxpr` and `jax.extend.core`.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}
CALLS |= {"checkpoint": "jaxpr", "remat": "jaxpr"}  # older and newer names of the same
UNROLL = 2000  # equations that a loop over parameter matrices may become
UNSTACK = 16  # matrices that one batched product may become
COUNTERS = {np.dtype(kind) for kind in (bool, np.int32, np.int64, np.uint32)}
COMMUTATIVE = {"add", "mul", "add_any", "max", "min"}


REARRANGEMENTS = {
    "broadcast_in_dim",
    "concatenate",
    "convert_element_type",
    "copy",
    "copy_p",
    "expand_dims",
    "neg",
    "reshape",
}
REARRANGEMENTS |= {"rev", "slice", "dynamic_slice", "split", "squeeze", "transpose"}


class _Value(NamedTuple):
    """A traced value and what it depends on."""

    array: Any
    on_params: bool = False
    on_point: bool = False
    zero: bool = False  # known to be

    @property
    def is_parameter(self) -> bool:
        return self.on_params and not self.on_point


class Program:
    """A flat jaxpr without common subexpressions and dead code.

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
        self.equations = live(self.equations, self.outputs)

    def _merged(self, var):
        return var if isinstance(var, jex.Literal) else self._same.get(var, var)

    def evaluate(self, *inputs: Array) -> list[Array]:
        env = dict(self.constants) | dict(zip(self.inputs, inputs, strict=True))
        run(self.equations, env)
        return [read(env, v) for v in self.outputs]


def live(equations: Sequence[tuple[Any, list]], outputs: Iterable) -> list[tuple[Any, list]]:
    """The equations that the outputs need, or that have effects."""
    needed = {v for v in outputs if not isinstance(v, jex.Literal)}
    kept = []
    for eqn, operands in reversed(equations):
        if eqn.effects or not needed.isdisjoint(eqn.outvars):
            kept.append((eqn, operands))
            needed.update(v for v in operands if not isinstance(v, jex.Literal))
    return kept[::-1]


def read(env: dict, var) -> Any:
    return var.val if isinstance(var, jex.Literal) else env[var]


def run(equations: Iterable[tuple[Any, Sequence]], env: dict) -> None:
    """Evaluate equations in order, adding their results to `env`."""
    for eqn, operands in equations:
        env.update(zip(eqn.outvars, bind(eqn, [read(env, v) for v in operands]), strict=True))


def bind(eqn, operands: Sequence) -> list:
    """One equation on other operands. Those that hold functions are run as a jaxpr of one equation."""
    if any(
        isinstance(p, jex.Jaxpr | jex.ClosedJaxpr) or callable(p) for p in jax.tree.leaves(list(eqn.params.values()))
    ):
        return list(_as_function(eqn)(*operands))
    out = eqn.primitive.bind(*operands, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _as_function(eqn) -> Callable:
    body = jax.make_jaxpr(lambda: ())().jaxpr  # an empty jaxpr, to be filled
    free = [v for v in eqn.invars if not isinstance(v, jex.Literal)]
    once = list(dict.fromkeys(free))
    call = jex.jaxpr_as_fun(
        jex.ClosedJaxpr(body.replace(invars=once, outvars=list(eqn.outvars), eqns=[eqn], effects=eqn.effects), ())
    )

    def apply(*operands):
        given = {v: x for v, x in zip(eqn.invars, operands, strict=True) if not isinstance(v, jex.Literal)}
        return call(*(given[v] for v in once))

    return apply


def _identity(eqn, operands) -> Any:
    """The operand that an equation merely repeats, if it does."""
    name = eqn.primitive.name
    if len(eqn.outvars) != 1 or not operands:
        return None
    (out,) = eqn.outvars

    def same(v):
        return not isinstance(v, jex.Literal) and (v.aval.shape, v.aval.dtype) == (out.aval.shape, out.aval.dtype)

    def constant(v, number):
        return isinstance(v, jex.Literal) and np.ndim(v.val) == 0 and v.val == number

    if name in ("copy", "copy_p", "convert_element_type", "reshape", "squeeze", "broadcast_in_dim"):
        permuted = eqn.params.get("dimensions") is not None  # lax.reshape(..., dimensions=...) transposes first
        return operands[0] if len(operands) == 1 and same(operands[0]) and not permuted else None
    if name == "mul" and same(operands[0]) and constant(operands[1], 1):
        return operands[0]
    if name == "mul" and same(operands[1]) and constant(operands[0], 1):
        return operands[1]
    return None


def _key(eqn, operands) -> Hashable | None:
    """Equal for equations that compute the same; `None` for those that must stay apart."""
    if eqn.effects:
        return None
    names = [
        (v.val.dtype, np.shape(v.val), np.asarray(v.val).tobytes()) if _plain_literal(v) else id(v) for v in operands
    ]
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

    Calls (`jit`, `checkpoint`) are inlined. A loop (`scan`), a branch (`cond`, `switch`) or a batched product in which
    a parameter matrix meets the point is taken apart while it stays small, so that each matrix shows. Custom
    derivatives are kept whole: what enters them is differentiated by their own rules.
    """
    leaves, treedef = jax.tree.flatten((params, point))
    count = len(jax.tree.leaves(params))
    closed = jax.make_jaxpr(lambda *a: f(*jax.tree.unflatten(treedef, a)))(*leaves)

    def inlined(*arrays):
        given = [_Value(a, i < count, i >= count) for i, a in enumerate(arrays)]
        return [v.array for v in _inline(closed.jaxpr, closed.consts, given, None)]

    return Program(jax.make_jaxpr(inlined)(*leaves))


def _inline(jaxpr, consts, args: Sequence[_Value], taken: _Value | None) -> list[_Value]:
    """Evaluate a jaxpr on tracers, equation by equation; in a branch, `taken` says whether it is the selected one."""
    env: dict[Any, _Value] = {v: _Value(c) for v, c in zip(jaxpr.constvars, consts, strict=True)}
    env |= zip(jaxpr.invars, args, strict=True)

    def value(v):
        return _Value(v.val, zero=np.ndim(v.val) == 0 and v.val == 0) if isinstance(v, jex.Literal) else env[v]

    for eqn in jaxpr.eqns:
        ins = [value(v) for v in eqn.invars]
        name = eqn.primitive.name
        if name == "dot_general" and taken is not None and all(v.is_parameter for v in ins):
            small = min((0, 1), key=lambda i: np.size(ins[i].array))  # a row times a matrix: the row counts as data
            ins[small] = _guard(ins[small], taken)
        met = any(v.on_point for v in ins) and any(v.is_parameter and np.ndim(v.array) >= 1 for v in ins)
        alias = _identity(eqn, eqn.invars)
        if alias is not None:
            outs = [value(alias)]
        elif name in CALLS:
            body, body_consts = _body(eqn.params[CALLS[name]])
            outs = _inline(body, body_consts, ins, taken)
        elif name == "scan" and met and _unrollable(eqn):
            outs = _unroll(eqn, ins, taken)
        elif name == "cond" and met and _evaluable(eqn):
            outs = _branches(eqn, ins, taken)
        elif name == "dot_general" and any(v.zero for v in ins):  # the Laplacian of the coordinates: no use of a weight
            outs = [_Value(jnp.zeros(eqn.outvars[0].aval.shape, eqn.outvars[0].aval.dtype), zero=True)]
        elif name == "dot_general" and met and sum(v.is_parameter for v in ins) == 1:
            outs = [_product(eqn, ins, taken)]
        elif _counts(eqn, ins):
            with jax.ensure_compile_time_eval():
                outs = [_Value(np.asarray(out)[()]) for out in bind(eqn, [v.array for v in ins])]
        else:
            hoisted = name in REARRANGEMENTS and not any(v.on_point for v in ins)
            if taken is not None and not hoisted:
                ins = [_guard(v, taken) if v.is_parameter else v for v in ins]
            outs = _results(bind(eqn, [v.array for v in ins]), ins)
            scaled = name == "div" and not (ins[1].on_params or ins[1].on_point)  # by a factorial: `jet`
            if (name in REARRANGEMENTS and all(v.zero for v in ins)) or (scaled and ins[0].zero):
                outs = [v._replace(zero=True) for v in outs]
        env |= zip(eqn.outvars, outs, strict=True)
    return [value(v) for v in jaxpr.outvars]


def _results(arrays: Iterable, ins: Sequence[_Value]) -> list[_Value]:
    on_params, on_point = any(v.on_params for v in ins), any(v.on_point for v in ins)
    return [_Value(a, on_params, on_point) for a in arrays]


def _body(jaxpr) -> tuple[Any, Sequence]:
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, jex.ClosedJaxpr) else (jaxpr, ())


def _counts(eqn, ins: Sequence[_Value]) -> bool:
    """Whether this is arithmetic of loop counters, known while tracing: it says which layer of a stack is meant."""
    known = bool(ins) and not eqn.effects and not any(isinstance(v.array, jax.core.Tracer) for v in ins)
    return known and all(v.aval.shape == () and v.aval.dtype in COUNTERS for v in eqn.outvars)


def _unrollable(eqn) -> bool:
    body, _ = _body(eqn.params["jaxpr"])
    known = len(body.invars) == len(eqn.invars) and len(body.outvars) == len(eqn.outvars)
    return known and 0 < eqn.params["length"] * _length(body) <= UNROLL


def _length(jaxpr) -> int:
    """The equations of a program with everything in it inlined and unrolled."""
    total = 0
    for eqn in jaxpr.eqns:
        bodies = [p for p in jax.tree.leaves(list(eqn.params.values())) if isinstance(p, jex.Jaxpr | jex.ClosedJaxpr)]
        total += eqn.params.get("length", 1) * max(1, sum(_length(_body(body)[0]) for body in bodies))
    return total


def _unroll(eqn, ins: Sequence[_Value], taken: _Value | None) -> list[_Value]:
    length, (body, body_consts) = eqn.params["length"], _body(eqn.params["jaxpr"])
    # The operands are constants, the carry, and what is scanned over, which has one axis more outside the body: told by
    # the axes, since the parameters of the primitive that say so change between versions of jax.
    carried = sum(inside.aval.ndim == v.aval.ndim for inside, v in zip(body.outvars, eqn.outvars, strict=True))
    scanned = sum(inside.aval.ndim != v.aval.ndim for inside, v in zip(body.invars, eqn.invars, strict=True))
    consts, carry = ins[: len(ins) - carried - scanned], ins[len(ins) - carried - scanned : len(ins) - scanned]
    xs = ins[len(ins) - scanned :]
    rows = []
    for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
        here = [v._replace(array=lax.index_in_dim(v.array, i, keepdims=False)) for v in xs]
        out = _inline(body, body_consts, [*consts, *carry, *here], taken)
        carry, ys = out[:carried], out[carried:]
        rows.append(ys)
    if eqn.params["reverse"]:
        rows.reverse()
    return [*carry, *(_results([jnp.stack([y.array for y in ys])], ys)[0] for ys in zip(*rows, strict=True))]


def _evaluable(eqn) -> bool:
    """Whether every branch may be evaluated, whichever is selected: as under `vmap`. A loop may not end for others."""
    return not eqn.effects and not holds(eqn, "while")


def holds(eqn, *names: str) -> bool:
    """Whether an equation is, or has inside, one of the named primitives."""
    inner = [
        _body(p)[0] for p in jax.tree.leaves(list(eqn.params.values())) if isinstance(p, jex.Jaxpr | jex.ClosedJaxpr)
    ]
    return eqn.primitive.name in names or any(holds(e, *names) for body in inner for e in body.eqns)


def _branches(eqn, ins: Sequence[_Value], taken: _Value | None) -> list[_Value]:
    """Every branch, and a selection of the results."""
    index, *operands = ins
    if not isinstance(index.array, jax.core.Tracer):
        body, consts = _body(eqn.params["branches"][int(index.array)])
        return _inline(body, consts, operands, taken)
    results = []
    for i, branch in enumerate(eqn.params["branches"]):
        here = index._replace(array=lax.eq(index.array, jnp.asarray(i, index.array.dtype)))
        if taken is not None:
            here = _results([here.array & taken.array], [here, taken])[0]
        body, consts = _body(branch)
        given = [v if v.is_parameter else _guard(v, here) for v in operands]
        results.append(_inline(body, consts, given, here))
    return [_selection(index, cases) for cases in zip(*results, strict=True)]


def _selection(index: _Value, cases: Sequence[_Value]) -> _Value:
    if all(v.array is cases[0].array for v in cases):  # a weight that a derivative of the branches hands on
        return cases[0]
    return _results([lax.select_n(index.array, *(v.array for v in cases))], [index, *cases])[0]


def _guard(v: _Value, taken: _Value) -> _Value:
    """The same value, through which no derivative (that may be no number) leaves a branch that is not selected."""
    if not jnp.issubdtype(v.array.dtype, jnp.inexact):
        return v
    return _results([lax.select(taken.array, v.array, lax.stop_gradient(v.array))], [v, taken])[0]


def _product(eqn, ins: Sequence[_Value], taken: _Value | None) -> _Value:
    """A product of parameters with data. In a branch that is not selected, data and cotangent are zeros."""

    def selected(array):
        return array if taken is None else lax.select(taken.array, array, jnp.zeros_like(array))

    operands = [v.array if v.is_parameter else selected(v.array) for v in ins]
    (out,) = [_unstack(eqn, *operands)] if _is_stack(eqn, ins) else bind(eqn, operands)
    return _results([selected(out)], [*ins, *([] if taken is None else [taken])])[0]


def _is_stack(eqn, ins: Sequence[_Value]) -> bool:
    """Whether this is a product of a small stack of parameter matrices, one a batch index, with data."""
    (_, (batch, _)) = eqn.params["dimension_numbers"]
    return len(batch) == 1 and ins[0].array.shape[batch[0]] <= UNSTACK


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
