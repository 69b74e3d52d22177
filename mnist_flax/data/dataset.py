"""A data set split into training, validation and test images."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from mnist_flax.data.digits import load_digits
from mnist_flax.data.examples import Examples, Normalization, stratified_choice
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
    num_train = len(train.labels)
    val_size = num_train // 12 if val_size is None else val_size
    if val_size == 0:
        return Dataset(name, class_names, train, test, test, "test")
    if val_size >= num_train:
        raise UserError(f"--val-size {val_size} leaves none of {name}'s {num_train} training images to train on")
    held_out = stratified_choice(train.labels, val_size, seed=0)
    validation = Examples(train.images[held_out], train.labels[held_out])
    rest = Examples(train.images[~held_out], train.labels[~held_out])
    return Dataset(name, class_names, rest, validation, test, "validation")
