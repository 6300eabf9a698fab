"""Models of one point: equinox modules with the initialisations that the papers use.

Every model is a pytree, called on ONE point `x` of shape `(d,)`; `jax.vmap` makes batches. What is a floating array is
trained: `params, static = eqx.partition(model, eqx.is_inexact_array)`.

| model | when |
|---|---|
| `MLP` | the default: smooth solutions, d up to 10; tanh, sin, gelu or `AdaptiveTanh` |
| `siren` | an `MLP` of sines: fields with fine detail, inverse problems on images |
| `FourierFeatures` in a `Chain` | high frequencies or several scales, of about known size |
| `PeriodicEmbedding` in a `Chain` | periodic coordinates, exactly; other coordinates scaled to [-1, 1] |
| `HardConstraint` | boundary or initial values that hold exactly, without a term of their own |
| `ModifiedMLP` | stiff and multiscale equations, for about twice the cost of an `MLP` |
| `ResNet` | Deep Ritz energies; deeper than four layers |
| `PirateNet` | the deepest, behind `FourierFeatures`: starts linear, so that depth does not hurt |
| `Separable` | solutions of low rank on a box, more dimensions |
| `FBPINN` | high frequencies or large domains: a small network a window; domain decomposition |
| `TimeSlabs` | one model a slab of the time: what `so.march` leaves |
| `Ensemble`, `ensemble` | a mean and a spread from many starts |
| `DeepONet`, `FNO` | operators: from functions to functions |
| `Positive`, `Bounded`, `Scaled`, `PositiveField` | trained coefficients of an equation, beside a network |

`so.explain` says how the Jacobian of each is held: weight matrices factored, biases and single numbers dense.
"""

from ._activations import AdaptiveTanh as AdaptiveTanh
from ._activations import Sine as Sine
from ._chain import Chain as Chain
from ._deeponet import DeepONet as DeepONet
from ._ensemble import Ensemble as Ensemble
from ._ensemble import ensemble as ensemble
from ._fbpinn import FBPINN as FBPINN
from ._fno import FNO as FNO
from ._fourier_features import FourierFeatures as FourierFeatures
from ._hard_constraint import HardConstraint as HardConstraint
from ._mlp import MLP as MLP
from ._modified_mlp import ModifiedMLP as ModifiedMLP
from ._parameters import Bounded as Bounded
from ._parameters import Positive as Positive
from ._parameters import PositiveField as PositiveField
from ._parameters import Scaled as Scaled
from ._periodic_embedding import PeriodicEmbedding as PeriodicEmbedding
from ._piratenet import PirateNet as PirateNet
from ._resnet import ResNet as ResNet
from ._separable import Separable as Separable
from ._siren import siren as siren
from ._time_slabs import TimeSlabs as TimeSlabs
