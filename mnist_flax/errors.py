"""Failures that a user can put right: one sentence, never a traceback (`cli.command` prints it)."""

import importlib
from typing import Any


class UserError(Exception):
    """Something the user can put right. The message says what is wrong and what to do."""


def require(package: str, purpose: str) -> Any:
    """Import an optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{package} is needed {purpose}: pip install {package}") from error
