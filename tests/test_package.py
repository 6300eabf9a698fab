"""The package as a whole: what an import loads, and the README's code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

README = Path(__file__).parents[1] / "README.md"


def test_import_stays_light():
    code = (
        "import sciml_opt, sys; print([m for m in ('matplotlib', 'scipy.stats', 'folx', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("own", [None, "tensorfloat32"])
def test_float32_products_are_full_unless_the_user_says_otherwise(own):
    code = "import jax, sciml_opt; print(jax.config.jax_default_matmul_precision)"
    environment = {k: v for k, v in os.environ.items() if k != "JAX_DEFAULT_MATMUL_PRECISION"}
    environment |= {} if own is None else {"JAX_DEFAULT_MATMUL_PRECISION": own}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == (own or "highest")


@jax.numpy_rank_promotion("allow")
def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    namespace = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    assert float(namespace["value"]) < 1e-3 and namespace["result"].error <= 1e-6
    assert namespace["solution"].value is not None


def test_the_readme_names_the_commands_that_ci_runs():
    command = 'python -m venv .venv && .venv/bin/pip install -q ".[test]" && .venv/bin/python -m pytest'
    assert command in README.read_text() and command in (README.parent / ".ci" / "run").read_text()
