"""Which points a step sees, and how much noise that brings."""

from ..objective import Block as Block
from ._adaptive import AbstractAdaptiveSampler as AbstractAdaptiveSampler
from ._blocks import Blocks as Blocks
from ._domain import AbstractDomain as AbstractDomain
from ._domain import BoundaryPoints as BoundaryPoints
from ._domain import Combined as Combined
from ._gradient_noise import GradientNoise as GradientNoise
from ._gradient_noise import gradient_noise as gradient_noise
from ._gradient_noise import norm_test as norm_test
from ._importance import importance_sampled as importance_sampled
from ._points import unit_points as unit_points
from ._quadrature import boundary_quadrature as boundary_quadrature
from ._quadrature import quadrature as quadrature
from ._r3 import R3 as R3
from ._rad import RAD as RAD
from ._rard import RARD as RARD
from ._samplers import RandomPool as RandomPool
from ._samplers import Sampler as Sampler
from ._samplers import Shifted as Shifted
from ._shapes import Annulus as Annulus
from ._shapes import Ball as Ball
from ._shapes import Box as Box
from ._shapes import LShape as LShape
from ._shapes import TimeSlab as TimeSlab
