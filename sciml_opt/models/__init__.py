"""Models of one point: equinox modules with the initialisations that the papers use."""

from ._activations import AdaptiveTanh as AdaptiveTanh
from ._activations import Sine as Sine
from ._deeponet import DeepONet as DeepONet
from ._fno import FNO as FNO
from ._mlp import MLP as MLP
from ._parameters import Bounded as Bounded
from ._parameters import Positive as Positive
from ._parameters import Scaled as Scaled
from ._time_slabs import TimeSlabs as TimeSlabs
