"""The optimistix face: every least-squares method as an `AbstractLeastSquaresSolver`."""

from ._adapter import MethodSolver as MethodSolver
from ._adapter import least_squares as least_squares
from ._solvers import GaussNewton as GaussNewton
from ._solvers import LevenbergMarquardt as LevenbergMarquardt
