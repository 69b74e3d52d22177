"""The commands' common parts: shared options, how results are printed, how failures are reported."""

import argparse
import contextvars
import functools
import glob
import io
import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from mnist_flax.errors import StoppedError, UserError
from mnist_flax.files import cache_directory, local_path

_whole_process = contextvars.ContextVar("whole process", default=False)


def program_name(command: str) -> str:
    """How the user called a command: by the console script or as a module."""
    script = Path(sys.argv[0]).stem == "mnist-flax"
    return f"mnist-flax {command.replace('_', '-')}" if script else f"python -m mnist_flax.{command}"


class VersionAction(argparse.Action):
    """`--version`. Looks the versions up only when asked, which takes a tenth of a second."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="print versions and exit")

    def __call__(self, *_: Any) -> NoReturn:
        """Called by argparse."""
        print(f"mnist_flax {version('mnist-flax')}, JAX {version('jax')}, Python {platform.python_version()}")
        raise SystemExit(0)


class ArgumentParser(argparse.ArgumentParser):
    """The parser of one command. It answers a mistake with one sentence instead of a page of usage."""

    def __init__(self, command: str, description: str, example: str = "", **options: Any) -> None:
        program = program_name(command)
        epilog = f"example: {program} {example}".rstrip()
        super().__init__(prog=program, description=description, epilog=epilog, **{"allow_abbrev": False, **options})
        self.add_argument("--version", action=VersionAction)

    def error(self, message: str) -> NoReturn:
        """Called by argparse.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; {self.prog} --help lists the options")

    def add_checkpoint(self, *names: str) -> None:
        """The argument `checkpoint`, or an option of the `names` given: what `inference.classifier.load` takes."""
        options: dict[str, Any] = {} if names else {"nargs": "?"}
        meaning = "run directory, checkpoint in it, or safetensors file; default: the shipped weights"
        self.add_argument(*(names or ("checkpoint",)), type=local_path, help=meaning, **options)

    def add_data_dir(self, purpose: str = "") -> None:
        """The option `--data-dir`."""
        default = "default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"
        self.add_argument("--data-dir", type=local_path, help=f"{purpose}TFDS data directory; {default}")

    def add_json(self, meaning: str = "print one JSON object") -> None:
        """The option `--json`, which `show` goes by."""
        self.add_argument("--json", action="store_true", help=meaning)


def show(options: argparse.Namespace, value: Any, text: str) -> None:
    """Print a command's result: a JSON object on one line under `--json`, otherwise text."""
    print(json.dumps(value) if options.json else text, flush=True)


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, so that the next start does not compile; no effect if it cannot be written.

    The directory is $JAX_COMPILATION_CACHE_DIR, else $XDG_CACHE_HOME/mnist_flax, else ~/.cache/mnist_flax.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        directory = cache_directory()
        if directory is None:
            return
        jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the many small programs add up to seconds


def _open_streams() -> None:
    """Open the standard streams that this process was started without: what is written to them goes nowhere.

    A descriptor that is closed would be that of the next file that is opened, and C++ libraries would write into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free, which is this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the life of the process


def _show_unraisable(unraisable: Any) -> None:
    """Say what was raised where nobody could catch it, unless it has been answered elsewhere.

    If a write fails, TensorStore's threads report to an event loop that has ended with the first of them, and Python
    closes the file once more.
    """
    error = unraisable.exc_value
    if not isinstance(error, OSError | StoppedError) and str(error) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning as a sentence; what JAX says of a damaged file in the compilation cache is acted on instead.

    JAX writes such a file in place, and leaves one that is there as it is. If a full disk or a kill cuts one short, it
    warns at every start, and compiles that program every time. So the file is removed, and JAX writes it anew.
    """
    unwritten = re.match(
        "Error writing persistent compilation cache entry for .+?: [A-Za-z]+: (.*)", str(message), re.S
    )
    if unwritten:  # as for each of a hundred programs
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
        message = f"compiled programs are not kept for the next start ({unwritten[1]})"
    damaged = re.match("Error reading persistent compilation cache entry for '(.+?)'", str(message))
    if not damaged:
        print(f"warning: {message}", file=sys.stderr)
        return
    import jax

    directory = Path(jax.config.jax_compilation_cache_dir)  # pyright: ignore[reportAttributeAccessIssue]
    for path in directory.glob(f"{glob.escape(damaged[1])}-*"):
        path.unlink(missing_ok=True)


def command(main: Callable[[Sequence[str]], None]) -> Callable[..., None]:
    """Turn expected failures of a command's `main` into a sentence and an exit status, and warnings into sentences.

    The command takes its arguments, by default those of the command line.
    """

    @functools.wraps(main)
    def wrapped(arguments: Sequence[str] | None = None) -> None:
        # JAX would take three quarters of a GPU's memory at once; this network needs a thousandth of that.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        _open_streams()
        warnings.showwarning = _show_warning
        sys.unraisablehook = _show_unraisable
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal without "·", a file name that is no valid text
        whole_process = _whole_process.set(arguments is None or is_whole_process())
        try:
            _run(main, sys.argv[1:] if arguments is None else arguments)
        except SystemExit:
            if arguments is None:  # all is said; what threads and destructors fail at now is no news
                _discard(sys.stderr)
            raise
        finally:
            _whole_process.reset(whole_process)

    return wrapped


def is_whole_process() -> bool:
    """Whether this process was started for the command that runs, and not by somebody's program that calls it."""
    return _whole_process.get()


def _run(main: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> None:
    """Run a command's `main`, and exit with a sentence if it fails."""
    try:
        main(arguments)
        sys.stdout.flush()
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except BrokenPipeError:  # the reader, `head` for instance, has closed the pipe
        sys.exit(_fail("", 141))  # 128 + SIGPIPE, as a shell reports it
    except OSError as error:  # a full disk, a directory without write permission, a missing file
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(_fail(f"{where}{error.strerror or error}", 2))
    except ValueError as error:  # JAX refuses the value of one of its environment variables when it is imported
        if "jax" in sys.modules or "jax" not in str(error).lower():
            raise
        sys.exit(_fail(f"JAX cannot start ({error}): correct that environment variable", 2))
    except StoppedError as error:
        sys.exit(_fail(str(error), 128 + error.signal))
    except KeyboardInterrupt:
        sys.exit(_fail("interrupted", 130))


def _fail(message: str, status: int) -> int:
    """Say why a command fails. A stream that cannot be written to would fail once more at the exit of Python."""
    if message:
        with suppress(OSError):
            print(f"error: {message}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream)
    return status


def _discard(stream: Any) -> None:
    """Discard what Python or C++ prints to a stream from now on."""
    with suppress(OSError):  # it is no file: somebody's program reads it
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
