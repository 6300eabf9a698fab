"""Points sharded over devices: the same numbers as on one device."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest
from small import BATCH, POISSON, network, partition

HERE = pathlib.Path(__file__).parent
TOLERANCE = 1e-10


def launch(*arguments):
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    env = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | os.environ  # as in conftest.py
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(HERE / "sharded_run.py"), *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def differences(*processes):
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return json.loads(outputs[0][0].splitlines()[-1])


def check(found, devices, processes):
    assert (found.pop("devices"), found.pop("processes"), found.pop("sharded")) == (devices, processes, devices)
    assert max(found.values()) < TOLERANCE, found


def test_eight_virtual_devices():
    found = differences(launch())
    assert len(found) == 13
    check(found, devices=8, processes=1)


def test_two_processes():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    check(differences(launch(address, "0"), launch(address, "1")), devices=4, processes=2)


@pytest.mark.bad_input
def test_a_mesh_of_another_shape_is_refused():
    params, static = partition(network())
    grid = jax.sharding.Mesh([[jax.devices()[0]]], ("a", "b"))
    for mesh in (grid, 8):
        with pytest.raises(ValueError, match=r"bind\(mesh=...\) must be a jax.sharding.Mesh of one axis"):
            POISSON.bind(BATCH, static=static, mesh=mesh)
