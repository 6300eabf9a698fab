"""Objectives of scientific machine learning: weighted sums of per-point terms."""

from ._bound import BoundObjective as BoundObjective
from ._objective import Objective as Objective
from ._objective import Term as Term
from ._objective import Weighted as Weighted
