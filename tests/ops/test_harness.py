"""The C++ kernels in a program of their own, under sanitizers and on an emulated processor, against NumPy."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
from exact import exact_layer

from mnist_flax.ops import library

# Images, height, width, channels in and out, side of the kernel, padding, what comes before.
LAYERS = [
    (1, 3, 3, 1, 1, 3, 0, "nothing"),
    (9, 8, 10, 5, 7, 3, 1, "relu"),
    (8, 12, 6, 8, 12, 3, 0, "pool"),
    (17, 4, 6, 20, 12, 1, 0, "pool"),
    (16, 10, 10, 12, 16, 3, 1, "relu"),
    (5, 12, 5, 33, 25, 3, 2, "relu"),
    (3, 14, 2, 3, 4, 7, 6, "pool"),
    (2, 5, 9, 2, 33, 5, 4, "nothing"),
]


def build(directory, compiler, *options):
    """The harness as a program."""
    program, source = directory / "harness", Path(__file__).with_name("harness.cc")
    include = ["-I", str(library.SOURCE.parent), "-isystem", jax.ffi.include_dir()]
    kept = [option for option in library.OPTIONS if option not in ("-shared", "-fPIC")]
    command = [*compiler, *kept, *options, "-pthread", *include, str(source), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return str(program)


def pack(images, lanes, missing):
    padded = np.pad(images, ((0, -len(images) % lanes), (0, 0), (0, 0), (0, 0)), constant_values=missing)
    return np.moveaxis(padded.reshape(-1, lanes, *images.shape[1:]), 1, -1)


def calls(layer, lanes, rng):
    """A layer's call forward and its call backward: whether pooled, the arguments, and the results expected.

    Lanes without an image have large numbers, which must count nowhere; NaN stands for what their results are.
    """
    n, height, width, c_in, c_out, side, padding, before = layer
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    x, kernel, pooled = normal(n, height, width, c_in), normal(side, side, c_in, c_out), before == "pool"
    scaling, d_sums = normal(*((2, c_in) if before != "nothing" else (0,))), normal(2, c_out) / 100
    d_y = normal(n, *(length // (1 + pooled) + 2 * padding - side + 1 for length in (height, width)), c_out)
    y, sums, d_x, d_scaling, d_kernel = exact_layer(
        *(np.float64(a) for a in (x, scaling, kernel)), padding, pooled, d_y, d_sums
    )
    expected_y, d_x = (pack(images, lanes, np.nan) for images in (y, d_x))
    x, y, d_y = (pack(images, lanes, 1e3) for images in (x, y, d_y))
    if before == "nothing":
        d_scaling = np.zeros_like(d_scaling)
        d_x = d_x if n > 1 else d_x[:0, 0, 0, 0, 0]  # one case is without the gradient of the images
    yield pooled, (x, scaling, kernel), (expected_y, sums)
    yield pooled, (x, scaling, kernel, y, d_y, d_sums), (d_x, d_scaling, d_kernel)


def compare(program, *runner):
    """Calls all layers in the harness: values and gradients."""
    run = functools.partial(subprocess.run, capture_output=True, check=False)
    lanes, rng, asked, expected = int(run([*runner, program, "lanes"]).stdout), np.random.default_rng(0), [], []
    for layer in LAYERS:
        for pooled, arguments, results in calls(layer, lanes, rng):
            shapes = [number for a in (*arguments, *results) for number in (a.ndim, *a.shape)]
            asked.append(np.array([len(arguments) > 3, layer[0], layer[6], pooled, *shapes], np.int64).tobytes())
            asked += [np.ascontiguousarray(a, np.float32).tobytes() for a in arguments]
            expected += results
    ran = run([*runner, program], input=b"".join(asked))
    assert ran.returncode == 0, ran.stderr.decode()
    ends = np.cumsum([a.size for a in expected])
    found = np.frombuffer(ran.stdout, np.float32)
    assert found.size == ends[-1]
    for ours, theirs in zip(np.split(found, ends[:-1]), expected, strict=True):
        theirs = theirs.ravel()
        there = ~np.isnan(theirs)
        largest = np.abs(theirs[there]).max(initial=1)
        np.testing.assert_allclose(ours[there], theirs[there], rtol=0, atol=2e-5 * largest)


@pytest.mark.usefixtures("cpu_kernels")
def test_under_sanitizers(tmp_path):
    """No address outside a buffer, and nothing undefined."""
    compiler = library.compiler()
    asked = subprocess.run([*compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    if not os.path.isabs(asked.stdout.strip()):
        pytest.skip(f"{compiler[0]} has no address sanitizer")
    options = "-march=native", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
    compare(build(tmp_path, compiler, *options))


def test_on_arm(tmp_path):
    """With NEON's vectors, by an emulator."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian's g++-aarch64-linux-gnu and qemu-user)")
    compare(build(tmp_path, [compiler], "-static"), emulator)
