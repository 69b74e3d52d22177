"""Paths as options give them; files written whole or not at all, never over others'; JSON with helpful errors."""

import hashlib
import json
import mmap
import os
import re
from pathlib import Path
from typing import Any

from mnist_flax.errors import UserError

SIGN = "written_by_mnist_flax"  # in every file that we write for people and programs, where its format has room for it
_NETWORK = b'{"__metadata__":{"card":"{'  # how our own weights files begin, after 8 bytes that say how long that is


def is_ours(path: Path) -> bool:
    """Whether this program wrote a file, by what is in it; or it is empty, so that nothing can be lost."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return True
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content[8 : 8 + len(_NETWORK)] == _NETWORK or content.find(SIGN.encode()) >= 0


def require_ours(*paths: Path) -> None:
    """Refuse to write where a file is that this program did not write.

    Raises:
        UserError: naming the first such file.
    """
    for path in paths:
        if path.is_file() and not is_ours(path):
            raise UserError(
                f"{path} is there already, and mnist_flax did not write it: move it away, or choose another"
            )


def expanded(path: str) -> str:
    """A path as a user gave it, its `~` or `~user` replaced: no shell does that in `--workdir=~/runs`.

    Raises:
        UserError: it is an address or another system's path, of which a folder would be made here, or a home directory
            that is not known.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", path):
        raise UserError(f"{path} is an address, not a path: name a file or folder of this machine, or mount it as one")
    if os.name == "posix" and re.match(r"[A-Za-z]:|\\\\", path) and not os.path.lexists(path):
        raise UserError(f"{path} is a path of Windows: name it as it is called on this machine")
    try:
        found = os.path.expanduser(path)  # pathlib's would make ./digits "digits", which is a data set's name
    except ValueError:  # no user's name has such characters
        found = path
    if found.startswith("~"):
        raise UserError(f"{path} is in a home directory that is not known: write ./{path} for a folder of that name")
    return found


def local_path(path: str) -> Path:
    """The type of every option that takes a path: see `expanded`."""
    return Path(expanded(path))


def cache_path() -> Path | None:
    """Where compiled programs are kept: $XDG_CACHE_HOME/mnist_flax, else ~/.cache/mnist_flax; it need not exist."""
    try:
        return (Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mnist_flax").expanduser()
    except RuntimeError:  # the user, of a container perhaps, has no home directory
        return None


def cache_directory() -> Path | None:
    """The directory `cache_path`, made if need be; None if it is not writable."""
    directory = cache_path()
    try:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return directory if directory is not None and os.access(directory, os.W_OK) else None


def unused(path: Path) -> Path:
    """A hidden name beside a path, of the same suffix, that nobody has."""
    return path.with_name(f".{os.urandom(6).hex()}-{path.name}")


def code_digest() -> str:
    """SHA-256 of this package: its sources and the shipped weights."""
    files = sorted(p for p in Path(__file__).parent.rglob("*") if p.suffix in (".py", ".cc", ".safetensors"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = unused(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:  # which names the temporary file, or none
        raise OSError(error.errno, error.strerror, str(path)) from error
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
