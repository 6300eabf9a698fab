"""The deep operator network: a branch for the input function, a trunk for the query point."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Scalar

from .._tree import tree_dtype
from ..objective import Product
from ._layers import as_module

Function = Callable[[Array], Array]


class DeepONet(eqx.Module):
    """A deep operator network: the value at one query `y` of the image of one function, given at `m` sensors.

        G(f)(y) = sum_k  b_k(f) t_k(y) + c,      b = branch(f(x_1), .., f(x_m)),   t = trunk(y)

    `model(f, y)` is one pair. Training on all pairs of functions and queries goes by `DeepONet.product()`, the inner
    map of a term on an `so.ProductBatch`: both networks are linearized once each, whatever the number of pairs.
    `so.explain` shows their weight matrices as factored and biases as dense, on each side. `so.lbfgs()` measured best
    at equal time (`benchmarks/operators.py`); with thousands of parameters the other methods are matrix-free:
    `so.hessian_free()`, `so.newton_krylov()`, `so.levenberg_marquardt(solve="cg")`. For `so.variable_projection` pass
    `linear=lambda m: (m.branch.weights[-1], m.branch.biases[-1])`.

    **Arguments:**

    - `branch`: a model `(m,) -> (p,)`, such as `so.models.MLP(m, p, (40,), key=key)`.
    - `trunk`: a model `(d,) -> (p,)`. What all outputs have in common belongs here: a factor that vanishes on the
      boundary (then without a bias), a periodic embedding, an activation of its last layer.
    - `bias`: whether there is a number `c`; it starts at 0.

    **Returns:** a module with the fields `branch`, `trunk` and `bias` (`None` without); called on `f`, `(m,)`, and `y`,
    `(d,)`, it yields a scalar.

    **Errors:** `ValueError` (when called) if branch and trunk do not return vectors of one length; `TypeError` for a
    branch or a trunk that cannot be called.

    **Cost:** one branch and one trunk a pair; `pairs` one of each a function and a query, and `2 Nl Nr p` flops.

    **Source:** arXiv:1910.03193; physics-informed arXiv:2103.10974.

    **Example:**

    ```python
    >>> import jax, jax.numpy as jnp
    >>> import sciml_opt as so
    >>> from sciml_opt.models import MLP, DeepONet
    >>> keys = jax.random.split(jax.random.key(0))
    >>> model = DeepONet(MLP(20, 8, (16,), key=keys[0]), MLP(1, 8, (16,), key=keys[1]))
    >>> functions, queries, targets = jnp.ones((6, 20)), jnp.ones((5, 1)), jnp.zeros((6, 5))
    >>> model(functions[0], queries[0]).shape, model.pairs(functions, queries).shape
    ((), (6, 5))
    >>> objective = so.Objective(data=so.Term(DeepONet.product()))
    >>> loss = objective.bind({"data": so.ProductBatch(functions, queries, targets)})
    >>> loss(model).shape
    ()

    ```
    """

    branch: Callable[[Array], Array]
    trunk: Callable[[Array], Array]
    bias: Float[Array, ""] | None

    def __init__(self, branch: Callable[[Array], Array], trunk: Callable[[Array], Array], bias: bool = True):
        self.branch, self.trunk = as_module("DeepONet(branch=...)", branch), as_module("DeepONet(trunk=...)", trunk)
        self.bias = jnp.zeros((), tree_dtype(eqx.filter((branch, trunk), eqx.is_inexact_array))) if bias else None

    def __call__(self, f: Float[Array, " m"], y: Float[Array, " d"]) -> Scalar:
        b, t = self.coefficients(f), self.basis(y)
        if b.ndim != 1 or b.shape != t.shape:
            raise ValueError(
                "DeepONet needs a branch and a trunk with vector outputs of one length (p,); with the bias as one "
                f"more component they are {b.shape} and {t.shape}."
            )
        return jnp.dot(b, t)

    def coefficients(self, f: Float[Array, " m"]) -> Float[Array, " p"]:
        """The branch; with a bias, 1 as one more component."""
        b = self.branch(f)
        return b if self.bias is None else jnp.append(b, jnp.ones((), b.dtype))

    def basis(self, y: Float[Array, " d"]) -> Float[Array, " p"]:
        """The trunk; with a bias, the bias as one more component."""
        t = self.trunk(y)
        return t if self.bias is None else jnp.append(t, self.bias)

    def pairs(self, functions: Float[Array, "Nl m"], queries: Float[Array, "Nr d"]) -> Float[Array, "Nl Nr"]:
        """`G(f_i)(y_j)` of all pairs: one matrix product."""
        return jax.vmap(self.coefficients)(functions) @ jax.vmap(self.basis)(queries).T

    @staticmethod
    def product(
        operator: Callable[[Function], Function] | None = None,
        residual: Callable[[Array, Any], ArrayLike] | None = None,
    ) -> Product:
        """The inner map of a term on all pairs of a `ProductBatch`, by default `G(f_i)(y_j) - pair_ij`.

            z_ij = residual(D G(f_i)(y_j), pair_ij),      D G(f)(y) = sum_k b_k(f) (D t_k)(y) + D c

        **Arguments:**

        - `operator`: a linear differential operator `D` on functions of `y`, such as `so.laplacian`; it is applied to
          the trunk, a function with `p` components. Several operators at once: return their values stacked, `(k, p)`.
        - `residual`: `residual(z, pair) -> scalar or (m,)` for one pair, with `z = D G(f)(y)` a scalar, or `(k,)`; it
          may be nonlinear. `z - pair` by default (`z` without pairs).

        **Returns:** an `so.Product`.

        **Cost:** that of `so.Product` with `p` left and `k p` right outputs.

        **Example:** `u_t = D u_xx + k u^2 + f(x)` by physics alone, with `f_i(x_j)` as the pairs:

        ```python
        def operators(u):
            return lambda y: jnp.stack([u(y), so.partial(u, 1)(y) - D * so.partial(u, 0, 0)(y)])

        term = so.Term(DeepONet.product(operators, lambda z, f: z[1] - k * z[0] ** 2 - f))
        ```
        """
        right = _basis if operator is None else jax.tree_util.Partial(_operator_on_basis, operator)
        if residual is None:
            return Product(_coefficients, right)
        return Product(_coefficients, right, jax.tree_util.Partial(_combine, residual))


def _coefficients(model: DeepONet, f: Array) -> Array:
    return model.coefficients(f)


def _basis(model: DeepONet, y: Array) -> Array:
    return model.basis(y)


def _operator_on_basis(operator: Callable[[Function], Function], model: DeepONet, y: Array) -> Array:
    return operator(model.basis)(y).reshape(-1)


def _combine(residual: Callable[[Array, Any], ArrayLike], b: Array, t: Array, pair: Any) -> ArrayLike:
    z = t.reshape(-1, b.size) @ b
    return residual(z[0] if z.size == 1 else z, pair)
