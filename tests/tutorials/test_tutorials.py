"""Every tutorial runs, in its reduced size; its own assertions at the end are the test of what it says."""

import runpy
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("[0-9]*.py"))


def test_tutorials_are_found():
    assert TUTORIALS


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(path, tmp_path, monkeypatch):
    monkeypatch.setenv("SCIML_OPT_REDUCED", "1")
    monkeypatch.setenv("SCIML_OPT_FIGURES", str(tmp_path))
    monkeypatch.setattr(plt, "show", lambda: None)
    # Tutorials are written for jax's defaults (optax's adam and lbfgs fail under strict promotion).
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        try:
            runpy.run_path(str(path), run_name="__main__")
        finally:
            plt.close("all")
    figure = tmp_path / f"{path.stem}.png"
    assert figure.stat().st_size > 10_000, "the tutorial saves its figure under its own name"
