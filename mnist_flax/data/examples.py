"""Images with their labels, how they are normalised, and a fixed choice among them."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8


class Examples(NamedTuple):
    """Images and labels: NumPy arrays here, device arrays in a training program. Label -1 marks padding."""

    images: UInt8[Any, "n 28 28"]
    labels: Int[Any, " n"]


class Normalization(NamedTuple):
    """Mean and standard deviation of a training set's pixels, on the scale 0..1."""

    mean: float
    std: float

    def __call__(self, images: Any) -> Any:
        """`(..., 28, 28)` images in 0..255 as network input `(..., 28, 28, 1)`; integers become float32."""
        if np.issubdtype(images.dtype, np.integer):
            images = images.astype(np.float32)
        return (images * (1 / (255 * self.std)) - self.mean / self.std)[..., None]


LANES = 128  # a TPU's registers are so many numbers wide


def in_rows(examples: Examples) -> UInt8[Any, "n length"]:
    """Each image a row of its pixels, then its label, filled up with zeros to a multiple of `LANES`; or their shape.

    A TPU keeps an array of small images, or of rows that do not fill its lanes, with the images along the lanes. To
    pick some of them it then has to read, or to copy, all of them. A label of its own would be picked alone, one number
    at a time.
    """
    images, (num_images, *sides) = examples.images, examples.images.shape
    length = -(-(math.prod(sides) + 1) // LANES) * LANES
    if not isinstance(images, np.ndarray):  # but a jax.ShapeDtypeStruct
        return type(images)((num_images, length), images.dtype)
    rows = np.concatenate([images.reshape(num_images, -1), examples.labels[:, None].astype(np.uint8)], axis=1)
    return np.pad(rows, ((0, 0), (0, length - rows.shape[1])))


def from_rows(rows: UInt8[Any, "n length"], side: int) -> tuple[UInt8[Any, "n side side"], Int[Any, " n"]]:
    """The images and the labels in such rows."""
    return rows[:, : side**2].reshape(-1, side, side), rows[:, side**2].astype(np.int32)


def stratified_choice(labels: Int[np.ndarray, " n"], size: int, seed: int) -> Shaped[np.ndarray, " n"]:
    """A boolean mask of `size` random examples with the classes in proportion (largest remainders), fixed by `seed`."""
    # RandomState, because NumPy promises that its stream never changes; default_rng's may (NEP 19).
    rng = np.random.RandomState(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = size * counts / len(labels)
    quotas = np.floor(shares).astype(int)
    by_remainder = np.argsort(quotas - shares, kind="stable")
    quotas[by_remainder[: size - quotas.sum()]] += 1
    chosen = np.zeros(len(labels), bool)
    for class_, quota in zip(classes, quotas, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == class_))[:quota]] = True
    return chosen


def split_off(examples: Examples, size: int) -> tuple[Examples, Examples]:
    """Split off `size` examples with the classes in proportion, always the same ones: the rest, and these."""
    chosen = stratified_choice(examples.labels, size, seed=0)
    rest, some = (Examples(examples.images[mask], examples.labels[mask]) for mask in (~chosen, chosen))
    return rest, some
