"""The command `sciml-opt`: list, run and compare."""

import importlib.util
import os
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> None:
    """The console script `sciml-opt`; also `python -m sciml_opt.cli`.

    LAPACK gets one thread unless the environment says otherwise: several threads on small matrices cost much more
    processor time than they save. OpenBLAS reads the variable when it is loaded, and jax loads the one that it uses
    (SciPy's) at the first factorisation, so here is early enough.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for package in ("click", "tqdm"):
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"sciml-opt needs the package {package}: pip install 'sciml_opt[cli]'")
    from ._main import cli

    cli(args, prog_name="sciml-opt")
