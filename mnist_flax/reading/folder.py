"""Folders of photographs as data sets: each image shows one digit, and is drawn as `predict` draws it."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from mnist_flax import data
from mnist_flax.config import NAMES, require_dataset
from mnist_flax.data import Dataset, Examples
from mnist_flax.data.dataset import hold_out
from mnist_flax.data.examples import split_off
from mnist_flax.data.folder import Classes, find, some
from mnist_flax.errors import UserError
from mnist_flax.inference import classifier
from mnist_flax.reading.answers import Answer, answer, hint, inputs
from mnist_flax.reading.image import SUFFIXES

Drawings = dict[Path, UInt8[np.ndarray, "28 28"]]


def load(name: str, data_dir: Path | None, val_size: int | None) -> Dataset:
    """A data set: one that `data.load` knows by its name, or the images in a folder.

    Of a folder without a test split a fifth of the images is that, the classes in proportion; without a validation
    split, `val_size` of the others are held out as of any data set.

    Raises:
        UserError: something in the folder cannot be used; the message names it.
    """
    if name in NAMES:
        return data.load(name, data_dir, val_size)
    require_dataset(name)
    root = Path(name)
    splits = find(root, SUFFIXES)
    class_names = tuple(sorted(splits["train"]))
    drawings = _draw([path for classes in splits.values() for files in classes.values() for path in files])
    examples = {split: _examples(classes, class_names, drawings) for split, classes in splits.items()}
    # The folder ./digits has another name than the data set.
    dataset = _divided(f"./{root}" if str(root) in NAMES else str(root), class_names, examples, val_size)
    for label, class_name in enumerate(class_names):
        if label not in dataset.train.labels:
            raise UserError(f"{root} has too few images of {class_name}: none is left to train on")
    return dataset


def _divided(name: str, class_names: tuple[str, ...], examples: dict[str, Examples], val_size: int | None) -> Dataset:
    """The data set, with the splits that the folder has and those that it lacks."""
    train, validation = examples["train"], examples.get("validation")
    if "test" in examples:
        test = examples["test"]
    else:
        train, test = split_off(train, max(1, len(train.labels) // 5))
    if validation is None:
        return hold_out(name, class_names, train, test, val_size)
    if val_size == 0:
        joined = Examples(*map(np.concatenate, zip(train, validation, strict=True)))
        return Dataset(name, class_names, joined, test, test, "test")
    if val_size not in (None, len(validation.labels)):
        raise UserError(f"--val-size {val_size}: {name} has a validation split, of {len(validation.labels)} images")
    return Dataset(name, class_names, train, validation, test, "validation")


def _examples(classes: Classes, class_names: tuple[str, ...], drawings: Drawings) -> Examples:
    pairs = [(path, label) for label, name in enumerate(class_names) for path in classes.get(name, [])]
    return Examples(np.stack([drawings[path] for path, _ in pairs]), np.array([label for _, label in pairs], np.int32))


def _draw(paths: list[Path]) -> Drawings:
    """What a network is to see of each image.

    The shipped network judges what in an image is the digit, whichever network is trained: the same files always give
    the same data set. A digit that it does not recognise is worth training on, and its best guess is taken.

    Raises:
        UserError: some images cannot be used; the message names them.
    """
    network = classifier.load()
    drawings: Drawings = {}
    unusable, unrecognised = [], []
    for path in tqdm(paths, desc="Reading images", unit=" images", leave=False, disable=None):
        found = answer(network, path)
        if fault := _fault(found):
            unusable.append(f"{path} ({fault})")
            continue
        assert found.page is not None
        drawings[path] = inputs(found.page)[0]
        if not found.page.digits:
            unrecognised.append(path)
    if unusable:
        raise UserError(f"cannot be trained on: {some(unusable)}; replace or remove {_them(unusable)}")
    if unrecognised:
        warnings.warn(
            f"of {len(paths)} images, the shipped network recognises no digit in {some(unrecognised)}; the likeliest "
            f"part of {_them(unrecognised)} is used: `predict --show-input` shows which",
            stacklevel=2,
        )
    return drawings


def _fault(found: Answer) -> str:
    """Why an image cannot be used; empty if it can."""
    if found.page is None or found.picture is None:
        return found.result["error"]
    if len(found.page.digits) > 1:
        return f"several digits are found in it, {' '.join(digit['digit'] for digit in found.result['digits'])}"
    return "" if found.page.best else f"no digit is found in it: {hint(found.page, found.picture)}"


def _them(items: list[object]) -> str:
    return "it" if len(items) == 1 else "them"
