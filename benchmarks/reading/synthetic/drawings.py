"""Pictures of one thing, black on white: characters in matplotlib's fonts, and shapes that are no digit."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import make_interp_spline

Grey = Float[np.ndarray, "h w"]  # 0 black .. 1 white

FONTS = ("DejaVuSans*", "DejaVuSerif*", "STIXGeneral*", "cm[brst][0-9st]*")
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYabcdefghkmnpqrtuvwxy"  # without those that are drawn like a digit: I, O, S, Z, l ...
SYMBOLS = "?@#$&*+=<>{}~^"
SIDE = 200


def fonts() -> list[Path]:
    """Files of text fonts, in regular, bold, oblique, with and without serifs, in fixed width."""
    directory = Path(matplotlib.get_data_path()) / "fonts/ttf"
    found = sorted(path for pattern in FONTS for path in directory.glob(f"{pattern}.ttf"))
    return [path for path in found if "Display" not in path.name]


def glyphs(characters: str) -> Iterator[Grey]:
    """Each character in each font at three sizes, black on white."""
    for character in characters:
        for path in fonts():
            for size in (24, 48, 96):
                picture = Image.new("L", (3 * size, 3 * size), 255)
                font = ImageFont.truetype(str(path), size)
                ImageDraw.Draw(picture).text((size, size // 2), character, fill=0, font=font)
                yield _grey(picture)


def scribbles(rng: np.random.RandomState) -> Grey:
    """A curve through 5 to 13 random points."""
    picture = _white()
    points = rng.uniform(20, SIDE - 20, (rng.randint(5, 14), 2))
    curve = make_interp_spline(np.linspace(0, 1, len(points)), points)(np.linspace(0, 1, 300))
    ImageDraw.Draw(picture).line([tuple(point) for point in curve], 0, rng.randint(6, 15), joint="curve")
    return _grey(picture)


def polygons(rng: np.random.RandomState) -> Grey:
    """A filled polygon of 3 to 8 corners in random directions from its middle."""
    picture = _white()
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.randint(3, 9)))
    corners = SIDE / 2 + rng.uniform(40, 90, (len(angles), 1)) * np.stack([np.cos(angles), np.sin(angles)], -1)
    ImageDraw.Draw(picture).polygon([tuple(corner) for corner in corners], fill=0)
    return _grey(picture)


def frames(rng: np.random.RandomState) -> Grey:
    """The outline of a regular triangle or square, turned at random."""
    picture = _white()
    circle = (SIDE // 2, SIDE // 2, rng.randint(40, 90))
    draw = ImageDraw.Draw(picture)
    draw.regular_polygon(circle, rng.randint(3, 5), rng.randint(360), outline=0, width=rng.randint(6, 15))
    return _grey(picture)


def stripes(rng: np.random.RandomState) -> Grey:
    """Parallel stripes in a square."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(10, 40)
    light = striped(*np.mgrid[:SIDE, :SIDE], angle, period)
    return np.pad(light.astype(np.float32), 20, constant_values=1)


def striped(
    rows: Shaped[np.ndarray, "h w"], columns: Shaped[np.ndarray, "h w"], angle: float, period: float
) -> Bool[np.ndarray, "h w"]:
    """Whether pixels, given by their coordinates, are in every other of parallel stripes."""
    return np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * 2 * np.pi / period) < 0


def noise(rng: np.random.RandomState) -> Grey:
    """Independent pixels."""
    return rng.random_sample((64, 64)).astype(np.float32)


def _white() -> Image.Image:
    return Image.new("L", (SIDE, SIDE), 255)


def _grey(picture: Image.Image) -> Grey:
    return np.asarray(picture, np.float32) / 255
