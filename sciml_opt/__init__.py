"""Optimizers that see the function space: JAX optimizers for scientific machine learning."""

from importlib.metadata import version as _version

import jax as _jax

from . import curvature as curvature
from . import diagnostics as diagnostics
from . import linear as linear
from . import linearization as linearization
from . import methods as methods
from . import models as models
from . import problems as problems
from . import sampling as sampling
from . import weighting as weighting
from ._results import RESULTS as RESULTS
from .calculus import bundle as bundle
from .calculus import divergence as divergence
from .calculus import forward_laplacian as forward_laplacian
from .calculus import laplacian as laplacian
from .calculus import partial as partial
from .diagnostics import laplace as laplace
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
from .sampling import Blocks as Blocks
from .sampling import gradient_noise as gradient_noise
from .sampling import norm_test as norm_test
from .solvers import BFGS as BFGS
from .solvers import LBFGS as LBFGS
from .solvers import AdaptiveCubic as AdaptiveCubic
from .solvers import GaussNewton as GaussNewton
from .solvers import HessianFree as HessianFree
from .solvers import LevenbergMarquardt as LevenbergMarquardt
from .solvers import NewtonKrylov as NewtonKrylov
from .solvers import NewtonTrustRegion as NewtonTrustRegion
from .solvers import NysNewtonCG as NysNewtonCG
from .solvers import SelfScaled as SelfScaled
from .solvers import TargetRatioTrustRegion as TargetRatioTrustRegion
from .solvers import TrustRegionSR1 as TrustRegionSR1
from .solvers import VariableProjection as VariableProjection
from .solvers import least_squares as least_squares
from .solvers import minimise as minimise
from .training import FitResult as FitResult
from .training import Phase as Phase
from .training import Progress as Progress
from .training import Stop as Stop
from .training import TrainResult as TrainResult
from .training import fit as fit
from .training import march as march
from .training import train as train
from .transforms import adaptive_cubic as adaptive_cubic
from .transforms import anagram as anagram
from .transforms import average as average
from .transforms import averaged as averaged
from .transforms import bfgs as bfgs
from .transforms import block_gauss_newton as block_gauss_newton
from .transforms import dfp as dfp
from .transforms import energy_natural_gradient as energy_natural_gradient
from .transforms import engd_w as engd_w
from .transforms import gauss_newton as gauss_newton
from .transforms import hessian_free as hessian_free
from .transforms import info as info
from .transforms import kfac as kfac
from .transforms import kfac_star as kfac_star
from .transforms import lbfgs as lbfgs
from .transforms import levenberg_marquardt as levenberg_marquardt
from .transforms import natural_gradient as natural_gradient
from .transforms import newton_krylov as newton_krylov
from .transforms import newton_trust_region as newton_trust_region
from .transforms import nys_newton_cg as nys_newton_cg
from .transforms import objective_function_free as objective_function_free
from .transforms import regularised_gradient as regularised_gradient
from .transforms import saga as saga
from .transforms import sarah as sarah
from .transforms import scale_by_gauss_newton as scale_by_gauss_newton
from .transforms import scale_by_saga as scale_by_saga
from .transforms import scale_by_sarah as scale_by_sarah
from .transforms import scale_by_shampoo as scale_by_shampoo
from .transforms import scale_by_soap as scale_by_soap
from .transforms import scale_by_svrg as scale_by_svrg
from .transforms import shampoo as shampoo
from .transforms import soap as soap
from .transforms import spring as spring
from .transforms import ss_bfgs as ss_bfgs
from .transforms import ss_broyden as ss_broyden
from .transforms import stochastic_lbfgs as stochastic_lbfgs
from .transforms import subsampled_newton as subsampled_newton
from .transforms import svrg as svrg
from .transforms import target_ratio_trust_region as target_ratio_trust_region
from .transforms import trust_region_sr1 as trust_region_sr1
from .transforms import variable_projection as variable_projection
from .weighting import augmented_lagrangian as augmented_lagrangian
from .weighting import causal as causal
from .weighting import conflict_free_gradient as conflict_free_gradient
from .weighting import dual_cone_gradient as dual_cone_gradient
from .weighting import equalised as equalised
from .weighting import grad_norm as grad_norm
from .weighting import grad_norm_balance as grad_norm_balance
from .weighting import momentum_conflict_free_gradient as momentum_conflict_free_gradient
from .weighting import multi_adam as multi_adam
from .weighting import ntk_balance as ntk_balance
from .weighting import pcgrad as pcgrad
from .weighting import relobralo as relobralo
from .weighting import residual_attention as residual_attention
from .weighting import scale_by_multi_adam as scale_by_multi_adam
from .weighting import self_adaptive as self_adaptive

# Unless told otherwise, jax rounds the factors of float32 products to 10 bits on NVIDIA GPUs and to 8 on TPUs: the
# error of a trained network is 2e-3 there in place of 2e-6 (benchmarks/README.md). What the user has set stays.
if _jax.config.jax_default_matmul_precision is None:  # pyright: ignore[reportAttributeAccessIssue]
    _jax.config.update("jax_default_matmul_precision", "highest")

__version__ = _version("sciml_opt")
