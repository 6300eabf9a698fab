"""From a direction to a step: damping control and line searches."""

from ._line_search import LineSearch as LineSearch
from ._line_search import armijo_search as armijo_search
from ._line_search import grid_search as grid_search
from ._nielsen import nielsen_update as nielsen_update
from ._step_size_damping import step_size_damping as step_size_damping
