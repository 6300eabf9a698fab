"""Approximations of the Gauss-Newton matrix, read from the factored rows of a Jacobian."""

from ._kronecker import KroneckerFactors as KroneckerFactors
from ._kronecker import KroneckerLayer as KroneckerLayer
from ._kronecker import KroneckerSum as KroneckerSum
from ._kronecker import kronecker_factors as kronecker_factors
