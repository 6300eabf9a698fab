"""The antiderivative operator, the first example of DeepONet."""

import numpy as np
from jaxtyping import PRNGKeyArray

from ..._check import count
from ._data import OperatorData
from ._random_field import gaussian_random_field


def antiderivative(
    key: PRNGKeyArray,
    training: int = 150,
    test: int = 500,
    *,
    sensors: int = 100,
    queries: int = 100,
    length_scale: float = 0.2,
) -> OperatorData:
    """`f -> u` with `u' = f` on [0, 1], `u(0) = 0`, for Gaussian random fields `f`.

    **Arguments:** `key`; numbers of functions for training and test; `sensors`, `queries`: even points of [0, 1], ends
    included; `length_scale` of `gaussian_random_field`.

    **Returns:** an `OperatorData`: inputs `(N, sensors)`, outputs `(N, queries)`. The integral of the Fourier series is
    exact; `solver_error` is the rounding of the two sums.

    **Source:** arXiv:1910.03193, section 4.1.1 (there with 10^4 random pairs).
    """
    training = count("training", training)
    field = gaussian_random_field(key, training + count("test", test), length_scale)
    x, y = (np.linspace(0.0, 1.0, count(name, n)) for name, n in (("sensors", sensors), ("queries", queries)))
    return OperatorData(
        name="antiderivative",
        inputs=field(x),
        sensors=x[:, None],
        outputs=field.antiderivative(y),
        queries=y[:, None],
        training=training,
        solver_error=1e-14,
    )
