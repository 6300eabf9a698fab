"""Models of one point: equinox modules with the initialisations that the papers use."""

from ._mlp import MLP as MLP
