import subprocess
import sys

import pytest

from mnist_flax.__main__ import COMMANDS


def test_the_package_lists_its_commands():
    out = subprocess.run([sys.executable, "-m", "mnist_flax"], capture_output=True, text=True, check=True).stdout
    assert all(f"python -m mnist_flax.{name}" in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_a_mistake_is_one_sentence(name):
    command = [sys.executable, "-W", "error", "-m", f"mnist_flax.{name}"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert f"example: python -m mnist_flax.{name}" in helped.stdout
    failed = subprocess.run([*command, "--nonsense"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)
    assert failed.stderr.startswith("error: ")


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "mnist_flax.summary"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141
