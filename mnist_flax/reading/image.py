"""Image files as MNIST would have drawn them: find the ink, judge whether it is one digit, scale and centre it."""

import io
import itertools
import warnings
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from mnist_flax.data.geometry import centre_by_mass
from mnist_flax.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
# Decoding such an image takes 770 MB of memory, 1 GB at 32 bits a pixel. Larger ones are refused before decoding.
MAX_PIXELS = 50_000_000
WORKING_SIDE = 400  # larger images are first reduced to this, which is 20 times the size of MNIST's digits

WHITE_LEVELS = (1.0, 255.0, 4095.0, 65535.0)  # of more than 8 bits: the first that no pixel exceeds

# How an image is judged. Ink is what differs from the background by more than half of the strongest difference.
MIN_CONTRAST = 0.1  # of black to white; less is paper grain
SPECK = 0.02  # parts of less than this share of the ink are dirt
TALL = 0.5  # parts at least this fraction of the ink's height, side by side, are digits of their own

Ink = Float[np.ndarray, "h w"]  # 0 background .. 1 strongest


class Drawing(NamedTuple):
    """The network's input that was found in an image, or why there is none."""

    pixels: UInt8[np.ndarray, "28 28"] | None
    verdict: str  # "digit", "no ink" or "several digits"


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Float[np.ndarray, "h w"]:
    """The first frame of an image file as grey levels in 0..1, upright; transparent pixels contrast with the others.

    Raises:
        UserError: the file is not an image of one of `FORMATS`, is damaged, or has more than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd but can read
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                # Pillow itself refuses to open what claims to be three times as large.
                if image.width * image.height > max_pixels:
                    raise UserError(f"it has {image.width}×{image.height} pixels, more than {max_pixels:,}")
                image.draft("L", (WORKING_SIDE, WORKING_SIDE))  # decodes a large JPEG at a fraction of its size
                image.load()
                image = ImageOps.exif_transpose(image)
                return _grey(image)
    except UnidentifiedImageError as error:
        raise UserError(f"it is not an image ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"it has more than {max_pixels:,} pixels") from error
    except (OSError, ValueError, SyntaxError, MemoryError) as error:  # Pillow on damaged files
        raise UserError(f"it is damaged ({error})") from error


def _grey(image: Image.Image) -> Float[np.ndarray, "h w"]:
    if image.mode[0] in "IF":  # 16 and 32 bits a pixel, of which Pillow would cut off what is above 255
        values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
        white = next((level for level in WHITE_LEVELS if values.max() <= level), float(values.max()))
        image = Image.fromarray(np.rint(255 * np.clip(values / white, 0, 1)).astype(np.uint8))
    image = image.convert("RGBA")
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
    *_, alpha = (np.asarray(band, np.float32) / 255 for band in image.split())
    grey = np.asarray(image.convert("RGB").convert("L"), np.float32) / 255
    seen = (grey * alpha).sum() / max(alpha.sum(), 1e-6)  # what is not transparent is the ink, should anything be
    return grey * alpha + (1 - alpha) * float(seen < 0.5)


def find_ink(grey: Float[np.ndarray, "h w"]) -> Ink:
    """The ink of an image, dark on light or light on dark; zeros if nothing stands out from the border's median."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    difference = grey - np.median(border)
    if abs(difference.min()) > difference.max():
        difference = -difference
    strongest = float(np.quantile(difference, 0.999)) if difference.size > 1000 else float(difference.max())
    strongest = max(strongest, 0.5 * float(difference.max()))
    if strongest < MIN_CONTRAST:
        return np.zeros_like(grey)
    # Differences below a fifth of the strongest are shadows and JPEG artefacts.
    return np.clip((difference / strongest - 0.2) / 0.6, 0, 1)


def draw(grey: Float[np.ndarray, "h w"]) -> Drawing:
    """Find the one digit of an image and draw it in MNIST's geometry."""
    ink = find_ink(grey)
    labelled: Any = ndimage.label(ink > 0.5, structure=np.ones((3, 3)))
    parts, count = labelled
    if not count:
        return Drawing(None, "no ink")
    sizes = np.bincount(parts.ravel())[1:]
    kept = 1 + np.flatnonzero(sizes >= SPECK * sizes.sum())
    found: Any = ndimage.find_objects(parts)
    boxes = [found[part - 1] for part in kept]
    top, bottom = min(rows.start for rows, _ in boxes), max(rows.stop for rows, _ in boxes)
    tall = sorted(
        (columns.start, columns.stop) for rows, columns in boxes if rows.stop - rows.start >= TALL * (bottom - top)
    )
    if any(right > end for (_, end), (right, _) in itertools.pairwise(tall)):
        return Drawing(None, "several digits")
    near = ndimage.binary_dilation(np.isin(parts, kept), iterations=3)
    ink = np.where(near, ink, 0)
    rows, columns = np.flatnonzero((ink > 0.5).any(1)), np.flatnonzero((ink > 0.5).any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Drawing(_in_mnist_geometry(ink), "digit")


def _in_mnist_geometry(ink: Ink) -> UInt8[np.ndarray, "28 28"]:
    unit = max(ink.shape) / 20  # one pixel of the result
    # MNIST's pen is two to three pixels wide; a hairline would all but vanish.
    depth: Any = ndimage.distance_transform_edt(np.pad(ink > 0.5, 1))
    pen = 2 * float(np.quantile(depth[1:-1, 1:-1][ink > 0.5], 0.9))
    grow = round((2 * unit - pen) / 2)
    if grow > 0:
        ink = ndimage.grey_dilation(np.pad(ink, grow), size=(2 * grow + 1, 2 * grow + 1))
        unit = max(ink.shape) / 20
    height, width = (max(1, round(side / unit)) for side in ink.shape)
    # Pillow averages over what a pixel of the result covers.
    small = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    return centre_by_mass(small / max(float(small.max()), 1e-6))
