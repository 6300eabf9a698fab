"""The package as a whole: what an import loads, and the README's code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax

import sciml_opt as so

README = Path(__file__).parents[1] / "README.md"


def test_import_stays_light():
    code = (
        "import sciml_opt, sys; print([m for m in ('matplotlib', 'scipy.stats', 'folx', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_float32_products_have_all_their_digits():
    model = so.models.MLP(2, 1, layers=(8,), key=jax.random.key(0), dtype="float32")
    jaxpr = str(jax.make_jaxpr(model)(jax.numpy.ones(2, "float32")))
    assert jaxpr.count("dot_general[") == jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 2


def test_the_precision_that_the_user_has_set_stays():
    code = "import jax, sciml_opt; print(jax.config.jax_default_matmul_precision)"
    environment = os.environ | {"JAX_DEFAULT_MATMUL_PRECISION": "tensorfloat32"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "tensorfloat32"


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
