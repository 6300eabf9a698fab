"""Problems by name."""

from functools import cache
from typing import Any

import jax

from .._check import one_of
from ._advection_diffusion import advection_diffusion
from ._allen_cahn import allen_cahn
from ._burgers import burgers
from ._burgers_inverse import burgers_inverse
from ._cavity import cavity
from ._convection import convection, convection40, convection80
from ._darcy2d import darcy2d
from ._deep_ritz1d import deep_ritz1d
from ._deep_ritz_l_shape import deep_ritz_l_shape
from ._heat1d import heat1d
from ._heat2d_ms import heat2d_ms
from ._heat4d import heat4d
from ._heat_inverse import heat_inverse
from ._heat_nd import heat_nd
from ._helmholtz import helmholtz, helmholtz66
from ._kdv import kdv
from ._kdv_solitons import kdv_solitons
from ._klein_gordon import klein_gordon
from ._kovasznay import kovasznay
from ._kuramoto_sivashinsky import kuramoto_sivashinsky
from ._log_fokker_planck import log_fokker_planck
from ._navier_stokes2d_c import navier_stokes2d_c
from ._oscillator import oscillator
from ._poisson2d import poisson2d
from ._poisson2d_c import poisson2d_c
from ._poisson5d import poisson5d
from ._poisson10d import poisson10d
from ._poisson100d import poisson100d
from ._poisson_inverse import poisson_inverse
from ._poisson_nd import poisson_nd
from ._problem import Problem
from ._reaction import reaction
from ._wave import wave, wave1d_c

_BUILDERS = {
    builder.__name__: builder
    for builder in (
        advection_diffusion,
        allen_cahn,
        burgers,
        burgers_inverse,
        cavity,
        convection,
        convection40,
        convection80,
        darcy2d,
        deep_ritz1d,
        deep_ritz_l_shape,
        heat1d,
        heat2d_ms,
        heat4d,
        heat_inverse,
        heat_nd,
        helmholtz,
        helmholtz66,
        kdv,
        kdv_solitons,
        klein_gordon,
        kovasznay,
        kuramoto_sivashinsky,
        log_fokker_planck,
        navier_stokes2d_c,
        oscillator,
        poisson100d,
        poisson10d,
        poisson2d,
        poisson2d_c,
        poisson5d,
        poisson_inverse,
        poisson_nd,
        reaction,
        wave,
        wave1d_c,
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
