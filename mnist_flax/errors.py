"""Failures that a user can put right: one sentence, never a traceback (`cli.command` prints it)."""

import importlib
import signal
from typing import Any


class UserError(Exception):
    """Something the user can put right. The message says what is wrong and what to do."""


class StoppedError(KeyboardInterrupt):
    """A signal ends this command where it has nothing to save. Like Ctrl-C, it is no `Exception` for others to catch.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; run the same command again to go on")
        self.signal = number


def require(package: str, purpose: str) -> Any:
    """Import an optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{package} is needed {purpose}: pip install {package}") from error
