"""References that need a solver: the generators (numpy and scipy alone), and the tables that they made.

`python -m sciml_opt.problems.references [NAME ...]` makes the tables anew. Generators are imported from their own
modules, where they are needed; problems read the tables only.
"""

from ._table import load as load
from ._table import tabulated as tabulated
