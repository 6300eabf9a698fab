"""The optimistix face: least-squares solvers and minimisers."""

from ._adapter import MethodMinimiser as MethodMinimiser
from ._adapter import MethodSolver as MethodSolver
from ._adapter import least_squares as least_squares
from ._adapter import minimise as minimise
from ._least_squares import HessianFree as HessianFree
from ._least_squares import VariableProjection as VariableProjection
from ._newton import AdaptiveCubic as AdaptiveCubic
from ._newton import NewtonKrylov as NewtonKrylov
from ._newton import NewtonTrustRegion as NewtonTrustRegion
from ._newton import NysNewtonCG as NysNewtonCG
from ._quasi_newton import BFGS as BFGS
from ._quasi_newton import LBFGS as LBFGS
from ._quasi_newton import SelfScaled as SelfScaled
from ._quasi_newton import TrustRegionSR1 as TrustRegionSR1
from ._solvers import GaussNewton as GaussNewton
from ._solvers import LevenbergMarquardt as LevenbergMarquardt
from ._target_ratio import TargetRatioTrustRegion as TargetRatioTrustRegion
