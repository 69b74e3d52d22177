"""Data sets by name, from files of arrays, or from folders of images, which are drawn as `predict` draws them."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from mnist_flax import data
from mnist_flax.config import NAMES, located, require_dataset
from mnist_flax.data import Dataset, Examples, arrays
from mnist_flax.data.dataset import divided
from mnist_flax.data.folder import Classes, find, some
from mnist_flax.errors import UserError
from mnist_flax.reading.drawings import drawings
from mnist_flax.reading.image import SUFFIXES

Pixels = dict[Path, UInt8[np.ndarray, "28 28"]]


def load(name: str, data_dir: Path | None, val_size: int | None) -> Dataset:
    """Load a data set: by a name that `data.load` knows, from a file of arrays, or from a folder of them or of images.

    Without a test split a fifth of the images is that; without a validation split, `val_size` of the others are held
    out as of any data set.

    Raises:
        UserError: something in the file or folder cannot be used; the message names it.
    """
    if name in NAMES:
        return data.load(name, data_dir, val_size)
    require_dataset(name)
    class_names, examples = arrays.read(Path(name)) if arrays.is_there(Path(name)) else _images(Path(name))
    return divided(located(name), class_names, examples, val_size)


def _images(root: Path) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The class names and splits of a folder of images."""
    splits = find(root, SUFFIXES)
    class_names = tuple(sorted(splits["train"]))
    paths = [path for classes in splits.values() for files in classes.values() for path in files]
    pixels = _pixels(root, paths)
    return class_names, {split: _examples(classes, class_names, pixels) for split, classes in splits.items()}


def _examples(classes: Classes, class_names: tuple[str, ...], pixels: Pixels) -> Examples:
    pairs = [(path, label) for label, name in enumerate(class_names) for path in classes.get(name, [])]
    return Examples(np.stack([pixels[path] for path, _ in pairs]), np.array([label for _, label in pairs], np.int32))


def _pixels(root: Path, paths: list[Path]) -> Pixels:
    """Each image as a network's input.

    Raises:
        UserError: some images cannot be used; the message names them.
    """
    drawn = dict(zip(paths, drawings(root, paths), strict=True))
    if unusable := [f"{path} ({drawing.fault})" for path, drawing in drawn.items() if drawing.fault]:
        raise UserError(f"cannot be trained on: {some(unusable)}; replace or remove {_them(unusable)}")
    if unrecognised := [path for path, drawing in drawn.items() if not drawing.is_recognised]:
        warnings.warn(
            f"of {len(paths)} images, the shipped network recognises no digit in {some(unrecognised)}; the likeliest "
            f"part of {_them(unrecognised)} is used: `predict --show-input` shows which",
            stacklevel=2,
        )
    return {path: drawing.pixels for path, drawing in drawn.items()}


def _them(items: Sequence[object]) -> str:
    return "it" if len(items) == 1 else "them"
