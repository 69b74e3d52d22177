"""Where a folder keeps its images: `split/label/files`, as for TFDS's `ImageFolder`, or `label/files`."""

import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

from mnist_flax.data.geometry import NUM_CLASSES
from mnist_flax.errors import UserError

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}  # by their folders' names
MOST_NAMED = 3  # files in a message

Classes = dict[str, list[Path]]  # the image files of a split, by the name of their class


def find(root: Path, suffixes: Collection[str]) -> dict[str, Classes]:
    """A folder's image files by split; without splits all are "train". Hidden files do not count.

    An image that is out of place is an error: it would be missing from the training images without a word.

    Raises:
        UserError: something is out of place or missing; the message names it.
    """
    folders = [path for path in _listed(root) if path.is_dir()]
    splits = {"train": root}
    if {path.name for path in folders} & set(SPLITS):
        _refuse_images(root, suffixes)
        splits = _splits(root, folders)
    found = {split: _classes(path, suffixes) for split, path in splits.items()}
    names, train = sorted(found["train"]), splits["train"]
    if not 2 <= len(names) <= NUM_CLASSES:
        raise UserError(
            f"{train} must have a folder of images for each class, 2 to {NUM_CLASSES} of them: it has {len(names)}"
            + f" ({', '.join(names)})" * bool(names)
        )
    for split, classes in found.items():
        if unknown := sorted(set(classes) - set(names)):
            raise UserError(f"{splits[split] / unknown[0]} is of a class of which {train} has no folder")
    return found


def some(items: Sequence[object]) -> str:
    """The first of them, and how many more there are."""
    more = len(items) - MOST_NAMED
    return ", ".join(map(str, items[:MOST_NAMED])) + f" and {more} more" * (more > 0)


def _splits(root: Path, folders: list[Path]) -> dict[str, Path]:
    """The folders of splits, by split."""
    if others := [path for path in folders if path.name not in SPLITS]:
        raise UserError(f"{others[0]} is not a split: beside train there may be validation (or val) and test")
    splits = {SPLITS[path.name]: path for path in folders}
    if len(splits) < len(folders):
        raise UserError(f"{root} has both val and validation: move the images of one into the other")
    if "train" not in splits:
        raise UserError(f"{root} has a folder {folders[0].name} and no folder train")
    return splits


def _classes(split: Path, suffixes: Collection[str]) -> Classes:
    _refuse_images(split, suffixes)
    found: Classes = {}
    others: list[Path] = []
    for folder in filter(Path.is_dir, _listed(split)):
        inside = _listed(folder)
        if deeper := [path for path in inside if path.is_dir()]:
            raise UserError(f"{deeper[0]} is a folder inside a class's folder: move its images up into {folder}")
        found[folder.name] = [path for path in inside if path.suffix.lower() in suffixes]
        others += [path for path in inside if path.suffix.lower() not in suffixes]
        if not found[folder.name]:
            raise UserError(f"{folder} has no images ({', '.join(sorted(suffixes))})")
    if others:
        warnings.warn(f"left out, as their names are not those of images: {some(others)}", stacklevel=2)
    return found


def _refuse_images(folder: Path, suffixes: Collection[str]) -> None:
    """Refuse images that lie where only folders are looked at."""
    for path in _listed(folder):
        if path.is_file() and path.suffix.lower() in suffixes:
            raise UserError(f"{path} is in no class's folder: move it into one")


def _listed(folder: Path) -> list[Path]:
    """What is in a folder, by name, without what is hidden."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
