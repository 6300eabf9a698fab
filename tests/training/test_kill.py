"""A run killed by `kill -9` resumes to the same bits as an uninterrupted one: real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).with_name("killed_run.py")


def start(folder):
    files = [str(folder / f"{name}.npz") for name in ("checkpoint", "killed", "whole")]
    env = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | os.environ  # as in conftest.py
    return subprocess.Popen([sys.executable, str(SCRIPT), *files], env=env, stdout=subprocess.PIPE, text=True)


def test_kill_9_and_resume(tmp_path):
    kills = 0
    for threshold in (20, 320):  # once in each phase
        victim = start(tmp_path)
        for line in victim.stdout:
            if int(line) >= threshold:
                os.kill(victim.pid, signal.SIGKILL)
                break
        kills += victim.wait() == -signal.SIGKILL
        victim.stdout.close()
    last = start(tmp_path)
    first_step = int(last.stdout.readline())
    assert last.communicate() and last.returncode == 0
    assert kills == 2 and first_step > 20  # it did not start anew
    with np.load(tmp_path / "whole.npz") as want, np.load(tmp_path / "killed.npz") as got:
        assert int(got["steps"]) == int(want["steps"]) == 600
        for key in want.files:
            np.testing.assert_array_equal(got[key], want[key], err_msg=key)
