"""Objectives of scientific machine learning: weighted sums of per-point terms."""

from ._bound import BoundObjective as BoundObjective
from ._explain import explain as explain
from ._metric import Metric as Metric
from ._metric import sobolev as sobolev
from ._objective import Block as Block
from ._objective import Objective as Objective
from ._objective import Term as Term
from ._objective import Weighted as Weighted
from ._product import Product as Product
from ._product import ProductBatch as ProductBatch
