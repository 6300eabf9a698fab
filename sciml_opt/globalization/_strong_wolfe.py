"""Strong Wolfe line search."""

from collections.abc import Callable

from jaxtyping import PyTree, Scalar

from ._line_search import LineSearch, armijo_search


def strong_wolfe_search(
    loss: Callable[[PyTree], Scalar], params: PyTree, direction: PyTree, value: Scalar, slope: Scalar
) -> LineSearch:
    return armijo_search(loss, params, direction, value, slope)
