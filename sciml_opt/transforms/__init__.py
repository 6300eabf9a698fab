"""The optax face: every method as a `GradientTransformationExtraArgs`."""

from ._adapter import info as info
from ._adapter import step_infos as step_infos
from ._adapter import to_transformation as to_transformation
from ._transforms import energy_natural_gradient as energy_natural_gradient
from ._transforms import gauss_newton as gauss_newton
from ._transforms import levenberg_marquardt as levenberg_marquardt
from ._transforms import scale_by_gauss_newton as scale_by_gauss_newton
