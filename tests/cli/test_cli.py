"""The command line: output, exit codes, pictures, checkpoints. Small networks and few steps throughout."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from click.testing import CliRunner

import sciml_opt as so
from sciml_opt import problems
from sciml_opt.cli import main
from sciml_opt.cli._main import cli
from sciml_opt.cli._methods import METHODS, Method
from sciml_opt.cli._run import seconds_to, status_name

KEYS = (
    "problem, method, seed, dtype, n_params, n_points, steps, status, loss, rel_l2, reference_error, published, "
    "compile_seconds, train_seconds, seconds_to"
).split(", ")
SMALL = ["--layers", "8"]


@pytest.fixture(autouse=True, scope="module")
def session():
    """Most of the time here is XLA's; its optimisations change nothing that is tested. optax's Adam is not strict."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def invoke(*args):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def strict_json(text):
    """One JSON object and nothing else; NaN and Infinity are no JSON."""

    def refuse(constant):
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def run_json(*args, code=0):
    result = invoke("run", *args, *SMALL, "--json")
    assert result.exit_code == code, result.output
    return strict_json(result.stdout)


def assert_picture(path):
    import matplotlib.image

    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000
    assert len(np.unique(matplotlib.image.imread(path)[..., 0])) > 50


@pytest.fixture
def diverging(monkeypatch):
    monkeypatch.setitem(METHODS, "diverging", Method("steps that are far too long", lambda _: optax.sgd(1e200)))


def test_list_names_everything():
    lines = invoke("list").stdout.splitlines()
    for name in (*problems.names(), *METHODS):
        assert sum(line.split()[:1] == [name] for line in lines) == 1


def test_version_and_help():
    assert so.__version__ in invoke("--version").stdout
    for command in ([], ["list"], ["run"], ["compare"]):
        assert invoke(*command, "--help").exit_code == 0


def test_json_and_summary():
    result = invoke("run", "poisson2d", *SMALL, "--steps", 4, "--seed", 3, "--json")
    assert result.exit_code == 0, result.output
    report = strict_json(result.stdout)
    assert list(report) == KEYS
    assert list(report["seconds_to"]) == [f"1e-{k}" for k in range(1, 13)]
    assert report["n_params"] == 2 * 8 + 8 + 8 + 1 and report["n_points"] == 1020
    assert report["steps"] == 4 and report["status"] == "steps_done" and report["seed"] == 3
    assert 0 < report["rel_l2"] < 10 and 0 < report["loss"] < 1e3
    assert report["train_seconds"] > 0
    assert "4/4" in result.stderr  # the bar
    assert "CPU seconds" in result.stderr

    plain = invoke("run", "poisson2d", *SMALL, "--steps", 4, "--seed", 3)
    assert "CPU seconds" in plain.stdout and "CPU seconds" not in plain.stderr
    assert f"{report['rel_l2']:.2e}" in plain.stdout


def test_ends_at_the_target():
    report = run_json("poisson2d", "--target-error", 0.5)
    assert report["status"] == "target_reached" and report["rel_l2"] <= 0.5
    assert report["steps"] < problems.get("poisson2d").steps


def test_a_missed_target_is_no_failure_but_said():
    result = invoke("run", "poisson2d", *SMALL, "--steps", 4, "--target-error", 1e-9)
    assert result.exit_code == 0 and "NOT reached" in result.stdout


def test_time_budget():
    assert run_json("poisson2d", "--method", "adam", "--time-budget", 1e-6)["status"] == "time_budget_spent"


def test_float32():
    report = run_json("poisson2d", "--method", "adam", "--dtype", "float32", "--steps", 2)
    assert report["dtype"] == "float32" and report["rel_l2"] is not None


def test_a_diverged_run_fails_with_valid_json(diverging, tmp_path):
    picture = tmp_path / "diverged.png"
    report = run_json("poisson2d", "--method", "diverging", "--steps", 5, "--plot", picture, code=1)
    assert report["status"] == "nonfinite_loss" and picture.exists()


