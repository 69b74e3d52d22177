"""The files of checkpoints on disk: which folder is one, which files in it are ours, and how those are removed.

A checkpoint is finished when its folder has a number for a name. Its `SHA256SUMS`, written when it is finished, lists
what is ours in it, and is compared before it is used. What somebody else put into the folder, or beside it, has no sum
there, does not matter, and is never deleted or moved.
"""

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from mnist_flax.errors import UserError
from mnist_flax.files import SIGN, is_ours, write_text

SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it
# File managers put these into any folder, and change them at will; they go with the checkpoint.
DROPPINGS = {".ds_store", "desktop.ini", "thumbs.db"}
DELETED = "SHA256SUMS.deleted"  # what SHA256SUMS becomes while what it lists is deleted
_METADATA = "metadata/metadata"  # of every checkpoint of ours: a JSON object
WRITING = ".being-written-by-mnist_flax"  # holds our sign and the name of the unfinished checkpoint, if there is one
_STEP, _UNFINISHED = re.compile("0|[1-9][0-9]*"), re.compile("[0-9]+[.]unfinished-([0-9]+)([.]orbax-checkpoint-tmp)?")
# The files that Orbax and TensorStore write, and what our list is while it is written.
_ORBAX = re.compile(
    r"(_CHECKPOINT_METADATA|_METADATA|_sharding|metadata|commit_success[.]txt|manifest[.]ocdbt|[0-9a-f]{32}"
    r"|process_[0-9]+)([.]__lock)?"
)
_UNWRITTEN = re.compile(f"[.][0-9a-f]{{12}}-{SUMS}")
_KEYS = {"histories", "class_names"}  # the metadata of `last`, of `best`
Ours = Callable[[dict[str, Any]], bool]  # whether a checkpoint is of this run, by its metadata


