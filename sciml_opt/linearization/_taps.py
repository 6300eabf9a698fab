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
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from ._biases import Bias, find_biases
from ._program import REARRANGEMENTS, Program, bind, holds, read, run, trace
from ._views import View, leaf_views, propagate

# What a number of a row costs that is pulled back through dM/dtheta, as a multiple of one on the parameters themselves.
PULLED = 8
# What a number of a factor costs to make, as a multiple of one of a row to keep.
MAKING = 0.25


class Site(NamedTuple):
    """One product in which a parameter matrix meets data."""

    equation: int
    side: int  # of the matrix among the two operands
    axes: tuple[int, ...]  # of the matrix: first the free ones, then the contracted ones
    free: int  # how many are free


class Use(NamedTuple):
    """How the points use one parameter array M(theta)."""

    var: Any
    leaves: frozenset[int]  # the parameter leaves that it depends on
    view: np.ndarray | None  # the entries of the parameter vector that it shows, if it only shows entries
    scales: tuple  # variables whose product (or quotient) multiplies them
    sites: tuple[Site, ...]  # where it is tapped; empty if it is dense
    reason: str  # why it is dense


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
        split = _best_split(program, [leaf.shape for leaf in leaves])
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


class Hoist:
    """What is evaluated once: arrays as functions of the parameters. It holds equations and no values."""

    def __init__(self, program: Program, equations: list, outputs: Sequence):
        self._inputs, self._constants = program.inputs, list(program.constants)
        self._equations, self._outputs = equations, tuple(outputs)
        self.shapes = tuple(v.aval.shape for v in outputs)

    def __call__(self, leaves: Sequence, constants: Sequence) -> list:
        env = dict(zip(self._constants, constants, strict=True)) | dict(zip(self._inputs, leaves, strict=False))
        run(self._equations, env)
        return [env[v] for v in self._outputs]


def _best_split(program: Program, shapes: Sequence[tuple[int, ...]]) -> "_Split":
    """The split whose rows are cheapest.

    A product of a parameter array with a constant depends on no point. Some are best tapped all the same: W e_i, the
    first layer's derivative, since W is tapped anyway. Others are best evaluated once: the network on the nodes of an
    integral, a power iteration. So it is with numbers: exp(nu) in front of the residual, exp(s) times a weight.
    """
    once = _Split(program, shapes, frozenset())
    products = [once.constant_products, once.direct_products(), []]
    choices = dict.fromkeys(frozenset([*some, *scalars]) for some in products for scalars in (once.scalars, []))
    return min((_Split(program, shapes, pushed) if pushed else once for pushed in choices), key=lambda s: s.cost)


