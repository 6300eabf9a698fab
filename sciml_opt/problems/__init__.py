"""Test problems: objective, points, model, reference and error, by name.

```python
>>> from sciml_opt import problems
>>> problems.names()
('burgers', 'convection', 'deep_ritz1d', 'heat1d', 'poisson2d', 'poisson5d')
>>> problems.get("heat1d").title
'Heat equation, one space dimension'

```
"""

from ._problem import Problem as Problem
from ._registry import get as get
from ._registry import names as names
