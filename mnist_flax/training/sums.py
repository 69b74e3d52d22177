"""The SHA-256 sums that lie beside a checkpoint's files: written when it is finished, and compared before it is used.

Files that have no sum do not matter: programs that synchronise folders, and file managers, add files of their own.
"""

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
_NOT_OURS = {"desktop.ini", "thumbs.db"}  # file managers put these into any folder, and change them at will


def checksums(checkpoint: Path) -> str:
    """The content of a checkpoint's `SHA256SUMS`: a line `digest  path` for each file."""
    files = sorted(path for path in checkpoint.rglob("[!.]*") if path.is_file() and path.name != SUMS)
    return "".join(
        f"{_digest(path)}  {path.relative_to(checkpoint).as_posix()}\n"
        for path in files
        if path.name.lower() not in _NOT_OURS
    )


def is_sound(checkpoint: Path) -> bool:
    """Whether every file that its `SHA256SUMS` lists is there and as listed."""
    # Editors and version control may give the list CRLF line ends or a byte order mark.
    text = (checkpoint / SUMS).read_text("utf-8-sig", errors="replace")
    listed = [line.partition("  ") for line in text.splitlines()]
    return text.endswith("\n") and all(_digest(checkpoint / name) == digest for digest, _, name in listed)


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