class _Split:
    """A program split into what is evaluated once and what is evaluated a point, among it the equations `pushed`."""

    def __init__(self, program: Program, shapes: Sequence[tuple[int, ...]], pushed: frozenset[int]):
        self.program = program
        self.hoisted: list = []
        self.pointwise: list = []
        self.constant_products: list[int] = []  # equations: a parameter array times a constant
        self.scalars: list[int] = []  # equations: numbers made of parameters that are numbers
        on_params = {v: frozenset((i,)) for i, v in enumerate(program.inputs[: len(shapes)])}
        on_point = set(program.inputs[len(shapes) :])
        numbers = {v for v in on_params if v.aval.shape == ()}
        self._views: dict[Any, np.ndarray] = dict(zip(program.inputs, leaf_views(shapes), strict=False))
        self._scales: dict[Any, tuple] = dict.fromkeys(self._views, ())
        for number, (eqn, operands) in enumerate(program.equations):
            variables = [v for v in operands if not isinstance(v, jex.Literal)]
            outs = [out for out in eqn.outvars if jnp.issubdtype(out.aval.dtype, jnp.inexact)]
            params = bool(outs) and any(v in on_params for v in variables) and eqn.primitive.name != "stop_gradient"
            point = any(v in on_point for v in variables)
            if params and not point:
                if eqn.primitive.name == "dot_general" and sum(v in on_params for v in variables) == 1:
                    self.constant_products.append(number)
                if eqn.outvars[0].aval.shape == () and all(v in numbers for v in variables if v in on_params):
                    numbers.update(eqn.outvars)
                    self.scalars.append(number)
                # Arrays that are pulled back are real and, since their rows also multiply vectors, have a jvp.
                point = number in pushed or any(jnp.issubdtype(o.aval.dtype, jnp.complexfloating) for o in outs)
                point = point or holds(eqn, "custom_vjp_call", "custom_vjp_call_jaxpr")
            if params:
                sources = frozenset().union(*(on_params[v] for v in variables if v in on_params))
                on_params.update(dict.fromkeys(outs, sources))
            if point:
                on_point.update(eqn.outvars)
                self.pointwise.append((eqn, operands))
                continue
            self.hoisted.append((eqn, operands))
            if params:
                self._follow(eqn, operands, on_params)
        self._find_boundary(on_params, on_point)

    def direct_products(self) -> list[int]:
        """The constant products that the points use as they are."""
        used = set(self.boundary)
        direct = []
        for number, (eqn, operands) in reversed(list(enumerate(self.program.equations))):
            if used.isdisjoint(eqn.outvars):
                continue
            if number in self.constant_products:
                direct.append(number)
            elif eqn.primitive.name in REARRANGEMENTS:
                used.update(v for v in operands if not isinstance(v, jex.Literal))
        return direct

    @property
    def cost(self) -> float:
        """Numbers a row, and what it takes to make them."""
        total = 0.0
        for use in self.uses:
            size = math.prod(use.var.aval.shape)
            factors = sum(self._terms(site) * sum(self.matrix_shape(use, site)) for site in use.sites)
            numbers = min(size, factors) + MAKING * factors if use.sites else size
            total += numbers * (1 if use.view is not None else PULLED)
        return total

    def _terms(self, site: Site) -> int:
        eqn, operands = self.pointwise[site.equation]
        contract = eqn.params["dimension_numbers"][0][1 - site.side]
        return math.prod(n for a, n in enumerate(operands[1 - site.side].aval.shape) if a not in contract)

    def hoist(self, outputs: Sequence) -> Hoist:
        return Hoist(self.program, self.hoisted, outputs)

    def _follow(self, eqn, operands: list[Any], on_params) -> None:
        """Which entries, times which constants, the results of a hoisted equation show."""
        shown = [v for v in operands if not isinstance(v, jex.Literal) and v in self._views]
        name = eqn.primitive.name
        if name == "neg" and shown:
            self._views[eqn.outvars[0]] = self._views[shown[0]]
            self._scales[eqn.outvars[0]] = (*self._scales[shown[0]], ("neg", None))
        elif name in ("mul", "div") and len(shown) == 1 and (name == "mul" or operands[0] is shown[0]):
            other = operands[operands[0] is shown[0]]
            aval: Any = other.aval
            constant = isinstance(other, jex.Literal) or other not in on_params
            if constant and other is not shown[0] and aval.shape == ():
                self._views[eqn.outvars[0]] = self._views[shown[0]]
                self._scales[eqn.outvars[0]] = (*self._scales[shown[0]], (name, other))
        elif shown and all(self._scales[v] == self._scales[shown[0]] for v in shown):
            views = propagate(eqn, operands, self._views) or []
            for out, view in zip(eqn.outvars, views, strict=False):
                self._views[out] = view
                self._scales[out] = self._scales[shown[0]]

    def _find_boundary(self, on_params, on_point) -> None:
        boundary: dict[Any, None] = {}
        reads: dict[Any, list[tuple[int, int]]] = {}
        for number, (_, operands) in enumerate(self.pointwise):
            for position, v in enumerate(operands):
                if not isinstance(v, jex.Literal) and v not in on_point:
                    boundary.setdefault(v)
                    reads.setdefault(v, []).append((number, position))
        returned = [v for v in self.program.outputs if not isinstance(v, jex.Literal) and v not in on_point]
        boundary.update(dict.fromkeys(returned))
        scales = [v for use in boundary for _, v in self._scales.get(use, ())]
        boundary.update(dict.fromkeys(v for v in scales if v is not None and not isinstance(v, jex.Literal)))
        self.boundary = list(boundary)
        trained = [v for v in self.boundary if v in on_params]
        self.uses = [use for v in trained for use in self._uses(v, on_params[v], reads.get(v, []), v in returned)]

    def _uses(self, var, leaves: frozenset[int], reads, returned: bool) -> list[Use]:
        view, scales = self._views.get(var), self._scales.get(var, ())
        sites, reason = [], "it is returned as it is" if returned else ""
        if len(var.aval.shape) == 0:
            reason = reason or "it is a number"
        for number, side in reads:
            eqn, operands = self.pointwise[number]
            site = None if reason else _site(number, eqn, operands, side)
            if isinstance(site, Site):
                sites.append(site)
            else:
                reason = reason or f"it enters {eqn.primitive.name}" + ("" if site is None else f" {site}")
        whole = Use(var, leaves, view, scales, () if reason else tuple(sites), reason)
        if view is not None or not whole.sites:
            return [whole]
        # One use a matrix that the axes of the array make: its rows are held apart from those of another.
        groups: dict[View, list[Site]] = {}
        for site in sites:
            entries = self.entries(whole, site)
            groups.setdefault(entries if entries.upright else entries.T, []).append(site)
        return [whole._replace(sites=tuple(group)) for group in groups.values()]

    def entries(self, use: Use, site: Site) -> View:
        """The matrix of a site, as entries of the parameters or, of an array that is made from them, of the array."""
        shown = use.view
        if shown is None:
            shown = np.arange(math.prod(use.var.aval.shape)).reshape(use.var.aval.shape)
        return View(shown.transpose(site.axes).reshape(self.matrix_shape(use, site)))

    def matrix_shape(self, use: Use, site: Site) -> tuple[int, int]:
        shape = [use.var.aval.shape[a] for a in site.axes]
        return math.prod(shape[: site.free]), math.prod(shape[site.free :])

    def linearize(self, hoisted: Sequence, point: Sequence):
        """`z`, the labels of the taps, their left (cotangent) and right (input) factors, and the dense cotangents."""
        given = dict(zip(self.boundary, hoisted, strict=True))
        inputs = self.program.inputs[len(self.program.inputs) - len(point) :]
        given |= zip(inputs, point, strict=True)
        tapped = {site.equation: (i, site) for i, use in enumerate(self.uses) for site in use.sites}
        dense = [use for use in self.uses if not use.sites]

        def products(taps, arrays):
            env = given | {use.var: a for use, a in zip(dense, arrays, strict=True)}
            data = []
            for number, (eqn, operands) in enumerate(self.pointwise):
                values = [read(env, v) for v in operands]
                outs = bind(eqn, values)
                if number in tapped:
                    outs = [outs[0] if taps is None else outs[0] + taps[len(data)]]
                    data.append(jnp.asarray(values[1 - tapped[number][1].side]))
                env.update(zip(eqn.outvars, outs, strict=True))
            (z,) = [read(env, v) for v in self.program.outputs]
            return z, data

        order = [tapped[n] for n in sorted(tapped)]
        shapes = [self.pointwise[site.equation][0].outvars[0].aval for _, site in order]
        zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        z, pull, data = jax.vjp(products, zeros, [given[use.var] for use in dense], has_aux=True)
        if z.size == 1:  # a batch of one costs XLA 20 %
            cotangents, rows = jax.tree.map(lambda a: a[None], pull(jnp.ones_like(z)))
        else:
            cotangents, rows = jax.vmap(pull)(jnp.eye(z.size, dtype=z.dtype))
        lefts, rights = [], []
        for (i, site), g, d in zip(order, cotangents, data, strict=True):
            left, right = _factors(self.uses[i], site, self.pointwise[site.equation][0], g, d)
            for op, v in self.uses[i].scales:
                left = -left if op == "neg" else left * _scale(op, read(given, v), left.dtype)
            lefts.append(left)
            rights.append(right)
        flat = []
        for use, row in zip(dense, rows, strict=True):
            for op, v in use.scales:
                row = -row if op == "neg" else row * _scale(op, read(given, v), row.dtype)
            flat.append(row.reshape(z.size, -1))
        return z, order, lefts, rights, flat


