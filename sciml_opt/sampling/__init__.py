"""Which points a step sees, and how much noise that brings."""

from ..objective import Block as Block
from ._adaptive import AbstractAdaptiveSampler as AbstractAdaptiveSampler
from ._blocks import Blocks as Blocks
from ._gradient_noise import GradientNoise as GradientNoise
from ._gradient_noise import gradient_noise as gradient_noise
from ._gradient_noise import norm_test as norm_test
