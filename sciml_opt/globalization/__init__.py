"""From a direction to a step: damping control and line searches."""

from ._delayed_gratification import delayed_gratification_update as delayed_gratification_update
from ._line_search import LineSearch as LineSearch
from ._line_search import armijo_search as armijo_search
from ._line_search import grid_search as grid_search
from ._nielsen import nielsen_update as nielsen_update
from ._search import Search as Search
from ._search import line_search as line_search
from ._step_size_damping import step_size_damping as step_size_damping
from ._strong_wolfe import strong_wolfe_gradient_search as strong_wolfe_gradient_search
from ._strong_wolfe import strong_wolfe_search as strong_wolfe_search
from ._trust_region import trust_region_update as trust_region_update
