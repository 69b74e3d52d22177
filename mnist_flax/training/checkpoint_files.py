"""The files of checkpoints on disk: which folder is one, which files in it are ours, and how those are removed.

A checkpoint is finished when its folder has a number for a name. Nothing that somebody else put into it, or beside it,
is ever deleted or moved: `SHA256SUMS` lists what is ours.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist_flax.files import SIGN, is_ours, write_text
from mnist_flax.training.sums import DROPPINGS, SUMS, digest_of, is_sound, listed

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
    """What a folder is to the run that tells its checkpoints by `ours`.

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
    """What somebody else put into the folder of a checkpoint of ours."""
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
    """Have it on disk that a folder is ours while a checkpoint is written there."""
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
    """What a run adds to a step for the names of its unfinished checkpoints, so that nobody else has them."""
    found = (_UNFINISHED.fullmatch(path.name) for path in directory.glob("*.unfinished-*"))
    return f".unfinished-{1 + max((int(match[1]) for match in found if match), default=0)}"


def in_the_way(directory: Path, after: int, ours: Ours = lambda metadata: True) -> Iterator[Path]:
    """What has a name that a run needs for checkpoints later than step `after`, but is no checkpoint of it."""
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
    """Remove a folder and those in it, as far as they are empty."""
    inside = sorted((path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
    for path in (*inside, folder):
        if not any(path.iterdir()):
            path.rmdir()
