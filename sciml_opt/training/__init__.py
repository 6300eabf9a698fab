"""Training loops: `train`, one pure scan, and `fit`, its host shell."""

from ._fit import FitResult as FitResult
from ._fit import Phase as Phase
from ._fit import Progress as Progress
from ._fit import fit as fit
from ._march import march as march
from ._stop import Stop as Stop
from ._train import TrainResult as TrainResult
from ._train import TrainState as TrainState
from ._train import train as train
