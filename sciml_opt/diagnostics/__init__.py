"""What a trained model knows: the uncertainty of its parameters and of its predictions."""

from ._laplace import Posterior as Posterior
from ._laplace import laplace as laplace
