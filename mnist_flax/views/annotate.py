"""Pictures with a box around each digit that was read in them, to look at."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from mnist_flax.files import SIGN, is_ours
from mnist_flax.reading.image import Picture

LARGEST, SMALLEST = 1600, 400  # of the longer side, in pixels
COLOUR, PAPER = (214, 0, 90), (255, 255, 255)  # magenta: seldom the colour of ink or paper
EIGHT_BITS = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"}


def annotated(data: bytes, picture: Picture, result: dict[str, Any]) -> Image.Image:
    """An image file with its answer: a box and a label for each digit, or in a corner why there is none.

    Args:
        data: the file.
        picture: the same, decoded.
        result: the answer about it, with the keys of `answers.describe`.
    """
    image = _to_look_at(data, picture)
    height, width = picture.alpha.shape
    across, down = (side / (length * picture.scale) for side, length in zip(image.size, (width, height), strict=True))
    draw, thick = ImageDraw.Draw(image), max(2, max(image.size) // 400)
    labels = []
    for digit in result["digits"]:
        left, top, right, bottom = digit["box"]
        box = (left * across - thick, top * down - thick, right * across + thick, bottom * down + thick)
        draw.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline=PAPER, width=thick + 2)
        draw.rectangle(box, outline=COLOUR, width=thick)
        room = float(image.width) if len(result["digits"]) == 1 else box[2] - box[0]  # labels must not cover each other
        labels.append(([f"{digit['digit']} {digit['probability']:.1%}", digit["digit"]], room, box[0], box[1]))
    for texts, room, left, top in labels or [([result["verdict"]], float(image.width), 0.0, 0.0)]:
        _label(image, texts, room, left, top)  # after all boxes, or one might cross a label
    return image


def _to_look_at(data: bytes, picture: Picture) -> Image.Image:
    """The picture as it was taken, upright, enlarged or reduced to a size at which boxes and labels can be seen."""
    with Image.open(io.BytesIO(data)) as opened:
        if opened.mode in EIGHT_BITS and getattr(opened, "n_frames", 1) == 1:
            opened.draft("RGB", (LARGEST, LARGEST))
            image = ImageOps.exif_transpose(opened).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*PAPER, 255)), image).convert("RGB")
        else:  # what has more bits or several frames was made presentable to be read
            image = Image.fromarray(np.rint(255 * picture.rgb).astype(np.uint8))
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    if max(image.size) < SMALLEST:
        factor = -(-SMALLEST // max(image.size))
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
    return image


def _label(image: Image.Image, texts: list[str], room: float, left: float, bottom: float) -> None:
    """Write the first of `texts` that is no wider than `room`, or the last, above a place and within the picture."""
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(12, max(image.size) // 45))
    boxes = [(text, *draw.textbbox((0, 0), text, font=font)) for text in texts]
    text, x, y, right, lower = next((box for box in boxes if box[3] - box[1] + 8 <= room), boxes[-1])
    width, height = right - x + 8, lower - y + 8
    left = max(0, min(left, image.width - width))
    top = max(0, min(bottom - height, image.height - height))
    draw.rectangle([left, top, left + width, top + height], fill=COLOUR)
    draw.text((left + 4 - x, top + 4 - y), text, fill=PAPER, font=font)


class Folder:
    """Where annotated pictures go: none replaces another of the same run, one of `inputs`, or what we did not write."""

    def __init__(self, path: Path, inputs: list[Path | None]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.resolve()
        # Without regard to case, as some file systems have it.
        self.taken = {str(file.resolve()).casefold() for file in inputs if file is not None}

    def save(self, image: Image.Image, source: Path | None) -> Path:
        """Write a picture under the name of the file it was made from (None: standard input), numbered if need be."""
        stem, number = "stdin" if source is None else source.stem, 1
        path = self.path / f"{stem}.png"
        while str(path).casefold() in self.taken or (path.exists() and not (path.is_file() and is_ours(path))):
            number += 1
            path = self.path / f"{stem}-{number}.png"
        self.taken.add(str(path).casefold())
        notes = PngInfo()
        notes.add_text("Software", SIGN)
        image.save(path, pnginfo=notes)
        return path
