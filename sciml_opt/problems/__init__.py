"""Test problems: objective, points, model, reference and error, by name.

```python
>>> from sciml_opt import problems
>>> "heat1d" in problems.names()
True
>>> problems.get("heat1d").title
'Heat equation, one space dimension'

```
"""

from ._problem import Problem as Problem
from ._problem import Published as Published
from ._registry import get as get
from ._registry import names as names
