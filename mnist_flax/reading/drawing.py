"""Ink drawn in MNIST's geometry: within 20×20 pixels, its centre of mass in the middle of 28×28."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy import ndimage

from mnist_flax.data.geometry import SIDE, centre_by_mass

SMALL = 80  # larger drawings are first reduced to this: four times the size of MNIST's digits
FAINT = 0.1  # ink that does not count for the size of a digit


def draw(ink: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"]:
    """Draw ink in 0..1, cropped to its bounding box, as MNIST would.

    MNIST's pen is two to three pixels wide. A thinner one is made as wide, or a hairline would all but vanish.
    """
    if max(ink.shape) > SMALL:
        ink = _resized(ink, SMALL)
    unit = max(ink.shape) / 20  # one pixel of the result
    solid = np.pad(ink > 0.5, 1)
    if solid.any():
        depth: Any = ndimage.distance_transform_edt(solid)
        pen = 2 * float(np.quantile(depth[solid], 0.9))
        grow = round((2 * unit - pen) / 2)
        if grow > 0:
            ink = ndimage.grey_dilation(np.pad(ink, grow), size=(2 * grow + 1, 2 * grow + 1))
    small = _resized(ink, 20)
    return centre_by_mass(small / max(float(small.max()), 1e-6))


def as_it_is(grey: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"] | None:
    """A picture that is in MNIST's geometry already, as light ink on a dark ground; None for other pictures."""
    if grey.shape != (SIDE, SIDE):
        return None
    ink = grey if np.median(grey) < 0.5 else 1 - grey
    rows, columns = np.nonzero(ink > FAINT)
    # All of MNIST's images are as large, and as near the middle, as is asked for here.
    if len(rows) == 0 or not 18 <= 1 + max(np.ptp(rows), np.ptp(columns)) <= 21:
        return None
    centre: Any = ndimage.center_of_mass(ink)
    is_centred = np.abs(np.array(centre) - (SIDE - 1) / 2).max() <= 1.5
    return np.rint(255 * np.clip(ink, 0, 1)).astype(np.uint8) if is_centred else None


def _resized(ink: Float[np.ndarray, "h w"], side: int) -> Float[np.ndarray, "h2 w2"]:
    """Reduced or enlarged so that the longer side is `side`; a pixel is the mean of what it covers."""
    unit = max(ink.shape) / side
    height, width = (max(1, round(length / unit)) for length in ink.shape)
    return np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
