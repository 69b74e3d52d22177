"""What can go wrong between joining a job and the first step: a sentence from every process, and soon."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest

RUN = (
    "from mnist_flax.training import distributed as d; d.JOIN_SECONDS = {}; from mnist_flax import train; train.main()"
)
OPTIONS = ["--distributed", "--dataset", "digits", "--epochs", "1", "--no-report"]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(process, num_processes, port, workdir, *options, inside=(), node="localhost", join_seconds=60, **variables):
    """One process of a job as Slurm would start it, run by the command `inside` if there is one."""
    slurm = {"SLURM_JOB_ID": 1, "SLURM_STEP_NODELIST": node, "SLURM_NTASKS": num_processes, "SLURM_PROCID": process}
    slurm |= {"SLURM_LOCALID": process, "JAX_COORDINATOR_PORT": port}
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    environment |= {name: str(value) for name, value in (slurm | variables).items()}
    command = [*inside, sys.executable, "-c", RUN.format(join_seconds), *OPTIONS, "--workdir", str(workdir), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    """Exit statuses, and the one line that each process wrote to standard error."""
    errors = [process.communicate(timeout=100)[1] for process in processes]
    for error in errors:
        assert re.fullmatch(r"error: [^\n]+\n", error), error
    return [process.returncode for process in processes], errors


def in_namespace(kinds, script):
    """A command that runs another one after `script`, in namespaces of its own."""
    command = ["unshare", *kinds, "--map-root-user", "sh", "-c", f'{script} && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip(f"needs unshare {' '.join(kinds)}, which is not allowed here")
    return command


def assert_nothing_written(workdir):
    assert not [path.name for path in workdir.iterdir() if path.name != ".lock"]


def one_fails(workdir, *options, **changes):
    """What process 1 says, which these options and changes set apart, after process 0 has said that it has heard."""
    port = free_port()
    processes = start(0, 2, port, workdir), start(1, 2, port, workdir, *options, **changes)
    statuses, (other, error) = finish(*processes)
    assert statuses == [1, 2], (other, error)
    assert other.startswith("error: another process of the job has ended (process 1: ")
    assert error.removeprefix("error: ").strip() in other
    assert_nothing_written(workdir)
    return error


@pytest.mark.parametrize("address", ["", "192.0.2.1"], ids=["unknown", "of another machine"])
def test_host_name(tmp_path, address):
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{address} nowhere-at-all\n" if address else "127.0.0.1 localhost\n")
    kinds, workdir = ["--uts", "--mount"], tmp_path / "run"
    workdir.mkdir()
    nowhere = in_namespace(kinds, f"hostname nowhere-at-all && mount --bind '{hosts}' /etc/hosts")
    error = one_fails(workdir, inside=nowhere)
    assert "host name 'nowhere-at-all' does not resolve to an address that it has" in error


def test_other_options(tmp_path):
    error = one_fails(tmp_path, "--batch-size", "32", "--seed", "2")
    assert "differs from process 0 (--batch-size is 32 instead of 64; --seed is 2 instead of 0)" in error


def test_storage_that_is_not_shared(tmp_path):
    elsewhere = in_namespace(["--mount"], f"mount -t tmpfs none '{tmp_path}'")
    assert "is not the directory that process 0 has there" in one_fails(tmp_path, inside=elsewhere)


def test_no_data_on_one_machine(tmp_path, mnist_dir):
    """A file there is another one's, so that no machine downloads it while it is tested."""
    files, workdir = tmp_path / "data/downloads/manual", tmp_path / "run"
    files.mkdir(parents=True)
    workdir.mkdir()
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        (files / f"{name}-idx{3 if 'images' in name else 1}-ubyte.gz").write_bytes(b"something else")
    data = ["--dataset", "mnist"]
    port = free_port()
    first = start(0, 2, port, workdir, *data, TFDS_DATA_DIR=mnist_dir)
    second = start(1, 2, port, workdir, *data, TFDS_DATA_DIR=tmp_path / "data")
    statuses, (other, error) = finish(first, second)
    assert statuses == [1, 2]
    assert "train-images-idx3-ubyte.gz is not mnist's file" in error
    assert error.removeprefix("error: ").strip() in other
    assert_nothing_written(workdir)


def test_what_all_processes_find_each_says(tmp_path):
    port, flags = free_port(), "--xla_force_host_platform_device_count={}"
    processes = [start(i, 2, port, tmp_path, XLA_FLAGS=flags.format(2 - i)) for i in range(2)]
    statuses, errors = finish(*processes)
    assert statuses == [2, 2]
    assert "2 of the job's 3 devices are on" in errors[0]
    assert "1 of the job's 3 devices are on" in errors[1]
    assert_nothing_written(tmp_path)


def test_nobody_to_join(tmp_path):
    """Each in its own way: no coordinator, one whose name is unknown, one that waits for more, one without a port."""
    with socket.create_server(("", 0)) as other_program:
        alone = [
            start(1, 2, free_port(), tmp_path, join_seconds=4),
            start(1, 2, free_port(), tmp_path, join_seconds=4, node="no-such-host.invalid"),
            start(0, 2, free_port(), tmp_path, join_seconds=4),
            start(0, 2, other_program.getsockname()[1], tmp_path),
        ]
        statuses, errors = finish(*alone)
    assert statuses == [2] * 4
    assert all(error.startswith(f"error: process {i} waited 4 s") for i, error in zip((1, 1, 0), errors, strict=False))
    for error in errors[:3]:
        assert "see whether all of them run, and whether this machine knows and reaches that address" in error
    assert "no-such-host.invalid" in errors[1]
    assert "is in use by another program" in errors[3]
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_waiting(tmp_path, number):
    port = free_port()
    process = start(0, 2, port, tmp_path)
    while process.poll() is None:
        with suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert error.endswith(f"error: stopped by {signal.Signals(number).name}; run the same command again to go on\n")
    assert "Traceback" not in error
    assert_nothing_written(tmp_path)