def numbered(directory: Path) -> list[Path]:
    """The folders that have a number for a name, as Orbax writes it; other files and folders are somebody else's."""
    found = [path for path in directory.glob("*") if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def condition(checkpoint: Path, ours: Ours = lambda metadata: True) -> str:
    """The condition of a folder as a checkpoint of the run whose checkpoints `ours` recognises.

    "sound"; "damaged"; "unlisted", if its SHA256SUMS is lost; "deleted", if that was begun; or "foreign".
    """
    metadata = metadata_of(checkpoint)
    known = metadata is not None and ours(metadata)
    if (checkpoint / SUMS).is_file():
        by_name = metadata is None and _METADATA in listed(checkpoint / SUMS)
        return ("sound" if is_sound(checkpoint) else "damaged") if known or by_name else "foreign"
    if _METADATA in listed(checkpoint / DELETED):
        return "deleted"
    # Other programs' checkpoints may have metadata too, but not these.
    return "unlisted" if metadata is not None and known and metadata.keys() & _KEYS else "foreign"


def has_sums(checkpoint: Path, ours: Ours) -> bool:
    """Whether a folder is a checkpoint of the run, sound or not."""
    metadata = metadata_of(checkpoint)
    return metadata is not None and ours(metadata) and (checkpoint / SUMS).is_file()


def metadata_of(checkpoint: Path) -> dict[str, Any] | None:
    """The JSON object in a checkpoint; None if there is none that can be read."""
    try:
        metadata = json.loads((checkpoint / _METADATA).read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return metadata if isinstance(metadata, dict) else None


def foreign_files(checkpoint: Path) -> list[Path]:
    """The files in a checkpoint's folder that somebody else put there."""
    own = set(_own(checkpoint))
    return [path for path in checkpoint.rglob("*") if not path.is_dir() and path not in own]


def delete(checkpoint: Path) -> None:
    """Delete the files of a checkpoint that are as its sums say, and the folders that are empty then.

    If that is interrupted, the next call goes on with it.
    """
    sums, deleted = checkpoint / SUMS, checkpoint / DELETED
    if sums.exists():
        sums.replace(deleted)
    digests = {checkpoint / name: digest for name, digest in listed(deleted).items()}
    for path in _own(checkpoint):
        if path != deleted and digests.get(path) in (None, digest_of(path)):
            path.unlink()
    deleted.unlink(missing_ok=True)
    _remove_empty(checkpoint)


def set_aside(checkpoint: Path) -> Path:
    """Move the files of a damaged checkpoint to `damaged-STEP` beside it, or `damaged-STEP-2` …; returns which."""
    names = (f"damaged-{checkpoint.name}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 10_000))))
    aside = next(path for path in map(checkpoint.with_name, names) if not path.exists())
    for path in _own(checkpoint):
        target = aside / path.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    _remove_empty(checkpoint)
    return aside


@contextmanager
def announced(unfinished: Path) -> Iterator[None]:
    """Keep a note on disk, while a checkpoint is written into a folder, that the folder is ours."""
    write_text(unfinished.with_name(WRITING), f"{SIGN}\n{unfinished.name}\n")
    yield
    unfinished.with_name(WRITING).unlink()


def delete_unfinished(directory: Path) -> None:
    """Delete what Orbax wrote into the folder of a checkpoint that was never finished."""
    announcement = directory / WRITING
    if not announcement.is_file() or not is_ours(announcement):
        return
    sign, _, name = announcement.read_text().partition("\n")
    for path in (directory / name.strip(), directory / f"{name.strip()}.orbax-checkpoint-tmp"):
        if sign == SIGN and _UNFINISHED.fullmatch(path.name) and path.is_dir():
            for file in _own(path):
                file.unlink()
            _remove_empty(path)
    announcement.unlink()


def unused_suffix(directory: Path) -> str:
    """A suffix for the names of a run's unfinished checkpoints that no file in the directory has yet."""
    found = (_UNFINISHED.fullmatch(path.name) for path in directory.glob("*.unfinished-*"))
    return f".unfinished-{1 + max((int(match[1]) for match in found if match), default=0)}"


def in_the_way(directory: Path, after: int, ours: Ours = lambda metadata: True) -> Iterator[Path]:
    """Files that have the name of a checkpoint which the run will write after step `after`, and are not its own."""
    announcement = directory / WRITING
    if announcement.exists() and not (announcement.is_file() and is_ours(announcement)):
        yield announcement
    for path in directory.glob("*"):
        if _STEP.fullmatch(path.name) and int(path.name) > after:
            empty = path.is_dir() and not any(path.iterdir())
            if not empty and (condition(path, ours) == "foreign" or foreign_files(path)):
                yield path


def _own(checkpoint: Path) -> list[Path]:
    """The files in a checkpoint's folder that are ours: what its sums list, or if it has none, what Orbax writes."""
    lists = [checkpoint / name for name in (SUMS, DELETED) if (checkpoint / name).is_file()]
    names = set(itertools.chain.from_iterable(map(listed, lists)))
    ours = {*lists, *(checkpoint / name for name in names)}

    def is_own(path: Path) -> bool:
        by_name = _METADATA not in names and _ORBAX.fullmatch(path.name)
        also = path.name.lower() in DROPPINGS or _UNWRITTEN.fullmatch(path.name)
        return path in ours or bool(by_name or also)

    return [path for path in checkpoint.rglob("*") if path.is_file() and not path.is_symlink() and is_own(path)]


def _remove_empty(folder: Path) -> None:
    """Remove those of a folder and the folders in it that are empty."""
    inside = sorted((path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
    for path in (*inside, folder):
        if not any(path.iterdir()):
            path.rmdir()


def checksums(checkpoint: Path) -> str:
    """The content of a checkpoint's `SHA256SUMS`: a line `digest  path` for each file."""
    files = sorted(path for path in checkpoint.rglob("[!.]*") if path.is_file() and path.name != SUMS)
    return "".join(
        f"{digest_of(path)}  {path.relative_to(checkpoint).as_posix()}\n"
        for path in files
        if path.name.lower() not in DROPPINGS
    )


def listed(sums: Path) -> dict[str, str]:
    """The digests that a file of sums lists, by the names of files. A name that leads out of the folder is left out."""
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


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn any exception into one sentence: Orbax and TensorStore report a full disk in many ways, with pages of log.

    Raises:
        UserError: in place of any exception.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        level = logging.CRITICAL  # Orbax's threads have yet to log it
        raise UserError(f"{what}: {_reason(error)}") from error
    finally:
        logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Why something failed, in a few words: the system's, if it is the system that refused."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "tree structures do not match" in text:
        return "another version of mnist_flax wrote it; use that one, or train anew with --overwrite"
    # TensorStore's errors are no OSError, but end in the number of one.
    if number := getattr(error, "errno", None) or next(iter(re.findall(r"os_error_code='(\d+)'", text)), None):
        return os.strerror(int(number))
    return text[:300]
