"""The SHA-256 sums that lie beside a checkpoint's files: written when it is finished, and compared before it is used.

They are also the list of what is ours in a checkpoint's folder. Files that have no sum do not matter, and stay:
programs that synchronise folders, and people, add files of their own.
"""

import hashlib
from pathlib import Path, PurePosixPath

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
# File managers put these into any folder, and change them at will; they go with the checkpoint.
DROPPINGS = {".ds_store", "desktop.ini", "thumbs.db"}


def checksums(checkpoint: Path) -> str:
    """The content of a checkpoint's `SHA256SUMS`: a line `digest  path` for each file."""
    files = sorted(path for path in checkpoint.rglob("[!.]*") if path.is_file() and path.name != SUMS)
    return "".join(
        f"{digest_of(path)}  {path.relative_to(checkpoint).as_posix()}\n"
        for path in files
        if path.name.lower() not in DROPPINGS
    )


def listed(sums: Path) -> dict[str, str]:
    """What a file of sums lists: digests by the names of files. A name that leads out of the folder is left out."""
    names = {name: digest for digest, name in _lines(sums) if name} if sums.is_file() else {}
    inside = [name for name in names if not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts]
    return {name: names[name] for name in inside}


def is_sound(checkpoint: Path) -> bool:
    """Whether every file that its `SHA256SUMS` lists is there and as listed."""
    sums = checkpoint / SUMS
    ended = sums.read_bytes().endswith(b"\n")
    return ended and all(digest_of(checkpoint / name) == digest for digest, name in _lines(sums))


def _lines(sums: Path) -> list[tuple[str, str]]:
    # Editors and version control may give the list CRLF line ends or a byte order mark.
    lines = sums.read_text("utf-8-sig", errors="replace").splitlines()
    return [(digest, name) for digest, _, name in (line.partition("  ") for line in lines)]


def digest_of(path: Path) -> str | None:
    """The SHA-256 sum of a file; None if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
