"""Pictures as the files that people have: formats, modes, depths and orientations."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.reading.synthetic.paper import Canvas, Random

Save = Callable[[Random, Canvas], tuple[bytes, str]]  # to the bytes of a file, and its suffix
EXIF_ORIENTATION = 0x0112
# What makes a picture of each orientation look upright again is undone here.
UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def as_image(canvas: Canvas) -> Image.Image:
    """8 bits a channel, RGB or RGBA."""
    return Image.fromarray(np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8))


def _bytes(image: Image.Image, suffix: str, **options: Any) -> tuple[bytes, str]:
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[suffix], **options)
    return file.getvalue(), suffix


def saved(suffix: str, mode: str | None = None, **options: Any) -> Save:
    """A file of a format, converted to one of Pillow's modes."""
    return lambda rng, canvas: _bytes(as_image(canvas).convert(mode) if mode else as_image(canvas), suffix, **options)


def jpeg(low: int = 75, high: int = 95, mode: str | None = None) -> Save:
    """A JPEG of a quality between `low` and `high`."""
    return lambda rng, canvas: saved(".jpg", mode, quality=int(rng.randint(low, high + 1)))(rng, canvas)


def palette(rng: Random, canvas: Canvas) -> tuple[bytes, str]:
    """16 colours."""
    return _bytes(as_image(canvas).quantize(16), ".png")


def one_bit(rng: Random, canvas: Canvas) -> tuple[bytes, str]:
    """Black and white, cut in the middle of the range."""
    grey = canvas.mean(2)
    return _bytes(Image.fromarray(grey > (grey.min() + grey.max()) / 2), ".png")


def deep(white: int, suffix: str) -> Save:
    """16 bits a pixel, with a white of less where the sensor has fewer."""
    return lambda rng, canvas: _bytes(Image.fromarray(np.rint(white * canvas.mean(2)).astype(np.uint16)), suffix)


def floats(scale: float | None) -> Save:
    """A TIFF of 32-bit floats with this maximum; None: of mean 0 and deviation 1."""

    def save(rng: Random, canvas: Canvas) -> tuple[bytes, str]:
        grey = canvas.mean(2).astype(np.float32)
        grey = (grey - grey.mean()) / grey.std() if scale is None else grey * np.float32(scale / grey.max())
        return _bytes(Image.fromarray(grey), ".tif")

    return save


def oriented(rng: Random, canvas: Canvas) -> tuple[bytes, str]:
    """A JPEG that is stored turned or mirrored, and says so."""
    orientation = int(rng.choice(list(UNDO)))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return _bytes(as_image(canvas).transpose(UNDO[orientation]), ".jpg", exif=exif.tobytes(), quality=90)


def late_gif(rng: Random, canvas: Canvas) -> tuple[bytes, str]:
    """An animation whose first frame is empty."""
    image = as_image(canvas)
    blank = Image.new("RGB", image.size, image.getpixel((1, 1)))
    return _bytes(blank, ".gif", save_all=True, append_images=[image], duration=200)


def huge(width: int) -> Save:
    """A JPEG of a camera of tens of megapixels."""

    def save(rng: Random, canvas: Canvas) -> tuple[bytes, str]:
        size = width, width * canvas.shape[0] // canvas.shape[1]
        return _bytes(as_image(canvas).resize(size, Image.Resampling.BILINEAR), ".jpg", quality=80)

    return save
