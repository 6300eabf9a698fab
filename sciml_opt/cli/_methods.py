"""The methods that the command knows, in one table."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from ..transforms import energy_natural_gradient, gauss_newton, levenberg_marquardt


class Method(NamedTuple):
    """One line of text, the optimizer, and how often the error is measured (it counts as training time)."""

    title: str
    make: Callable[[], optax.GradientTransformation]
    metric_every: int = 5


METHODS = {
    "adam": Method("Adam, learning rate 1e-3 (optax)", lambda: optax.adam(1e-3), metric_every=10),
    "lbfgs": Method("L-BFGS with a zoom line search (optax)", optax.lbfgs),
    "levenberg_marquardt": Method("Levenberg-Marquardt with geodesic acceleration", levenberg_marquardt),
    "gauss_newton": Method("damped Gauss-Newton with an Armijo line search", gauss_newton),
    "energy_natural_gradient": Method("energy natural gradient with a grid line search", energy_natural_gradient),
}
