"""The line searches by name."""

from collections.abc import Callable
from typing import Literal

from jaxtyping import PyTree, Scalar

from .._tree import tree_dot
from ._line_search import LineSearch, armijo_search, grid_search
from ._strong_wolfe import strong_wolfe_search

Search = Literal["armijo", "strong_wolfe", "grid"]


def line_search(
    kind: Search,
    loss: Callable[[PyTree], Scalar],
    params: PyTree,
    direction: PyTree,
    value: Scalar,
    grad: PyTree,
) -> LineSearch:
    """Search along a descent direction: `armijo_search`, `strong_wolfe_search` or `grid_search`.

    **Arguments:** `value` and `grad` of the loss at `params`.
    """
    if kind == "grid":
        return grid_search(loss, params, direction, value)
    search = armijo_search if kind == "armijo" else strong_wolfe_search
    return search(loss, params, direction, value, tree_dot(grad, direction))
