"""Loss balancing: optax wrappers that weigh the terms of an objective."""

from ._equalised import equalised as equalised
