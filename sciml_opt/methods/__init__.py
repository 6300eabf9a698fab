"""The algorithms, one file each: `init(params)` and `step(loss, params, state)`; no optax, no optimistix."""

from ._adaptive_cubic import AdaptiveCubicMethod as AdaptiveCubicMethod
from ._anagram import AnagramMethod as AnagramMethod
from ._block_diagonal import BlockDiagonalMethod as BlockDiagonalMethod
from ._energy_natural_gradient import EnergyNaturalGradientMethod as EnergyNaturalGradientMethod
from ._gauss_newton import GaussNewtonMethod as GaussNewtonMethod
from ._gauss_newton import gauss_newton_direction as gauss_newton_direction
from ._hessian_free import HessianFreeMethod as HessianFreeMethod
from ._kfac import KfacMethod as KfacMethod
from ._levenberg_marquardt import LevenbergMarquardtMethod as LevenbergMarquardtMethod
from ._method import AbstractMethod as AbstractMethod
from ._method import Loss as Loss
from ._method import StepInfo as StepInfo
from ._method import search_info as search_info
from ._method import searched as searched
from ._method import solve_info as solve_info
from ._newton_krylov import NewtonKrylovMethod as NewtonKrylovMethod
from ._newton_trust_region import NewtonTrustRegionMethod as NewtonTrustRegionMethod
from ._nys_newton_cg import NysNewtonCGMethod as NysNewtonCGMethod
from ._spring import SpringMethod as SpringMethod
from ._subsampled import SubsampledNewtonMethod as SubsampledNewtonMethod
from ._target_ratio import Decomposition as Decomposition
from ._target_ratio import TargetRatioMethod as TargetRatioMethod
from ._variable_projection import VariableProjectionMethod as VariableProjectionMethod
