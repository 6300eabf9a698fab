"""The tap: exact factors of the per-point Jacobian of ANY function, from its jaxpr.

Every use of a parameter matrix W in a traced function is a product y_t = W z_t, whatever derivative code produced it.
Evaluate the trace with a zero tap eps_t added to each product and take one vjp with respect to the taps: the cotangents
g_t and the inputs z_t give

    d f / d W = sum_t  g_t z_t^T,        exactly.

The trace is split by dependence on the point. What depends on the parameters alone (a transpose, a cast, a normalised
or low-rank weight) is evaluated once, before the points; a matrix M(theta) made there is tapped as M and pulled back
through dM/dtheta once. Whatever is used in any other way keeps dense rows, one vjp a point: slower, and as exact.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from ._biases import Bias, find_biases
from ._program import Program, trace
from ._split import Hoist, Site, best_split
from ._views import View


class Pair(NamedTuple):
    """Sums of output positions of the point program that make one outer product."""

    lefts: tuple[int, ...]
    rights: tuple[int, ...]
    cotangent_left: bool
    biased: int  # the entry of a bias in its input: how many of the summed inputs belong to products with the bias


class Matrix(NamedTuple):
    """One tapped matrix of shape (rows, columns)."""

    view: View | None
    use: int  # of the array that it is, if it is no view
    shape: tuple[int, int]
    pairs: tuple[Pair, ...]
    terms: int  # T, the number of outer products
    bias: Bias | None


class Dense(NamedTuple):
    """One array with dense rows."""

    view: View | None
    use: int
    size: int
    output: int


class Evaluation(NamedTuple):
    """What `Tapped.evaluate` yields, arrays with a leading point axis N and the axis m of the outputs."""

    value: Array  # (N, m)
    outputs: list[Array]  # what `Pair` and `Dense` number


class Tapped:
    """A function of parameters and one point, ready to be linearized in factored form.

    Static: it holds programs, no parameter values (but constants that the function closes over).

    **Attributes:** `matrices`, `dense`: what was tapped and what was not; `uses`: every parameter array that the points
    see, with the reason where it is dense; `reached`: the parameter leaves that the function reads at all.
    """

    def __init__(self, f: Callable[[PyTree, PyTree], Array], params: PyTree, point: PyTree):
        leaves = jax.tree.leaves(params)
        program = trace(f, params, point)
        split = best_split(program, [leaf.shape for leaf in leaves])
        read = {v for _, operands in program.equations for v in operands if not isinstance(v, jex.Literal)}
        read.update(v for v in program.outputs if not isinstance(v, jex.Literal))
        self.reached = frozenset(i for i, v in enumerate(program.inputs[: len(leaves)]) if v in read)
        self.uses = split.uses
        self._split = split
        self._compile(jax.tree.leaves(point))

    @property
    def arrays(self) -> "Hoist":
        """The parameter arrays that are no views, as functions of the parameters: what is pulled back."""
        return self._split.hoist([use.var for use in self.uses if use.view is None])

    @property
    def constants(self) -> list[Array]:
        return [c if isinstance(c, jax.Array) else jnp.asarray(c) for c in self._split.program.constants.values()]

    def evaluate(self, params: PyTree, points: PyTree, chunk: int | None = None) -> Evaluation:
        """Value, cotangents and inputs at every point; with `chunk`, so many points at a time."""
        hoisted = self._split.hoist(self._split.boundary)(jax.tree.leaves(params), self.constants)
        leaves = jax.tree.leaves(points)

        def one(point):
            return self._points.evaluate(*hoisted, *point)

        count = leaves[0].shape[0]
        if chunk is None or chunk >= count:
            outs = jax.vmap(one)(leaves)
        else:
            outs = lax.map(one, leaves, batch_size=chunk)
        return Evaluation(outs[0], outs[1:])

    def _compile(self, point: Sequence) -> None:
        """Trace the tapped point program with its vjp, and merge what shares an input or a cotangent."""
        split = self._split
        boundary = [
            jax.ShapeDtypeStruct(jnp.shape(v), v.dtype) for v in (getattr(b, "aval", b) for b in split.boundary)
        ]
        labels: list[tuple[int, Site]] = []

        def one(hoisted, point):
            nonlocal labels
            z, labels, left, right, dense = split.linearize(hoisted, point)
            return z, left, right, dense

        closed, shapes = jax.make_jaxpr(one, return_shape=True)(boundary, list(point))
        self._points = Program(closed)
        (self.size,) = shapes[0].shape
        taps = len(labels)
        names: list[Any] = self._points.outputs[1:]
        pairs: dict[Any, list[tuple[int, int, bool]]] = {}
        shapes_of: dict[Any, tuple[View | None, int, tuple[int, int]]] = {}
        for k, (number, site) in enumerate(labels):
            use = self.uses[number]
            entries = split.entries(use, site)
            if use.view is None:  # the orientation of its first site
                upright = entries == split.entries(use, use.sites[0])
            else:
                upright = entries.upright
            view = entries if upright else entries.T
            key = (view, number if use.view is None else None)
            shapes_of[key] = (None if use.view is None else view, number, view.shape)
            pairs.setdefault(key, []).append((k, taps + k, True) if upright else (taps + k, k, False))
        numbers = [i for i, use in enumerate(self.uses) if not use.sites]
        self.dense = []
        for position, number in enumerate(numbers):
            view = self.uses[number].view
            size = math.prod(self.uses[number].var.aval.shape)
            flat = None if view is None else View(view.reshape(-1))
            self.dense.append(Dense(flat, number, size, 2 * taps + position))
        shown = {key: found for key, found in pairs.items() if key[0] is not None}
        vectors = {place: one.output for place, one in enumerate(self.dense) if one.view is not None}
        biases = find_biases(self._points, shown, vectors)
        self.matrices = []
        for key, found in pairs.items():
            bias, biased = biases.get(key, (None, set()))
            merged = tuple(_merge(found, biased, names))
            # T is the next to last axis of every factor, with and without the axis of the outputs before it.
            terms = sum(names[pair.lefts[0]].aval.shape[-2] for pair in merged)
            self.matrices.append(Matrix(*shapes_of[key], merged, terms, bias))


def _merge(found: list[tuple[int, int, bool]], biased: set[int], names: list) -> list[Pair]:
    """Outer products that share a factor become one, with the sum of the other: a kernel costs their number squared.

    The entry of a bias is one more entry of the inputs: what shares an input shares it, and it is summed with them.
    """
    by_left: dict[Any, list[tuple[int, int, int]]] = {}
    for left, right, cotangent_left in found:
        entry = int((left if cotangent_left else right) in biased)
        key = (id(names[left]), cotangent_left, None if cotangent_left else entry)
        by_left.setdefault(key, []).append((left, right, entry))
    by_right: dict[Any, list[Pair]] = {}
    for (_, cotangent_left, _), group in by_left.items():
        lefts, rights, entries = zip(*group, strict=True)
        pair = Pair(lefts[:1], rights, cotangent_left, sum(entries) if cotangent_left else entries[0])
        shared = tuple(sorted(id(names[right]) for right in rights))
        by_right.setdefault((shared, cotangent_left, pair.biased if cotangent_left else None), []).append(pair)
    return [
        Pair(
            tuple(left for pair in group for left in pair.lefts),
            group[0].rights,
            group[0].cotangent_left,
            group[0].biased if group[0].cotangent_left else sum(pair.biased for pair in group),
        )
        for group in by_right.values()
    ]