@pytest.mark.parametrize("problem", ["deep_ritz1d", "poisson2d", "poisson5d"])
def test_pictures(problem, tmp_path):
    picture = tmp_path / "new" / "run.png"
    result = invoke("run", problem, *SMALL, "--method", "adam", "--steps", 30, "--plot", picture)
    assert result.exit_code == 0, result.output
    assert_picture(picture)


def test_save_and_resume_equal_an_uninterrupted_run(tmp_path):
    files = [tmp_path / name for name in ("whole", "half", "copy")]
    whole = run_json("poisson2d", "--steps", 8, "--save", files[0])
    half = run_json("poisson2d", "--steps", 3, "--save", files[1])
    before = files[1].read_bytes()
    copied = run_json("poisson2d", "--steps", 8, "--resume", files[1], "--save", files[2])
    assert files[1].read_bytes() == before
    resumed = run_json("poisson2d", "--steps", 8, "--resume", files[1])
    assert half["steps"] == 3 and half["loss"] != whole["loss"]
    for report in (copied, resumed):
        assert [report[key] for key in ("steps", "loss", "rel_l2")] == [
            whole[key] for key in ("steps", "loss", "rel_l2")
        ]
    states = []
    for file in files:
        with np.load(file) as arrays:
            states.append({name: arrays[name] for name in arrays.files if name.startswith("state")})
    for name, whole_run in states[0].items():
        for other in states[1:]:
            np.testing.assert_array_equal(whole_run, other[name])


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    file = tmp_path / "run"
    run_json("poisson2d", "--steps", 2, "--save", file)
    for option, said in (
        (["--seed", 1], "seed 0, not 1"),
        (["--dtype", "float32"], "dtype float64, not float32"),
        (["--method", "adam"], "method levenberg_marquardt, not adam"),
        (["--layers", "9"], "layers 8, not 9"),
    ):
        result = invoke("run", "poisson2d", *SMALL, "--steps", 3, "--resume", file, *option)
        assert result.exit_code == 1 and result.stderr.count("\n") == 1 and said in result.stderr
    (tmp_path / "run.json").unlink()  # then the shapes still tell
    result = invoke("run", "poisson2d", "--layers", 9, "--steps", 3, "--resume", file)
    assert result.exit_code == 1 and "belongs to another run" in result.stderr.splitlines()[-1]
    file.write_text("no checkpoint")
    result = invoke("run", "poisson2d", *SMALL, "--steps", 3, "--resume", file)
    assert result.exit_code == 1 and "is not a checkpoint" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "args, said",
    [
        (["rnu"], "Did you mean 'run'?"),
        (["run", "poison2d"], "Did you mean 'poisson2d'?"),
        (["run", "zzz"], "heat1d"),
        (["run", "poisson2d", "--method", "lbfsg"], "Did you mean 'lbfgs'?"),
        (["run", "poisson2d", "--sed", "1"], "--seed"),
        (["run", "poisson2d", "--steps", "-1"], "x>=1"),
        (["run", "poisson2d", "--steps", "1.5"], "integer"),
        (["run", "poisson2d", "--seed", "-1"], "0<=x"),
        (["run", "poisson2d", "--layers", "32,x"], "positive integers separated by commas"),
        (["run", "poisson2d", "--layers", "0"], "positive integers separated by commas"),
        (["run", "poisson2d", "--layers", ""], "positive integers separated by commas"),
        (["run", "poisson2d", "--target-error", "0"], "above 0"),
        (["run", "poisson2d", "--target-error", "nan"], "above 0"),
        (["run", "poisson2d", "--time-budget", "-1"], "above 0"),
        (["run", "poisson2d", "--dtype", "float16"], "'float32', 'float64'"),
        (["run", "poisson2d", "--resume", "no/such/file"], "does not exist"),
        (["run", "poisson2d", "--plot", "run.doc"], ".png"),
        (["compare", "poisson2d"], "--methods"),
        (["compare", "poisson2d", "--methods", "adam,lbfsg"], "Did you mean 'lbfgs'?"),
        (["compare", "poisson2d", "--methods", "adam,"], "Allowed: adam"),
        (["compare", "poisson2d", "--methods", "adam", "--seeds", "0"], "x>=1"),
    ],
)
def test_usage_errors(args, said):
    result = invoke(*args)
    assert result.exit_code == 2 and result.stdout == ""
    assert said in result.stderr


