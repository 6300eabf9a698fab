"""Samplers that look at the model."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import PRNGKeyArray, PyTree


class AbstractAdaptiveSampler(eqx.Module):
    """A sampler for `fit` and `train` whose points depend on the model, such as on its residual.

    The loop draws before its first step and then every `resample_every` steps, and carries batch and state.
    """

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray) -> PyTree:
        """The state before the first draw; arrays only."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, model: Any, state: PyTree) -> tuple[dict[str, Any], PyTree]:
        """The next batch, of the same shapes at each draw, and the new state."""
