"""Several loss terms: weights that balance them, and gradients that none of them is hurt by."""

from ._conflict_free import conflict_free_gradient as conflict_free_gradient
from ._conflict_free import momentum_conflict_free_gradient as momentum_conflict_free_gradient
from ._dual_cone import dual_cone_gradient as dual_cone_gradient
from ._equalised import equalised as equalised
from ._multi_adam import multi_adam as multi_adam
from ._multi_adam import scale_by_multi_adam as scale_by_multi_adam
from ._pcgrad import pcgrad as pcgrad
