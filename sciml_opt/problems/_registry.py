"""Problems by name."""

from functools import cache
from typing import Any

import jax

from .._check import one_of
from ._burgers import burgers
from ._convection import convection
from ._deep_ritz1d import deep_ritz1d
from ._heat1d import heat1d
from ._poisson2d import poisson2d
from ._poisson5d import poisson5d
from ._problem import Problem

_BUILDERS = {
    builder.__name__: builder
    for builder in (
        burgers,
        convection,
        deep_ritz1d,
        heat1d,
        poisson2d,
        poisson5d,
    )
}


def names() -> tuple[str, ...]:
    """The names of all problems, sorted."""
    return tuple(sorted(_BUILDERS))


def get(name: str, **options: Any) -> Problem:
    """A problem by name.

    **Arguments:** `name`, one of `names()`; `options` of that problem (`burgers`: `boundary="periodic"`; `convection`:
    `beta=40.0`).

    **Returns:** a `Problem`; the same object for the same arguments, so that nothing is built or compiled twice.

    **Errors:** `ValueError` for an unknown name, with the nearest one; `TypeError` for an unknown option.

    **Example:** `so.problems.get("burgers", boundary="periodic")`.
    """
    return _build(one_of("problem", name, names()), tuple(sorted(options.items())))


@cache
def _build(name: str, options: tuple[tuple[str, Any], ...]) -> Problem:
    with jax.ensure_compile_time_eval():  # what is kept must be concrete, also when first asked for inside a trace
        return _BUILDERS[name](**dict(options))
