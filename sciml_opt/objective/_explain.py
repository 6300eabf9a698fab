"""Which parameter took which path through the linearization, term by term."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from ..linearization import ProductBlock
from ..linearization._explain import LeafRecord, explain_block, explain_tapped, table
from ..linearization._taps import Tapped
from ._bound import BoundObjective
from ._objective import Objective, Weighted


class Explanation(NamedTuple):
    """`records[term]` holds one `LeafRecord` a parameter leaf; `print` it for a table.

    A term on a product batch has two entries, one a map.
    """

    records: dict[str, list[LeafRecord]]

    def __str__(self) -> str:
        return "\n\n".join(f"term {name!r}\n{table(records)}" for name, records in self.records.items())


def explain(
    objective: Objective | BoundObjective,
    params: PyTree,
    batch: Mapping[str, PyTree | Weighted] | None = None,
    *,
    static: PyTree = None,
) -> Explanation:
    """Say how the Jacobian is represented: which leaf took which path through the tap, and why.

    **Arguments:**

    - `objective`: an `Objective`, or a loss that `Objective.bind` returned.
    - `params`: the parameters, arrays or `jax.ShapeDtypeStruct`s.
    - `batch`, `static`: as for `Objective.bind`; not needed for a bound objective.

    **Returns:** an `Explanation`; `print(explanation)` shows, for each term,

        parameter    shape     path                T  why
        ['W']        [64, 64]  factored            4
        ['b']        [64]      dense               -  it enters add

    where T is the number of outer products `g_t z_t^T` that make a row.

    **Errors:** `ValueError` if an unbound objective comes without a batch.

    **Cost:** one trace a term; nothing is evaluated or compiled.

    **Example:**

    ```python
    print(so.explain(objective, params, batch, static=static))
    print(so.explain(objective.bind(batch, static), params))
    ```
    """
    if isinstance(objective, Objective):
        if batch is None:
            raise ValueError("explain needs the points of an unbound objective: explain(objective, params, batch).")
        objective = objective.bind(batch, static)
    records = {}
    for name, block in objective._blocks(params).items():
        if isinstance(block, ProductBlock):
            for side in ("left", "right"):
                inner, points = getattr(block, side), getattr(block, f"{side}_points")
                records[f"{name} ({side})"] = explain_tapped(Tapped(inner, params, _one_of(points)), params)
        else:
            count = block.weights.shape[0]
            records[name] = explain_block(block.inner, params, _one_of(block.points), count)
    return Explanation(records)


def _one_of(points: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), points)