def _scale(op: str, number, dtype) -> Array:
    number = jnp.asarray(number, dtype)
    return 1 / number if op == "div" else number


def _site(number: int, eqn, operands, side: int) -> Site | str | None:
    """The product in which an operand is the matrix; else what is wrong with it."""
    if eqn.primitive.name != "dot_general":
        return None
    (contract, batch) = eqn.params["dimension_numbers"]
    if batch[0]:
        return "with batch axes"
    if operands[0] is operands[1]:
        return "twice"
    dtypes = [eqn.outvars[0].aval.dtype, *(v.aval.dtype for v in operands)]
    if not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        return "in complex arithmetic"
    dims = range(len(operands[side].aval.shape))
    free = [a for a in dims if a not in contract[side]]
    return Site(number, side, (*free, *contract[side]), len(free))


def _factors(use: Use, site: Site, eqn, g, d) -> tuple[Array, Array]:
    """Cotangent `(m, T, free)` and input `(T, contracted)` of one product."""
    contract = eqn.params["dimension_numbers"][0][1 - site.side]
    kept = [a for a in range(d.ndim) if a not in contract]
    right = d.transpose(*kept, *contract).reshape(math.prod(d.shape[a] for a in kept), -1)
    m, free = g.shape[0], site.free
    if site.side == 0:  # the free axes of the matrix come first
        g = jnp.moveaxis(g, range(1, 1 + free), range(g.ndim - free, g.ndim))
    width = math.prod(use.var.aval.shape[a] for a in site.axes[:free])
    return g.reshape(m, -1, width), right
