"""Image files as colours in 0..1: decoded, turned upright and reduced to a size to work at."""

import importlib
import io
import itertools
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageOps, ImageSequence, ImageStat, UnidentifiedImageError

from mnist_flax.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "HEIF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm"}
SUFFIXES |= {".avif", ".heic", ".heif"}
# Decoding such an image takes 770 MB of memory, 1 GB at 32 bits a pixel. Larger ones are refused before decoding.
MAX_PIXELS = 50_000_000
WORKING_SIDE = 448  # larger images are reduced to this
MAX_FRAMES = 20  # of an animation, in search of one that shows something

WHITE_LEVELS = (1.0, 255.0, 4095.0, 65535.0)  # of integers of more than 8 bits: the first that no pixel exceeds
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


class Picture(NamedTuple):
    """An image to read.

    Attributes:
        rgb: colours at working size; under transparent pixels, the median colour of the opaque ones.
        alpha: opacity, 1 everywhere if the image has none.
        scale: pixels of the file for a pixel at working size.
    """

    rgb: Float[np.ndarray, "h w 3"]
    alpha: Float[np.ndarray, "h w"]
    scale: float


def of_grey(values: Float[np.ndarray, "h w"]) -> Picture:
    """Grey levels, 0 black to 1 white, as a picture."""
    rgb = np.repeat(np.asarray(values, np.float32)[..., None], 3, axis=-1)
    return Picture(rgb, np.ones(values.shape, np.float32), 1.0)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode an image file; of an animation, the first frame that shows something.

    Raises:
        UserError: the file is not an image of one of `FORMATS`, is damaged, or has more than `max_pixels`.
    """
    _require_heif(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow finds odd but can read
            with Image.open(io.BytesIO(data), formats=[name for name in FORMATS if _is_known(name)]) as image:
                size = image.size
                image.draft("RGB", (WORKING_SIDE, WORKING_SIDE))  # decodes a large JPEG at a fraction of its size
                # Pillow itself refuses to open what claims to be three times as large.
                if image.width * image.height > max_pixels:
                    raise UserError(f"it has {image.width}×{image.height} pixels, more than {max_pixels:,}")
                return _reduced(ImageOps.exif_transpose(_first_frame(image)), max(size))
    except UnidentifiedImageError as error:
        raise UserError(f"it is not an image ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"it has more than {max_pixels:,} pixels") from error
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
        raise UserError(f"it is damaged ({error})") from error


def _is_known(name: str) -> bool:
    """Whether Pillow reads a format here: AVIF depends on its build, HEIF on pillow-heif."""
    Image.preinit()
    if name not in Image.OPEN:
        Image.init()
    return name in Image.OPEN


def _require_heif(data: bytes) -> None:
    """Make Pillow read HEIC files, the format of iPhones.

    Raises:
        UserError: `data` is such a file, and pillow-heif is not installed.
    """
    if data[4:8] != b"ftyp" or data[8:12] not in HEIF_BRANDS:
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise UserError("it is a HEIC file: pip install pillow-heif, or save it as JPEG") from error


def _first_frame(image: Image.Image) -> Image.Image:
    """The first frame; if that is of one colour, the one that shows most: a drawing may appear bit by bit."""
    if getattr(image, "n_frames", 1) > 1 and _variance(image) == 0:
        frames = [frame.copy() for frame in itertools.islice(ImageSequence.Iterator(image), MAX_FRAMES)]
        return max(frames, key=_variance)
    image.load()
    return image


def _variance(image: Image.Image) -> float:
    return sum(ImageStat.Stat(image.convert("RGBA")).var)


def _reduced(image: Image.Image, longest: int) -> Picture:
    if image.mode[0] in "IF":  # 16 and 32 bits a pixel, of which Pillow would cut off what is above 255
        image = Image.fromarray(np.rint(255 * _levels(np.asarray(image, np.float32))).astype(np.uint8))
    image = image.convert("RGBA")
    image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
    values = np.asarray(image, np.float32) / 255
    rgb, alpha = values[..., :3].copy(), values[..., 3]
    opaque = alpha > 0.5
    if opaque.any() and not opaque.all():
        paper = np.median(rgb[opaque], axis=0)
        rgb = rgb * alpha[..., None] + paper * (1 - alpha[..., None])
    return Picture(rgb, alpha, longest / max(image.size))


def _levels(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Grey levels of any scale as 0..1."""
    values = np.nan_to_num(values, posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    if low < 0 or 1 < high < 32:  # standardised, or floats that overshoot
        return (values - low) / max(high - low, 1e-6)
    white = next((level for level in WHITE_LEVELS if high <= level), high)
    return np.clip(values / white, 0, 1)
