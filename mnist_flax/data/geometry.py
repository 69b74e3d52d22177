"""MNIST's geometry: a digit scaled to fit 20×20 pixels, its centre of mass in the middle of 28×28."""

from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

SIDE = 28
NUM_CLASSES = 10


def fit_to_mnist(ink: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"]:
    """Draw ink in 0..1 as MNIST does: scaled to fit 20×20, centred by mass in 28×28, uint8.

    http://yann.lecun.com/exdb/mnist/
    """
    from scipy import ndimage

    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    enlarged = ndimage.zoom(ink, 20 / max(ink.shape), order=1, mode="grid-constant", grid_mode=True)
    return centre_by_mass(np.asarray(enlarged))


def centre_by_mass(ink: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"]:
    """Put ink in 0..1 of at most 28×28 pixels on a 28×28 canvas, its centre of mass as near the middle as it fits."""
    from scipy import ndimage

    centre: Any = ndimage.center_of_mass(ink)
    corners = (round(SIDE / 2 - 0.5 - mass) for mass in centre)
    top, left = (min(max(corner, 0), SIDE - size) for corner, size in zip(corners, ink.shape, strict=True))
    canvas = np.zeros((SIDE, SIDE))
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
