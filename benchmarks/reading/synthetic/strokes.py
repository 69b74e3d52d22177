"""Digits to draw: a data set's images enlarged to strokes of a pen, of any size and width."""

import functools
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from mnist_flax import data
from mnist_flax.data.geometry import fit_to_mnist

Cover = Float[np.ndarray, "h w"]  # the share of each pixel that is covered with ink
Digit = tuple[UInt8[np.ndarray, "28 28"], str]  # an image and its label
FINE = 4  # strokes are thinned at this multiple of MNIST's resolution


def thinned(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The middle lines of strokes (Zhang & Suen, 1984, doi:10.1145/357994.358023)."""
    mask = np.pad(mask, 1)
    before = None
    while before is None or (mask != before).any():
        before = mask
        for first in (True, False):
            north, east, south, west = (np.roll(mask, *move) for move in ((1, 0), (-1, 1), (-1, 0), (1, 1)))
            north_east, south_east = np.roll(north, -1, 1), np.roll(south, -1, 1)
            south_west, north_west = np.roll(south, 1, 1), np.roll(north, 1, 1)
            ring = np.stack([north, north_east, east, south_east, south, south_west, west, north_west])
            neighbours, ends = ring.sum(0), (~ring & np.roll(ring, -1, 0)).sum(0)
            thin = (
                ~(north & east & south) & ~(east & south & west)
                if first
                else (~(north & east & west) & ~(north & south & west))
            )
            mask = mask & ~((neighbours >= 2) & (neighbours <= 6) & (ends == 1) & thin)
    return mask[1:-1, 1:-1]


def strokes(image: UInt8[np.ndarray, "28 28"], size: float, width: float | None = None) -> Cover:
    """A digit drawn so that MNIST's 20 pixels become `size`.

    Args:
        image: light strokes on black.
        size: in pixels.
        width: the pen's, as a share of `size`; None: each stroke is as wide as in the image.
    """
    rows, columns = np.flatnonzero(image.max(1) > 127), np.flatnonzero(image.max(0) > 127)
    margin = 2 if width is None else 2 + int(10 * width)
    ink = np.pad(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / 255, margin)
    mask = ndimage.gaussian_filter(ndimage.zoom(ink, FINE, order=3, grid_mode=True, mode="nearest"), FINE / 2.5) > 0.45
    if width is None:
        inside = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    else:
        inside = (
            20 * FINE * width / 2 + 0.5 - ndimage.distance_transform_edt(~thinned(mask))
        )  # 0.5: half a pixel's own width
    smooth = ndimage.gaussian_filter(inside, 1.0 if width is None else 0.6)
    scale = size / (20 * FINE)
    cover = np.clip(scale * ndimage.zoom(smooth, scale, order=1, grid_mode=True, mode="nearest") + 0.5, 0, 1)
    return cropped(ndimage.gaussian_filter(cover, 0.5))


def cropped(cover: Cover) -> Cover:
    """The part with ink."""
    rows, columns = np.flatnonzero(cover.max(1) > 0.1), np.flatnonzero(cover.max(0) > 0.1)
    return cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class Digits:
    """Deals a split's digits at random, each class once in ten.

    With `clear`, only images that are clearly of their class: the digit and its drawing with a thin pen are most like
    training images of its class, and the drawing has the loops of its class. No network is asked, so that all are
    measured on the same pictures.
    """

    NEIGHBOURS = 5
    LOOPS: ClassVar = {"6": 1, "8": 2, "9": 1}  # at least; thinning loses those that the pen had filled

    def __init__(self, dataset: data.Dataset, split: str = "test", *, clear: bool = False) -> None:
        self.names = dataset.class_names
        self.images, self.labels = getattr(dataset, split)
        self.clear = clear
        self._known = dataset.train.images[:5_000].reshape(-1, 784).astype(np.float32)
        self._squares = np.square(self._known).sum(1)
        self._known_labels = dataset.train.labels[:5_000]
        self._deck: list[int] = []
        self._is_clear = functools.cache(self._look)

    def deal(self, rng: np.random.RandomState) -> Digit:
        """A digit of the next class."""
        if not self._deck:
            self._deck = rng.permutation(len(self.names)).tolist()
        return self._choose(rng, self._deck.pop())

    def draw(self, rng: np.random.RandomState) -> Digit:
        """A digit of any class."""
        return self._choose(rng, rng.randint(len(self.names)))

    def shuffle(self) -> None:
        """Forget which classes were dealt, so that a kind's pictures do not depend on the kinds before it."""
        self._deck = []

    def _choose(self, rng: np.random.RandomState, label: int) -> Digit:
        while True:
            index = int(rng.choice(np.flatnonzero(self.labels == label)))
            if not self.clear or self._is_clear(index):
                return self.images[index], self.names[label]

    def _look(self, index: int) -> bool:
        label, drawing = self.labels[index], strokes(self.images[index], 20 * FINE, 0.1)
        loops = ndimage.label(np.pad(drawing, 1) < 0.5)[1] - 1
        if loops < self.LOOPS.get(self.names[label], 0):
            return False
        return all(self._is_like(label, image) for image in (self.images[index], fit_to_mnist(drawing)))

    def _is_like(self, label: int, image: UInt8[np.ndarray, "28 28"]) -> bool:
        distances = self._squares - 2 * self._known @ image.reshape(784).astype(np.float32)
        return bool((self._known_labels[np.argpartition(distances, self.NEIGHBOURS)[: self.NEIGHBOURS]] == label).all())
