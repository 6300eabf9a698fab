"""Data for operator learning, generated on the fly by real solvers, with the error of the solver.

```python
>>> import jax
>>> from sciml_opt.problems import operators
>>> data = operators.antiderivative(jax.random.key(0), training=10, test=5)
>>> data.pairs().pair.shape, data.pairs("test").left.shape
((10, 100), (5, 100))

```
"""

from ._antiderivative import antiderivative as antiderivative
from ._burgers import burgers_operator as burgers_operator
from ._darcy import darcy as darcy
from ._data import OperatorData as OperatorData
from ._diffusion_reaction import diffusion_reaction as diffusion_reaction
from ._random_field import RandomField as RandomField
from ._random_field import gaussian_random_field as gaussian_random_field
