"""Files written whole or not at all, and JSON files read with an error message that helps."""

import json
import os
from pathlib import Path
from typing import Any

from mnist_flax.errors import UserError


def cache_directory() -> Path | None:
    """Where compiled programs are kept: $XDG_CACHE_HOME/mnist_flax, else ~/.cache/mnist_flax; None if not writable."""
    directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mnist_flax"
    try:
        directory = directory.expanduser()
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user, of a container perhaps, has no home directory
        return None
    return directory if os.access(directory, os.W_OK) else None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object, indented, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file.

    Raises:
        UserError: the file holds something else.
    """
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text("utf-8-sig"))  # editors may add a byte order mark
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from a copy") from error
    return value
