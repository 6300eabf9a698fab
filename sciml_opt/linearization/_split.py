"""A traced function split by dependence on the point, and the places where its parameter matrices are tapped."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._program import REARRANGEMENTS, Program, bind, holds, read, run
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


def best_split(program: Program, shapes: Sequence[tuple[int, ...]]) -> "Split":
    """The split whose rows are cheapest.

    A product of a parameter array with a constant depends on no point. Some are best tapped all the same: W e_i, the
    first layer's derivative, since W is tapped anyway. Others are best evaluated once: the network on the nodes of an
    integral, a power iteration. So it is with numbers: exp(nu) in front of the residual, exp(s) times a weight.
    """
    once = Split(program, shapes, frozenset())
    products = [once.constant_products, once.direct_products(), []]
    choices = dict.fromkeys(frozenset([*some, *scalars]) for some in products for scalars in (once.scalars, []))
    return min((Split(program, shapes, pushed) if pushed else once for pushed in choices), key=lambda s: s.cost)


class Split:
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
