"""The Gauss-Newton posterior: error bars of parameters and predictions."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float, PyTree, Scalar

from .._check import number, parameters
from .._tree import ravel, tree_dtype, tree_size
from ..objective import BoundObjective


class Posterior(eqx.Module):
    """A Gaussian around trained parameters, `N(params, C)` with `C^-1 = R^T R`: what `laplace` returns.

    **Attributes:** `params`; `noise`, the standard deviation of each noisy term, given or estimated; `R`, `(P, P)`,
    upper triangular.
    """

    params: PyTree
    noise: dict[str, Scalar]
    R: Float[Array, "P P"]

    def std(self, functional: Callable[[Any], ArrayLike]) -> Float[Array, "..."]:
        """The standard deviation of a function of the parameters, to first order.

            std(f)^2 = g^T C g = |R^-T g|^2,     g = grad f(params)

        **Arguments:** `functional`: `params ->` a number, or an array of numbers (a field at many points), each taken
        by itself.

        **Returns:** an array of the shape of `functional(params)`.

        **Cost:** a reverse sweep and `P^2` flops a number.

        **Example:** `posterior.std(lambda model: model.viscosity.value)`;
        `posterior.std(lambda model: jax.vmap(model.u)(points))`.
        """
        value, pull = jax.vjp(lambda params: jnp.asarray(functional(params)), self.params)
        basis = jnp.eye(value.size, dtype=value.dtype).reshape(value.size, *value.shape)
        rows = jax.vmap(lambda one: ravel(pull(one)[0]))(basis)
        return jnp.linalg.norm(_half_solve(self.R, rows.T), axis=0).reshape(value.shape)


def laplace(
    loss: BoundObjective,
    params: PyTree,
    noise: Mapping[str, ArrayLike | None],
    *,
    prior: ArrayLike = 10.0,
) -> Posterior:
    """The Laplace approximation of the posterior, with the Gauss-Newton Hessian: error bars from one linearization.

        C^-1 = sum_k J_k^T J_k / sigma_k^2 + I / prior^2,      J_k = d z_k / d theta  on the points of term k

    A term that is named in `noise` holds measurements with independent Gaussian errors of standard deviation `sigma_k`.
    The others (equations, conditions) are constraints. They count as much, relative to the measurements, as they did in
    training: `exp(-L / tau)` is the posterior, where `tau = min_k w_k sigma_k^2 / N_k` over the noisy terms turns
    the weight of a measurement into its precision. So a constraint of weight `w_c` allows errors of
    `sqrt(tau N_c / w_c)` a point. An error bar is right if this is much less than what the noise could do to the
    residual: the equation is then obeyed, not fitted. Too weak a constraint widens the bar.

    A standard deviation of `None` is estimated from the misfit, where `gamma_k` of the `N_k` degrees of freedom have
    been spent on the fit:

        sigma_k^2 = |z_k|^2 / (N_k - gamma_k),     gamma_k = tr(C J_k^T J_k) / sigma_k^2

    with `C` for the root of the mean square of `z_k`.

    **Arguments:**

    - `loss`: a bound objective, least squares in every term.
    - `params`: where it has been minimised.
    - `noise`: term -> `sigma_k` in the units of the residual `z_k`, or `None`.
    - `prior`: standard deviation of every parameter before the measurements. It bounds the variance along directions
      that neither measurements nor constraints determine, and matters nowhere else.

    **Returns:** a `Posterior`, whose `std` gives the error bar of any function of the parameters.

    **Errors:** `ValueError` for a loss that is not least squares, no noisy term, an unknown one, one whose points bring
    weights (of `Weighted`, a mesh, a weighting rule), a `sigma_k` that is not positive, and a loss bound with `where`.

    **Cost:** one linearization and a QR factorisation of `J`, `4 (N + P) P^2` flops (twice that if a `sigma_k` is
    estimated); memory `(N + P) P`.

    Source: MacKay (1992), doi:10.1162/neco.1992.4.3.448; for networks arXiv:2106.14806.

    **Example:**

    ```python
    posterior = so.laplace(loss, params, {"data": 0.01})
    error_bar = 1.96 * posterior.std(lambda model: model.viscosity.value)
    ```
    """
    if not loss.least_squares:
        raise ValueError("laplace needs least squares in every term: another outer function is no Gaussian noise.")
    unknown = sorted(set(noise) - set(loss.terms))
    if unknown or not noise:
        raise ValueError(f"noise must name at least one of the terms {list(loss.terms)}, got {sorted(noise)}.")
    weighted = [name for name in noise if loss._terms[name].weights is not None]
    if weighted:
        raise ValueError(f"Measurements count by their noise alone, but the points of {weighted} bring weights.")
    if loss._where.tree is not None:
        raise ValueError("laplace would give frozen parameters the error bar of the prior: use loss.freeze, not where.")
    dtype = tree_dtype(parameters(params))
    given = {
        name: None if sigma is None else number(f"noise[{name!r}]", sigma, above=0).astype(dtype)
        for name, sigma in noise.items()
    }
    return _posterior(loss, params, given, number("prior", prior, above=0).astype(dtype))


@jax.jit
def _posterior(loss: BoundObjective, params: PyTree, given: dict[str, Scalar | None], prior: Scalar) -> Posterior:
    weights = {name: (loss._terms[name].weight / loss._terms[name].count).astype(prior.dtype) for name in given}
    residuals = {name: block.residual(params) for name, block in loss._blocks(params).items()}
    sums = {name: jnp.sum(residuals[name] ** 2) / weights[name] for name in given}  # |z_k|^2
    sizes = {name: residual.size for name, residual in residuals.items()}
    jacobian = jnp.split(loss.linearize(params).jacobian.as_matrix(), np.cumsum(list(sizes.values()))[:-1])
    jacobian = dict(zip(sizes, jacobian, strict=True))

    def rows_and_factor(sigmas):
        roots = {name: 1 / (jnp.sqrt(weights[name]) * sigma) for name, sigma in sigmas.items()}
        strongest = jnp.max(jnp.stack(list(roots.values())))
        rows = {name: roots.get(name, strongest) * block for name, block in jacobian.items()}
        stack = jnp.concatenate([*rows.values(), jnp.eye(tree_size(params), dtype=prior.dtype) / prior])
        return rows, jnp.linalg.qr(stack, mode="r")

    estimated = [name for name, sigma in given.items() if sigma is None]
    sigmas = {name: jnp.sqrt(sums[name] / sizes[name]) if sigma is None else sigma for name, sigma in given.items()}
    if estimated:
        rows, R = rows_and_factor(sigmas)
        for name in estimated:
            spent = jnp.sum(_half_solve(R, rows[name].T) ** 2)
            sigmas[name] = jnp.sqrt(sums[name] / (sizes[name] - spent))
    return Posterior(params, sigmas, rows_and_factor(sigmas)[1])


def _half_solve(R: Array, columns: Array) -> Array:
    """`R^-T columns`."""
    return solve_triangular(R, columns, trans=1)