def test_an_unwritable_checkpoint_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    result = invoke("run", "poisson2d", *SMALL, "--steps", 2, "--save", tmp_path / "file" / "run")
    assert result.exit_code == 1 and result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_compare_table_and_picture(tmp_path):
    picture = tmp_path / "compare.png"
    methods = "levenberg_marquardt,adam"
    result = invoke(
        "compare", "poisson2d", *SMALL, "--methods", methods, "--seeds", 3, "--steps", 12, "--plot", picture
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == methods.split(",")
    assert lines[-3].split() == ["method", "median", "worst", *(f"1e-{k}" for k in range(2, 7)), "steps", "status"]
    assert all(line.split()[-2:] == ["12", "steps_done"] for line in lines[-2:])
    assert_picture(picture)


def test_compare_json_equals_single_runs():
    options = ["--steps", 4, *SMALL]
    result = invoke("compare", "poisson2d", "--methods", "levenberg_marquardt", "--seeds", 2, "--json", *options)
    assert result.exit_code == 0, result.output
    report = strict_json(result.stdout)
    assert list(report) == ["problem", "dtype", "seeds", "steps", "time_budget", "methods"]
    (row,) = report["methods"]
    errors = [run["rel_l2"] for run in row["runs"]]
    assert row["worst_rel_l2"] == max(errors) and row["median_rel_l2"] == pytest.approx(np.median(errors))
    assert row["status"] == {"steps_done": 2}
    for seed, run in enumerate(row["runs"]):
        assert list(run) == KEYS
        alone = run_json("poisson2d", "--steps", 4, "--seed", seed)
        assert [run[key] for key in ("seed", "loss", "rel_l2")] == [alone[key] for key in ("seed", "loss", "rel_l2")]


def test_compare_fails_if_a_run_diverged(diverging):
    result = invoke("compare", "poisson2d", *SMALL, "--methods", "diverging", "--seeds", 1, "--steps", 5, "--json")
    assert result.exit_code == 1
    assert strict_json(result.stdout)["methods"][0]["status"] == {"nonfinite_loss": 1}


def test_seconds_to():
    history = {"error": np.array([1.0, np.nan, 0.05, 0.2, 1e-3]), "seconds": np.arange(1.0, 6.0)}
    expected = dict.fromkeys((f"1e-{k}" for k in range(1, 13)), None)
    assert seconds_to(history) == expected | {"1e-1": 3.0, "1e-2": 5.0, "1e-3": 5.0}
    assert seconds_to({}) == expected


@pytest.mark.parametrize("name", ["steps_done", "target_reached", "time_budget_spent", "nonfinite_loss", "interrupted"])
def test_status_names(name):
    assert status_name(getattr(so.RESULTS, name)) == name


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # main would set it for good
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit, match=r"needs the package click: pip install 'sciml_opt\[cli\]'"):
        main(["list"])


def test_in_a_process_of_its_own():
    """Nothing but JSON on stdout."""
    command = [sys.executable, "-m", "sciml_opt.cli", "run", "poisson2d", "--json", "--steps", "5", *SMALL]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert list(strict_json(done.stdout)) == KEYS and done.stdout.count("\n") == 1


def test_lapack_gets_one_thread_in_time():
    """The variable is read when SciPy's OpenBLAS is loaded: not by importing the command, but after `main` set it."""
    script = (
        "import os, sys; from sciml_opt.cli import main; assert 'scipy.linalg' not in sys.modules\n"
        "try: main(['--version'])\nexcept SystemExit: print(os.environ['OPENBLAS_NUM_THREADS'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1"
