"""The record of a data set for operator learning."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, DTypeLike, Float, Scalar

from ..._check import one_of
from ...objective import ProductBatch

Part = Literal["training", "test"]


@dataclass(frozen=True, eq=False)
class OperatorData:
    """Input functions and their images under an operator, computed by a solver; float64 NumPy.

    **Attributes:**

    - `name`: of the operator.
    - `inputs`: `(N, *grid)`, each function at the `sensors`.
    - `sensors`: `(*grid, d)`, where.
    - `outputs`: `(N, *output grid)`, the image of each function at the `queries`.
    - `queries`: `(*output grid, d')`, the same for all functions.
    - `training`: how many functions, the first ones, are for training; the others are unseen.
    - `solver_error`: the relative L2 error of `outputs`, estimated by refinement: a floor under what an error can show.

    **Errors:** `ValueError` for outputs or an error that are not finite.

    **Example:**

    ```python
    data = so.problems.operators.antiderivative(jax.random.key(0))
    objective = so.Objective(data=so.Term(DeepONet.product()))
    result = so.fit(model, objective, so.hessian_free(), {"data": data.pairs()}, steps=100)
    pairs = data.pairs("test")
    data.error(result.model.pairs(pairs.left, pairs.right))
    ```
    """

    name: str
    inputs: Float[np.ndarray, "N *grid"]
    sensors: Float[np.ndarray, "*grid d"]
    outputs: Float[np.ndarray, "N *output"]
    queries: Float[np.ndarray, "*output e"]
    training: int
    solver_error: float

    def __post_init__(self):
        if not np.all(np.isfinite(self.outputs)) or not np.isfinite(self.solver_error):
            raise ValueError(
                f"The outputs of {self.name} or their solver_error are not finite: the solver was unstable, or the "
                "solution itself blows up."
            )

    def pairs(self, part: Part = "training", dtype: DTypeLike | None = None) -> ProductBatch:
        """All pairs of a function and a query, for `DeepONet.product()`; grids are made flat.

        **Arguments:** `part`, `"training"` or `"test"`; `dtype`, `None` for jax's default.
        """
        left, pair = (leaf.reshape(len(leaf), -1) for leaf in self.fields(part, dtype))
        right = jnp.asarray(self.queries.reshape(-1, self.queries.shape[-1]), left.dtype)
        return ProductBatch(left, right, pair)

    def fields(self, part: Part = "training", dtype: DTypeLike | None = None) -> tuple[Array, Array]:
        """Inputs and outputs as fields, one sample a point, for an `FNO`."""
        split = (
            slice(self.training)
            if one_of("part", part, ("training", "test")) == "training"
            else slice(self.training, None)
        )
        dtype = jnp.result_type(float) if dtype is None else dtype
        return jnp.asarray(self.inputs[split], dtype), jnp.asarray(self.outputs[split], dtype)

    def error(self, predictions: Float[ArrayLike, "n ..."], part: Part = "test") -> Scalar:
        """The mean over the functions of the relative L2 error, `mean_i |u_i - u*_i| / |u*_i|`.

        **Arguments:** `predictions`, one row a function of `part`, on all queries, flat or as a grid.

        **Returns:** a scalar. Works under `jit`; the outputs enter a compiled program as a constant.
        """
        predictions = jnp.asarray(predictions)
        exact = self.fields(part, predictions.dtype)[1]
        exact = exact.reshape(len(exact), -1)
        difference = predictions.reshape(exact.shape) - exact
        return jnp.mean(jnp.linalg.norm(difference, axis=1) / jnp.linalg.norm(exact, axis=1))


def relative_error(values: np.ndarray, better: np.ndarray) -> float:
    """`|u - v| / |v|` of all samples together: the error of `values`, if `better` is much better."""
    return float(np.linalg.norm(values - better) / np.linalg.norm(better))
