import itertools
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest

import mnist_flax
from mnist_flax import cli, data, train
from mnist_flax.__main__ import COMMANDS, main, module_of
from mnist_flax.errors import UserError
from mnist_flax.files import cache_directory


def run(*command):
    return subprocess.run([sys.executable, "-W", "error", *command], capture_output=True, text=True, check=False)


def test_the_package_lists_its_commands():
    for arguments in ([], ["--help"]):
        listed = run("-m", "mnist_flax", *arguments)
        assert listed.returncode == 0
        assert all(f"mnist-flax {name} " in listed.stdout for name in COMMANDS)


def test_the_console_script_is_the_same_program():
    [script] = entry_points(group="console_scripts", name="mnist-flax")
    assert script.load() is main


def test_both_spellings_of_a_command_and_no_other():
    assert module_of("import-weights") is module_of("import_weights")
    failed = run("-m", "mnist_flax", "predikt")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: there is no command 'predikt'; choose from train, evaluate, ")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_a_mistake_is_one_sentence(name):
    module = f"mnist_flax.{name.replace('-', '_')}"
    helped = run("-m", module, "--help")
    assert f"example: python -m {module}" in helped.stdout
    assert helped.stdout == run("-m", "mnist_flax", name, "--help").stdout
    failed = run("-m", module, "--nonsense")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)
    assert failed.stderr.startswith("error: ")


def test_help_says_how_it_was_called(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mnist-flax", "train"])
    assert cli.program_name("train") == "mnist-flax train"
    assert cli.program_name("import_weights") == "mnist-flax import-weights"


def test_version(capsys):
    expected = f"mnist_flax {version('mnist-flax')}, JAX {version('jax')}, Python {platform.python_version()}\n"
    for arguments in (["--version"], ["train", "--version"], ["predict", "--version"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert capsys.readouterr().out == expected
    assert mnist_flax.__version__ == version("mnist-flax")


def test_options_are_not_abbreviated():
    with pytest.raises(UserError, match="unrecognized arguments: --save-plot"):
        module_of("evaluate").parse(["--save-plot", "pictures"])


def test_json_of_the_summary():
    rows = json.loads(run("-m", "mnist_flax.summary", "--json").stdout)
    assert sum(row["num_params"] for row in rows) == 12_534


@pytest.mark.parametrize(("given", "expected"), [(None, "false"), ("true", "true")])
def test_a_gpu_is_not_reserved_unless_the_user_says_so(given, expected, monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    if given:
        monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", given)
    seen = []
    cli.command(lambda arguments: seen.append(os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]))([])
    assert seen == [expected]


def test_a_damaged_file_in_the_compilation_cache_is_written_anew(tmp_path):
    """As a full disk leaves it: JAX would warn at every start, and compile that program every time."""
    program = """
from mnist_flax import cli
def main(arguments):
    import jax
    cli.use_compilation_cache()
    print(jax.jit(lambda x: 3 * x)(2.0))
cli.command(main)([])
"""

    def answer():
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout, done.stderr

    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    assert answer() == ("6.0\n", "")
    [kept] = (tmp_path / "mnist_flax").glob("*lambda*-cache")
    content = kept.read_bytes()
    kept.write_bytes(content[: len(content) // 2])
    assert answer() == ("6.0\n", "")
    assert kept.stat().st_size > len(content) // 2


def test_a_user_may_have_no_home_directory(monkeypatch):
    """As in a container that is run by a number no user has."""

    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert cache_directory() is None
    with pytest.raises(data.DataUnavailableError, match="this user has none: name a TFDS data directory by --data-dir"):
        data.load("mnist", None, None)


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "mnist_flax.summary"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("closed", [closed for n in (1, 2, 3) for closed in itertools.combinations(range(3), n)])
def test_closed_standard_streams_lead_nowhere(closed, tmp_path):
    """Not into the file that is opened next, which would get their descriptor, nor to an AttributeError."""
    program = """
import os, subprocess, sys
from mnist_flax import cli
from mnist_flax.errors import UserError

def main(arguments):
    with open("file", "w") as file:
        print("to the user")
        os.write(1, b"by C\\n")
        os.write(2, b"by C\\n")
        subprocess.run([sys.executable, "-c", "print(input())"], check=sys.stdin.isatty())
        file.write(f"{file.fileno() > 2} {sys.stdin.read()!r}")
    raise UserError("the reason")

cli.command(main)()
"""
    close = " ".join(f"{stream}<&-" for stream in closed)
    command = ["sh", "-c", f'exec "$0" -W error -c "$1" {close}', sys.executable, program]
    done = subprocess.run(command, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert (tmp_path / "file").read_text() == "True ''"
    assert ("to the user\n" in done.stdout) == (1 not in closed)
    assert done.stderr.endswith("error: the reason\n") == (2 not in closed)


def test_a_command_needs_neither_streams_nor_an_environment(tmp_path):
    command = ["sh", "-c", 'exec "$0" -W error -m mnist_flax.summary <&- >&- 2>&-', sys.executable]
    assert subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, check=False).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a file that is always full")
@pytest.mark.parametrize("full", ["stdout", "stderr"])
def test_a_stream_that_is_full_is_one_sentence_at_most(full):
    program = "import sys; from mnist_flax import cli; cli.command(lambda _: print('x', file=sys.{}, flush=True))()"
    streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with open("/dev/full", "w") as device:
        command = [sys.executable, "-c", program.format(full)]
        done = subprocess.run(command, **{**streams, full: device}, text=True, check=False)
    assert (done.returncode, done.stdout or "") == (2, "")
    assert done.stderr in (None, "error: No space left on device\n")


TWO_PROGRAMS = """
import resource, sys
from mnist_flax import cli

def main(arguments):
    import jax
    cli.use_compilation_cache()
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
    print(jax.jit(lambda x: 3 * x)(2.0), jax.jit(lambda x: 4 * x)(2.0))

cli.command(main)()
"""


def test_a_compilation_cache_that_cannot_be_made_is_done_without(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")}
    (tmp_path / "file").touch()
    command = [sys.executable, "-c", TWO_PROGRAMS, "-1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("6.0 8.0\n", "")


@pytest.mark.parametrize(
    ("options", "steps"), [([], ["cache", "data"]), (["--no-compilation-cache"], ["data"])], ids=["usual", "without"]
)
def test_a_compilation_cache_is_used_unless_it_is_not_wanted(options, steps, tmp_path, monkeypatch):
    taken = []

    def load(config):
        taken.append("data")
        raise UserError("seen enough")

    monkeypatch.setattr(train, "use_compilation_cache", lambda: taken.append("cache"))
    monkeypatch.setattr(train, "_load", load)
    with pytest.raises(UserError, match="seen enough"):
        train.train(train.parse(["--dataset", "digits", "--workdir", str(tmp_path / "run"), *options]))
    assert taken == steps


def test_a_compilation_cache_that_cannot_be_written_is_said_once(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", TWO_PROGRAMS, "100"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "6.0 8.0\n"
    said = r"warning: compiled programs are not kept for the next start \(\[Errno 27\] File too large.*\)\n"
    assert re.fullmatch(said, done.stderr)
