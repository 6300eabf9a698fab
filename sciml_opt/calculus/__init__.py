"""Differential operators on functions of one point: `laplacian`, `partial`, `divergence`, and one-pass bundles."""

from ._forward_laplacian import ForwardLaplacian, forward_laplacian
from ._operators import Bundle, bundle, divergence, laplacian, partial

__all__ = ["Bundle", "ForwardLaplacian", "bundle", "divergence", "forward_laplacian", "laplacian", "partial"]
