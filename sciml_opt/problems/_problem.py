"""The record that a problem is: objective, points, model, reference and error."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray, PyTree, Scalar

from .._tree import tree_dtype
from ..models import MLP
from ..objective import Objective, Weighted


class Published(NamedTuple):
    """The error to beat on this very problem, the best known whatever its network and cost.

    **Fields:** relative L2 `error`, `method`, `source`, which says so where the figure is from our own calibration.
    """

    error: float
    method: str
    source: str


# `(key, layers, dtype) -> model`
Network = Callable[[PRNGKeyArray, Sequence[int], DTypeLike | None], Any]


def _apply(model: Any, x: Float[Array, " d"]) -> Float[Array, "..."]:
    return model(x)


@dataclass(frozen=True, eq=False)
class Problem:
    """A test problem: everything that a run needs, except the optimizer.

    Arrays are built on first use, in float64 NumPy, and handed out in the dtype asked for.

    **Attributes:**

    - `name`, `title`, `description`: the registry key, one line, one paragraph with the source.
    - `objective`: the loss, `so.Objective`.
    - `domain`: coordinate name -> (lower, upper), in the order of the components of a point.
    - `reference`: the solution, `(N, d) -> (N,)`, or `(N, m)` for a system, NumPy in float64: exact, or computed
      independently of any network.
    - `layers`: hidden widths of the default model.
    - `method`, `steps`: name of a method that solves it, and the steps after which it has.
    - `target`: the relative L2 error that they reach from random starts.
    - `tags`: of `"linear"`, `"nonlinear"`, `"elliptic"`, `"parabolic"`, `"hyperbolic"`, `"system"`, `"energy"`,
      `"least_squares"`, `"stiff"`, `"multiscale"`, `"shock"`, `"high_dimensional"`, `"inverse"`, ...
    - `training_points`, `dense_points`: what `batch` and `test_points` read.
    - `outputs`: the names of the components of the solution that the error counts.
    - `network`: `(key, layers, dtype) -> model`; by default an `so.models.MLP` from the coordinates to a scalar, or to
      as many components as there are `outputs`.
    - `prediction`: `(model, point) ->` the components of `outputs`; by default the model itself. A model that has more
      (a pressure that no one measures, an unknown coefficient) is read through it.
    - `reference_error`: the relative L2 error of the reference itself, estimated by the script that made it; 0 where it
      is a formula, evaluated to rounding.
    - `published`: the figure to beat, where there is one.
    - `sampler`: `key -> batch`, fresh points, for a recipe that draws them anew every `resample_every` steps; `None`
      where the fixed points do.
    - `slabs`, `restart`: a recipe that marches in time takes `slabs` slabs of equal length, one after the other (see
      `so.march`). The equation must not depend on the time explicitly; `batch` is then that of the first slab, and
      `restart(model, batch, time)` is the batch that starts from `model` at `time`.

    **Example:**

    ```python
    problem = so.problems.get("poisson2d")
    model = problem.model(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    loss = problem.objective.bind(problem.batch(), static=static)
    ```
    """

    name: str
    title: str
    description: str
    objective: Objective
    domain: Mapping[str, tuple[float, float]]
    reference: Callable[[Float[np.ndarray, "N d"]], Float[np.ndarray, "N *m"]]
    training_points: Callable[[], Mapping[str, Any]]
    dense_points: Callable[[], Float[np.ndarray, "N d"]]
    layers: tuple[int, ...]
    method: str
    steps: int
    target: float
    tags: tuple[str, ...]
    outputs: tuple[str, ...] = ("u",)
    network: Network | None = None
    prediction: Callable[[Any, Float[Array, " d"]], Float[Array, "..."]] = _apply
    reference_error: float = 0.0
    published: Published | None = None
    sampler: Callable[[PRNGKeyArray], Mapping[str, Any]] | None = None
    resample_every: int = 1
    slabs: int = 1
    restart: Callable[[Any, Mapping[str, Any], float], Mapping[str, Any]] | None = None

    def batch(self, dtype: DTypeLike | None = None) -> dict[str, PyTree | Weighted]:
        """The training points: one entry a term, always the same points.

        **Arguments:** `dtype`, `None` for jax's default (float64 exactly if x64 is on).
        """
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, _floating(dtype)), dict(self._training))

    def model(self, key: PRNGKeyArray, layers: Sequence[int] | None = None, dtype: DTypeLike | None = None) -> Any:
        """A freshly drawn model: `network`, by default an `so.models.MLP` from the coordinates to the outputs.

        **Arguments:** `key`; `layers`, the hidden widths, by default those of the problem; `dtype` as in `batch`.
        """
        layers = self.layers if layers is None else layers
        if self.network is not None:
            return self.network(key, layers, dtype)
        outputs = "scalar" if len(self.outputs) == 1 else len(self.outputs)
        return MLP(len(self.domain), outputs, layers, key=key, dtype=dtype)

    def test_points(self, dtype: DTypeLike | None = None) -> Float[Array, "N d"]:
        """The dense test set, on which `error` is measured."""
        return jnp.asarray(self._test[0], _floating(dtype))

    def error(self, model: Any) -> Scalar:
        """The relative L2 error on the test set, `|u - u*| / |u*|`, of all outputs together.

        **Arguments:** `model`, whose `prediction` is measured; the points get the dtype of its parameters.

        **Returns:** a scalar of the dtype of the model's output. Works under `jit` and `vmap`; the test set enters a
        compiled program as a constant. The `reference_error` is a floor under what it can show.

        **Cost:** one evaluation of the model a test point.
        """
        arrays = eqx.filter(model, eqx.is_inexact_array)
        points, values, norm = self._test
        dtype = tree_dtype(arrays) if jax.tree.leaves(arrays) else _floating(None)
        u = jax.vmap(partial(self.prediction, model))(jnp.asarray(points, dtype))
        if u.shape != values.shape:
            what = "a scalar" if values.ndim == 1 else f"an array of shape {values.shape[1:]}"
            raise ValueError(f"A model of problem {self.name!r} must return {what} for one point, got {u.shape[1:]}.")
        return jnp.linalg.norm(u - jnp.asarray(values, u.dtype)) / norm

    # NumPy arrays, never jax ones: the first use may be inside a trace, and x64 may be switched on later.
    @cached_property
    def _training(self) -> Mapping[str, Any]:
        return self.training_points()

    @cached_property
    def _test(self) -> tuple[np.ndarray, np.ndarray, float]:
        points = self.dense_points()
        values = self.reference(points)
        return points, values, float(np.linalg.norm(values))


def _floating(dtype: DTypeLike | None) -> jnp.dtype:
    return jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
