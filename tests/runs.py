"""Training runs as a user starts them, in processes of their own, and what they leave behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mnist_flax import data
from mnist_flax.training.records import read_history

DIGITS = ["--dataset", "digits"]
# What may be in the environment for the sake of other programs, and would change what JAX computes, or refuse it.
ODD_MODES = {
    "JAX_ENABLE_X64": "1",
    "JAX_DISABLE_JIT": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_TRANSFER_GUARD": "disallow",
}
TIMES = {"time", "seconds", "images_per_second"}


def few_digits(file: Path) -> Path:
    """Write a file of 500 training and 200 test images of `digits`: its epochs are short, and it is loaded at once."""
    loaded = data.load("digits", None, 0)
    (images, labels), (test_images, test_labels) = loaded.train, loaded.test
    np.savez(file, x_train=images[:500], y_train=labels[:500], x_test=test_images[:200], y_test=test_labels[:200])
    return file


def start(*arguments, warnings="error", **options):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-W", warnings, "-m", "mnist_flax.train", "--no-report", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**environment, **options.pop("env", {})}, **pipes, **options)


def train(*arguments, **options):
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def rows(workdir: Path):
    """metrics.jsonl without the wall-clock figures."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in read_history(workdir)]


def wait_for_rows(process, workdir, count):
    deadline = time.monotonic() + 200
    path = workdir / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
