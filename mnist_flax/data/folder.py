"""Where a folder keeps its images: `split/label/files`, as for TFDS's `ImageFolder`, or `label/files`."""

import os
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

from mnist_flax.data.geometry import NUM_CLASSES
from mnist_flax.errors import UserError

# By their folders' names in lower case.
SPLITS: dict[str, str] = dict.fromkeys(("train", "training"), "train")
SPLITS |= dict.fromkeys(("test", "testing"), "test") | dict.fromkeys(("val", "valid", "validation"), "validation")
JUNK = {"__MACOSX", "@eaDir"}  # folders that macOS adds to a zip file, and a Synology disk to each folder
MOST_NAMED = 3  # files in a message

Classes = dict[str, list[Path]]  # the image files of a split, by the name of their class


def find(root: Path, suffixes: Collection[str]) -> dict[str, Classes]:
    """A folder's image files by split; without splits all are "train". What is hidden does not count.

    An image that is out of place is an error: it would be missing from the training images without a word.

    Raises:
        UserError: something is out of place or missing; the message names it.
    """
    root = _inner(root, suffixes)
    splits = {"train": root}
    if any(map(_split_of, folders_in(root))):
        _refuse_images(root, suffixes)
        splits = {split: _inner(path, suffixes) for split, path in _splits(root).items()}
    found = {split: _classes(path, suffixes) for split, path in splits.items()}
    names, train = sorted(found["train"]), splits["train"]
    if not 2 <= len(names) <= NUM_CLASSES:
        raise UserError(
            f"{train} must have a folder of images for each class, 2 to {NUM_CLASSES} of them: it has {len(names)}"
            + f" ({', '.join(names)})" * bool(names)
        )
    for split, classes in found.items():
        if not classes:
            raise UserError(f"{splits[split]} has no images: a split has a folder of them for each class")
        if unknown := sorted(set(classes) - set(names)):
            raise UserError(f"{splits[split] / unknown[0]} is of a class that has no folder in {train}")
    return found


def some(items: Sequence[object]) -> str:
    """The first of some items, and how many more there are."""
    more = len(items) - MOST_NAMED
    return ", ".join(map(str, items[:MOST_NAMED])) + f" and {more} more" * (more > 0)


def listed(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name, without hidden ones and junk."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in JUNK)


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder; only links are looked up, for there may be thousands of images."""
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries if entry.is_dir()}
    return [path for path in listed(folder) if path.name in names]


def _split_of(folder: Path) -> str | None:
    return SPLITS.get(folder.name.lower())


def _splits(root: Path) -> dict[str, Path]:
    """The folders of splits, by split."""
    splits: dict[str, Path] = {}
    for path in folders_in(root):
        split = _split_of(path)
        if split is None:
            raise UserError(f"{path} is not a split: beside train there may be validation (or val) and test")
        if split in splits:
            raise UserError(
                f"{root} has both {splits[split].name} and {path.name}: move the one that is not meant away"
            )
        splits[split] = path
    if "train" not in splits:
        raise UserError(f"{root} has a folder {', '.join(path.name for path in splits.values())} and no folder train")
    return splits


def _inner(folder: Path, suffixes: Collection[str]) -> Path:
    """The folder that has something beside one folder: a zip file is often unpacked into a folder of its own."""
    while len(inside := folders_in(folder)) == 1 and not any(map(_split_of, inside)):
        [only] = inside
        if _images(folder, suffixes) or (_images(only, suffixes) and not _is_like_a_data_set(only, suffixes)):
            break
        folder = only
    return folder


def _classes(split: Path, suffixes: Collection[str]) -> Classes:
    _refuse_images(split, suffixes)
    found: Classes = {}
    others: list[Path] = []
    for folder in folders_in(split):
        if deeper := folders_in(folder):
            raise UserError(
                f"{deeper[0]} is a folder inside {folder}, which must hold the images of a class"
                f"{_meant(split, suffixes)}"
            )
        found[folder.name] = _images(folder, suffixes)
        others += [path for path in listed(folder) if path.suffix.lower() not in suffixes]
        if not found[folder.name]:
            raise UserError(f"{folder} has no images ({', '.join(sorted(suffixes))})")
    if others:
        warnings.warn(f"left out, because their names are not those of images: {some(others)}", stacklevel=2)
    return found


def _meant(root: Path, suffixes: Collection[str]) -> str:
    """The end of a sentence: which folders below may be the data set that is meant, the nearest of them."""
    level = folders_in(root)
    for _ in range(3):
        if found := [folder for folder in level if _is_like_a_data_set(folder, suffixes)]:
            return f"; if a data set is deeper, name it by --dataset: {some(found)}"
        level = [inside for folder in level for inside in folders_in(folder)]
    return ""


def _is_like_a_data_set(folder: Path, suffixes: Collection[str]) -> bool:
    inside = folders_in(folder)
    return any(map(_split_of, inside)) or sum(bool(_images(path, suffixes)) for path in inside) > 1


def _images(folder: Path, suffixes: Collection[str]) -> list[Path]:
    return [path for path in listed(folder) if path.suffix.lower() in suffixes and not path.is_dir()]


def _refuse_images(folder: Path, suffixes: Collection[str]) -> None:
    """Refuse images that lie where only folders are looked at."""
    if images := _images(folder, suffixes):
        raise UserError(
            f"{images[0]} is in no class's folder: move it into one, or if {folder} is one, name the folder above it "
            "by --dataset"
        )
