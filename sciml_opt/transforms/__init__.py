"""The optax face: every method as a `GradientTransformationExtraArgs`."""

from ._adapter import bound_objective as bound_objective
from ._adapter import info as info
from ._adapter import require_gradient as require_gradient
from ._adapter import step_infos as step_infos
from ._adapter import to_transformation as to_transformation
from ._kronecker import block_gauss_newton as block_gauss_newton
from ._kronecker import kfac as kfac
from ._kronecker import kfac_star as kfac_star
from ._least_squares import hessian_free as hessian_free
from ._least_squares import subsampled_newton as subsampled_newton
from ._least_squares import variable_projection as variable_projection
from ._natural_gradient import anagram as anagram
from ._natural_gradient import energy_natural_gradient as energy_natural_gradient
from ._natural_gradient import engd_w as engd_w
from ._natural_gradient import natural_gradient as natural_gradient
from ._natural_gradient import spring as spring
from ._newton import adaptive_cubic as adaptive_cubic
from ._newton import newton_krylov as newton_krylov
from ._newton import newton_trust_region as newton_trust_region
from ._newton import nys_newton_cg as nys_newton_cg
from ._target_ratio import target_ratio_trust_region as target_ratio_trust_region
from ._transforms import gauss_newton as gauss_newton
from ._transforms import levenberg_marquardt as levenberg_marquardt
from ._transforms import scale_by_gauss_newton as scale_by_gauss_newton
