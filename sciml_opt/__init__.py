"""Optimizers that see the function space: JAX optimizers for scientific machine learning."""

from importlib.metadata import version as _version

from . import linear as linear
from . import linearization as linearization
from . import methods as methods
from . import models as models
from . import problems as problems
from ._results import RESULTS as RESULTS
from .calculus import bundle as bundle
from .calculus import divergence as divergence
from .calculus import forward_laplacian as forward_laplacian
from .calculus import laplacian as laplacian
from .calculus import partial as partial
from .linearization import Linearization as Linearization
from .linearization import StructuredJacobian as StructuredJacobian
from .objective import BoundObjective as BoundObjective
from .objective import Metric as Metric
from .objective import Objective as Objective
from .objective import Product as Product
from .objective import ProductBatch as ProductBatch
from .objective import Term as Term
from .objective import Weighted as Weighted
from .objective import explain as explain
from .objective import sobolev as sobolev
from .solvers import GaussNewton as GaussNewton
from .solvers import LevenbergMarquardt as LevenbergMarquardt
from .solvers import least_squares as least_squares
from .solvers import minimise as minimise
from .training import FitResult as FitResult
from .training import Phase as Phase
from .training import Progress as Progress
from .training import Stop as Stop
from .training import TrainResult as TrainResult
from .training import fit as fit
from .training import train as train
from .transforms import energy_natural_gradient as energy_natural_gradient
from .transforms import gauss_newton as gauss_newton
from .transforms import info as info
from .transforms import levenberg_marquardt as levenberg_marquardt
from .transforms import scale_by_gauss_newton as scale_by_gauss_newton

__version__ = _version("sciml_opt")
