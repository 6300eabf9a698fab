"""Value, gradient and structured Jacobian of composite functions `sum_i w_i ell(z(theta, x_i), x_i)`."""

from ._linearize import AbstractBlock as AbstractBlock
from ._linearize import Block as Block
from ._linearize import Linearization as Linearization
from ._linearize import half_squared_norm as half_squared_norm
from ._linearize import linearize as linearize
from ._product_block import ProductBlock as ProductBlock
from ._structured_jacobian import Cost as Cost
from ._structured_jacobian import StructuredJacobian as StructuredJacobian
