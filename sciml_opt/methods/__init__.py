"""The algorithms, one file each: `init(params)` and `step(loss, params, state)`; no optax, no optimistix."""

from ._energy_natural_gradient import EnergyNaturalGradientMethod as EnergyNaturalGradientMethod
from ._gauss_newton import GaussNewtonMethod as GaussNewtonMethod
from ._gauss_newton import gauss_newton_direction as gauss_newton_direction
from ._levenberg_marquardt import LevenbergMarquardtMethod as LevenbergMarquardtMethod
from ._method import AbstractMethod as AbstractMethod
from ._method import Loss as Loss
from ._method import StepInfo as StepInfo
from ._method import search_info as search_info
from ._method import searched as searched
from ._method import solve_info as solve_info
