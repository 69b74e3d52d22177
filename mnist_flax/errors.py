"""How a command fails: one sentence on standard error and exit status 2, never a traceback."""

import argparse
import functools
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class UserError(Exception):
    """Something the user can put right. The message says what is wrong and what to do."""


def require(package: str, purpose: str) -> Any:
    """An optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{package} is needed {purpose}: pip install {package}") from error


class ArgumentParser(argparse.ArgumentParser):
    """Answers a mistake with one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UserError(f"{message}; {self.prog} --help lists the options")

    def add_checkpoint(self) -> None:
        """The argument `checkpoint`: what `classifier.load` takes."""
        self.add_argument(
            "checkpoint",
            nargs="?",
            type=Path,
            help="run directory, its best directory, or safetensors file; default: the shipped weights",
        )


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Turn expected failures of a command's `main` into a sentence and an exit status, and warnings into sentences."""

    @functools.wraps(main)
    def wrapped() -> None:
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")  # a terminal that has no "·", a file name that is no text
        try:
            main()
            sys.stdout.flush()
        except UserError as error:
            sys.exit(_say(str(error), 2))
        except BrokenPipeError:  # the reader, `head` say, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its exit
            sys.exit(141)  # 128 + SIGPIPE, as a shell has it
        except OSError as error:  # a full disk, a directory that may not be written, a file that is not there
            where = f"{error.filename}: " if error.filename else ""
            sys.exit(_say(f"{where}{error.strerror or error}", 2))
        except KeyboardInterrupt:
            sys.exit(_say("interrupted", 130))

    return wrapped


def _say(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
