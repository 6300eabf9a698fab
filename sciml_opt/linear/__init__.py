"""Damped linear solves that lineax lacks: one factorisation, several right-hand sides, a fallback when it fails."""

from ._cg import CGResult as CGResult
from ._cg import conjugate_gradient as conjugate_gradient
from ._cg import positive_norm as positive_norm
from ._cholesky import damped_cholesky as damped_cholesky
from ._choose import SOLVES as SOLVES
from ._choose import Choice as Choice
from ._choose import Solve as Solve
from ._choose import choose as choose
from ._damped_solve import DampedSolve as DampedSolve
from ._damped_solve import Solved as Solved
from ._factorize import factorize as factorize
from ._lsmr import lsmr as lsmr
from ._minres import KrylovResult as KrylovResult
from ._minres import minres as minres
from ._nystrom import Nystrom as Nystrom
from ._nystrom import nystrom as nystrom
from ._nystrom import rayleigh_ritz as rayleigh_ritz
from ._orthogonal import orthogonal_factor as orthogonal_factor
from ._radius_model import RadiusModel as RadiusModel
from ._random_projections import cosine_projection as cosine_projection
from ._random_projections import count_sketch as count_sketch
from ._scaling import Scaling as Scaling
from ._scaling import floored as floored
from ._spectrum import Spectrum as Spectrum
