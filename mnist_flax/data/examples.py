"""Images with their labels, how they are normalised, and a fixed choice among them."""

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
