"""Jobs of several processes on this machine, found by JAX through the variables that Slurm sets."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from runs import rows, wait_for_rows

from mnist_flax.inference.interop import to_pytorch
from mnist_flax.inference.weights import load_run

# Devices sum in another order, and training magnifies that: by 1e-6 a step it stays small enough to be compared.
OPTIONS = ["--dataset", "digits", "--epochs", "4", "--no-report", "--max-lr", "1e-6"]


def start(num_processes, devices_each, workdir):
    """The processes of a job; one without a job if there is only one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for i in range(num_processes):
        slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": num_processes}
        slurm |= {"SLURM_PROCID": i, "SLURM_LOCALID": i, "JAX_COORDINATOR_PORT": port}
        environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_each}"}
        environment |= {name: str(value) for name, value in slurm.items()} if num_processes > 1 else {}
        command = [sys.executable, "-m", "mnist_flax.train", *OPTIONS, "--workdir", str(workdir)]
        command += ["--distributed"] if num_processes > 1 else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    return processes


def finish(processes):
    """Exit statuses, and what each said of the run: threads of Gloo's talk too, into each other's lines."""
    outcomes = [process.communicate(timeout=200) for process in processes]
    ours = re.compile(r"digits:|12,534 parameters|Each batch|Compiled|Epoch|Resuming|Saved|Test accuracy|Curves")
    said = [[line for line in out.splitlines() if ours.search(line)] for out, _ in outcomes]
    return [process.returncode for process in processes], said, [err for _, err in outcomes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process on four devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    statuses, _, errors = finish(start(1, 4, workdir))
    assert statuses == [0], errors
    return workdir


def assert_close(workdir, whole):
    """Losses to 1e-5; weights, which 84 steps have moved by up to 8e-5, to 5e-6.

    But for the one bias that BatchNorm subtracts again: its gradients are rounding errors, which Adam enlarges.
    """
    found, expected = rows(workdir), rows(whole)
    assert [row["epoch"] for row in found] == [1, 2, 3, 4]
    for name in ("train_loss", "val_loss"):
        np.testing.assert_allclose([row[name] for row in found], [row[name] for row in expected], rtol=1e-5)
    ours, theirs = (to_pytorch(load_run(path)[0]) for path in (workdir, whole))
    for name, value in theirs.items():
        if name == "channel_reduce.0.bias":
            continue
        np.testing.assert_allclose(ours[name], value, atol=5e-6, rtol=1e-5, err_msg=name)


def test_stopped_and_killed_and_gone_on_with_on_other_devices(whole, tmp_path):
    processes = start(2, 2, tmp_path)
    wait_for_rows(processes[0], tmp_path, 1)
    processes[1].send_signal(signal.SIGTERM)
    statuses, said, errors = finish(processes)
    assert statuses == [143, 143], errors
    assert any("slower than one process alone" in line for line in said[0])
    assert "Saved after step" in said[0][-1]
    assert said[1] == []

    processes = start(2, 2, tmp_path)
    wait_for_rows(processes[0], tmp_path, 2)
    processes[1].kill()
    killed = time.monotonic()
    statuses, said, errors = finish(processes)
    assert time.monotonic() - killed < 60
    assert statuses == [1, -signal.SIGKILL]
    assert any("Resuming after epoch" in line for line in said[0])
    assert errors[0].startswith("error: another process of the job has ended")
    assert "start the job again to go on" in errors[0]

    statuses, said, errors = finish(start(2, 1, tmp_path))
    assert statuses == [0, 0], errors
    assert any("Resuming after epoch" in line for line in said[0])
    assert said[1] == []
    assert_close(tmp_path, whole)
    assert (tmp_path / "network.safetensors").exists()  # the main process read the checkpoint alone


def test_under_open_mpi(tmp_path):
    """JAX finds the job by itself, as it does under Slurm."""
    if not shutil.which("mpirun"):
        pytest.skip("needs Open MPI: apt-get install openmpi-bin")
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2", sys.executable]
    command += ["-m", "mnist_flax.train", "--distributed", "--dataset", "digits", "--epochs", "1", "--val-size", "0"]
    environment = os.environ | {"XLA_FLAGS": ""}
    options = {"capture_output": True, "text": True, "timeout": 200, "env": environment}
    done = subprocess.run([*command, "--no-report", "--workdir", str(tmp_path)], **options)
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout
    assert done.stdout.count("Test accuracy ") == 1  # process 0 alone prints


def test_without_a_job_there_is_nothing_to_join(tmp_path):
    command = [sys.executable, "-m", "mnist_flax.train", *OPTIONS, "--distributed", "--workdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --distributed found no job to join")
    assert "Traceback" not in done.stderr
