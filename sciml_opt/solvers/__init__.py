"""The optimistix face: least-squares solvers and minimisers."""

from ._adapter import MethodMinimiser as MethodMinimiser
from ._adapter import MethodSolver as MethodSolver
from ._adapter import least_squares as least_squares
from ._adapter import minimise as minimise
from ._solvers import GaussNewton as GaussNewton
from ._solvers import LevenbergMarquardt as LevenbergMarquardt
