"""A data set split into training, validation and test images."""

import dataclasses
import functools
import hashlib
import math
import warnings
from pathlib import Path

import numpy as np

from mnist_flax.data.digits import load_digits
from mnist_flax.data.examples import Examples, Normalization, split_off
from mnist_flax.data.tfds_files import DataUnavailableError, load_tfds
from mnist_flax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set split three ways.

    Attributes:
        selection_split: "validation", or "test" where nothing is held out and `validation` is the test set itself.
        note: why this is not the data set that was asked for, if it is not.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    selection_split: str
    note: str | None = None

    @property
    def normalization(self) -> Normalization:
        """Moments of the training images, from exact integer sums."""
        images = self.train.images
        total = int(images.sum(dtype=np.uint64))
        squares = int(np.square(images, dtype=np.uint16).sum(dtype=np.uint64))
        mean = total / (255 * images.size)
        variance = squares / (255**2 * images.size) - mean**2
        return Normalization(mean, math.sqrt(max(variance, 0.0)) or 1.0)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all images, labels and class names: those of a folder may have changed when a run resumes."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for array in (*self.train, *self.validation, *self.test):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def relabelled(self, class_names: tuple[str, ...]) -> "Dataset":
        """The same with the labels of a network that has these classes.

        Raises:
            UserError: one of the data set's classes is not among them.
        """
        if class_names == self.class_names:
            return self
        if unknown := [name for name in self.class_names if name not in class_names]:
            raise UserError(f"{self.name} has a class {unknown[0]}, and the network only {', '.join(class_names)}")
        labels = np.array([class_names.index(name) for name in self.class_names], np.int32)
        splits = {split: getattr(self, split) for split in ("train", "validation", "test")}
        splits = {split: examples._replace(labels=labels[examples.labels]) for split, examples in splits.items()}
        return dataclasses.replace(self, class_names=class_names, **splits)


def load(name: str, data_dir: Path | None, val_size: int | None) -> Dataset:
    """Load a data set and hold out `val_size` of its training images (default one twelfth; 0: select on test).

    The held-out images are the same for every seed: networks of all seeds can be compared, and joined to ensembles, on
    images that none of them was trained on.

    "auto" is MNIST, or `digits` with a note if MNIST is neither on disk nor on the network. MNIST files that are on
    disk but damaged are an error.

    Raises:
        DataUnavailableError: the data set is not on disk and cannot be downloaded.
        UserError: a file is damaged, or `val_size` leaves nothing to train on.
    """
    if name == "auto":
        try:
            return load("mnist", data_dir, val_size)
        except DataUnavailableError as error:
            return dataclasses.replace(load("digits", data_dir, val_size), note=error.reason)
    class_names, train, test = load_digits() if name == "digits" else load_tfds(name, data_dir)
    return hold_out(name, class_names, train, test, val_size)


def hold_out(name: str, class_names: tuple[str, ...], train: Examples, test: Examples, val_size: int | None) -> Dataset:
    """A data set whose validation images are `val_size` of its training images, as `load` says.

    Raises:
        UserError: that leaves nothing to train on.
    """
    num_train = len(train.labels)
    val_size = max(1, num_train // 12) if val_size is None else val_size
    if val_size == 0:
        return Dataset(name, class_names, train, test, test, "test")
    if val_size >= num_train:
        raise UserError(f"--val-size {val_size} leaves none of {name}'s {num_train} training images to train on")
    return Dataset(name, class_names, *split_off(train, val_size), test, "validation")


def divided(name: str, class_names: tuple[str, ...], examples: dict[str, Examples], val_size: int | None) -> Dataset:
    """A data set of a user's own splits. Where there is no test split, a fifth of the images is that.

    The classes are in proportion, and the images always the same ones. A validation split is what is held out.

    Raises:
        UserError: `val_size` is not that of the validation split, or leaves nothing of a class to train on.
    """
    train, validation = examples["train"], examples.get("validation")
    if "test" in examples:
        test = examples["test"]
    else:
        train, test = split_off(train, max(1, len(train.labels) // 5))
        warnings.warn(
            f"{name} has no test split: a fifth of its images, always the same {len(test.labels):,}, is the test set",
            stacklevel=2,
        )
    if validation is None:
        dataset = hold_out(name, class_names, train, test, val_size)
    elif val_size == 0:
        joined = Examples(*map(np.concatenate, zip(train, validation, strict=True)))
        dataset = Dataset(name, class_names, joined, test, test, "test")
    elif val_size in (None, len(validation.labels)):
        dataset = Dataset(name, class_names, train, validation, test, "validation")
    else:
        raise UserError(f"--val-size {val_size}: {name} has a validation split, of {len(validation.labels)} images")
    for label, class_name in enumerate(class_names):
        if label not in dataset.train.labels:
            raise UserError(f"{name} has too few images of {class_name}: none is left to train on")
    return dataset
