"""Which vector is the bias of which matrix, told from the equations of the tapped program."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.extend.core as jex

from ._program import Program


class Bias(NamedTuple):
    """The vector b in y_t = W z_t + b."""

    dense: int  # its place among the dense arrays
    along_rows: bool  # of W; else along its columns


def find_biases(
    program: Program, matrices: dict[Any, list[tuple[int, int, bool]]], vectors: dict[int, int]
) -> dict[Any, tuple[Bias, set[int]]]:
    """For each matrix W the vector b that is added to products with it, `y_t = W z_t + b`, and to which of them.

    Told by the derivative: the cotangent of b is the sum of the cotangents of these products, variable by variable.

    `matrices`: for each its `(left, right, cotangent_left)` among the outputs of the tapped program, behind the value;
    `vectors`: for the place of each dense array its output.
    """
    names: list[Any] = program.outputs[1:]
    addends = _addends(program)
    found: dict[Any, tuple[Bias, set[int]]] = {}
    for position, output in vectors.items():
        for key, along_rows in [(key, side) for key in matrices if key not in found for side in (True, False)]:
            rest, products = addends(names[output]), set()
            for tap in [pair[not along_rows] for pair in matrices[key] if pair[2] == along_rows]:
                parts = addends(names[tap])
                if parts <= rest and names[tap].aval.size == names[output].aval.size:
                    rest, products = rest - parts, products | {tap}
            if products and not rest:
                found[key] = Bias(position, along_rows), products
                break
    return found


def _addends(program: Program) -> Callable[[Any], Counter]:
    """The variables whose sum a variable is, apart from its shape."""
    made = {id(v): (eqn, operands) for eqn, operands in program.equations for v in eqn.outvars}
    known: dict[int, Counter] = {}

    def find(v) -> Counter:
        eqn, operands = made.get(id(v), (None, []))
        same_size = [o for o in operands if not isinstance(o, jex.Literal) and o.aval.size == v.aval.size]
        if eqn is None or len(same_size) < len(operands) or not operands:
            return Counter((id(v),))
        if eqn.primitive.name in ("reshape", "squeeze", "expand_dims", "broadcast_in_dim"):
            return of(operands[0])
        if eqn.primitive.name in ("add", "add_any"):
            return of(operands[0]) + of(operands[1])
        return Counter((id(v),))

    def of(v) -> Counter:
        if id(v) not in known:
            known[id(v)] = find(v)
        return known[id(v)]

    return of
