"""Which parameter took which path through the tap, and why."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from ._linearize import tap
from ._point_rows import multiplied_out
from ._split import Use
from ._taps import Tapped
from ._views import View


class LeafRecord(NamedTuple):
    """The path of one parameter leaf.

    **Attributes:**

    - `leaf`: its place in the pytree.
    - `shape`: its shape.
    - `path`: joined by `" + "` where its uses differ:

        - `factored`: every use is a product with data, and a row is a sum of `terms` outer products,
        - `dense`: rows entry by entry, since something else is done with it,
        - `matrix-free`: no rows are kept; products go through jvp and vjp,
        - `pulled back`: an array made from it before the points (a normalised weight) has rows, pulled back once,
        - `frozen`: outputs depend on it, but no derivative passes (`stop_gradient`),
        - `unused`: no output depends on it.

    - `terms`: T, the number of outer products a row of the matrices that it is made of; 0 if none.
    - `explicit`: whether those outer products are multiplied out, since the matrix has fewer entries than its factors.
    - `reason`: why it is not factored, naming the operation; or what is done with the factors.
    """

    leaf: str
    shape: tuple[int, ...]
    path: str
    terms: int
    explicit: bool
    reason: str


def explain_block(
    inner: Callable[[PyTree, PyTree], PyTree], params: PyTree, point: PyTree, count: int = 1
) -> list[LeafRecord]:
    """One record a parameter leaf for `inner(params, point)`, the map of one of `count` points.

    **Cost:** one trace; nothing is evaluated. `params` and `point` may be `jax.ShapeDtypeStruct`s.
    """
    tapped, reason = tap(inner, params, point, count)
    if tapped is None:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return [LeafRecord(jax.tree_util.keystr(p), v.shape, "matrix-free", 0, False, reason) for p, v in leaves]
    return explain_tapped(tapped, params)


def explain_tapped(tapped: Tapped, params: PyTree) -> list[LeafRecord]:
    """The same for a function that has been traced."""
    start, records = 0, []
    for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(params)):
        stop = start + leaf.size
        records.append(_record(tapped, number, jax.tree_util.keystr(path), leaf.shape, start, stop))
        start = stop
    return records


def _record(tapped: Tapped, number: int, name: str, shape: tuple[int, ...], start: int, stop: int) -> LeafRecord:
    uses = [(i, use) for i, use in enumerate(tapped.uses) if number in use.leaves]
    if not uses:
        if number in tapped.reached:
            return LeafRecord(name, shape, "frozen", 0, False, "no derivative passes (stop_gradient)")
        return LeafRecord(name, shape, "unused", 0, False, "no output depends on it")
    matrices = [
        m for m in tapped.matrices if _shows(m.view, start, stop) or m.use in {i for i, use in uses if use.view is None}
    ]
    paths = [_path(use) for _, use in uses]
    terms = sum(m.terms for m in matrices)
    explicit = [multiplied_out(m.shape, m.terms) for m in matrices]
    reasons = dict.fromkeys(_reason(use) for _, use in uses)
    if any(explicit):
        reasons["multiplied out: fewer entries than factors"] = None
    order = [p for p in ("factored", "dense", "pulled back") if p in paths]
    return LeafRecord(
        name, shape, " + ".join(order), terms, all(explicit) and bool(explicit), "; ".join(filter(None, reasons))
    )


def _shows(view: View | None, start: int, stop: int) -> bool:
    return view is not None and bool(((view.indices >= start) & (view.indices < stop)).any())


def _path(use: Use) -> str:
    if use.view is None:
        return "pulled back"
    return "factored" if use.sites else "dense"


def _reason(use: Use) -> str:
    if use.view is not None:
        return use.reason
    made = f"an array {list(use.var.aval.shape)} is made from it once"
    return made + (" and tapped" if use.sites else f" and has dense rows: {use.reason}")


def table(records: Sequence[LeafRecord]) -> str:
    """The records as aligned columns."""
    rows = [("parameter", "shape", "path", "T", "why")]
    for r in records:
        path = r.path.replace("factored", "factored, explicit") if r.explicit else r.path
        rows.append((r.leaf or "(the parameters)", str(list(r.shape)), path, str(r.terms or "-"), r.reason))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:4], widths, strict=True)), row[4]]).rstrip() for row in rows
    )
