"""`python -m benchmarks.strangers RUN...`: what networks make of digits that are not MNIST's, in Markdown.

`table` is about one network: what `predict` says of images, no digits among them. Glyphs are those of the fonts that
matplotlib brings, the rest is drawn here. Every draw is fixed.
"""

import argparse
import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import make_interp_spline

from benchmarks.tables import with_spread
from mnist_flax import data
from mnist_flax.cli import command
from mnist_flax.data.geometry import fit_to_mnist
from mnist_flax.inference import classifier
from mnist_flax.reading.image import of_grey
from mnist_flax.reading.reader import Page, read
from mnist_flax.training.contents import seed_directories

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


def named(page: Page) -> str:
    """The digits of a page in one word."""
    return "".join(str(digit.label) for digit in page.digits)


def table(network: classifier.Classifier, mnist: data.Dataset, digits: data.Examples) -> str:
    """How many images of each kind are named a digit, rightly or not, and what is said of the others."""
    sets = {
        "MNIST's test set": (list(mnist.test.images / np.float32(255)), mnist.test.labels),
        "`digits`, all 1,797": (list(digits.images / np.float32(255)), digits.labels),
        f"digits of {len(fonts())} fonts": (list(glyphs("0123456789")), np.arange(10).repeat(3 * len(fonts()))),
        "letters of the same": (list(glyphs(LETTERS)), None),
        "other signs of the same": (list(glyphs(SYMBOLS)), None),
    }
    for draw in (scribbles, polygons, frames, stripes, noise):
        rng = np.random.RandomState(0)
        sets[draw.__name__] = ([draw(rng) for _ in range(300)], None)
    head = "images, number, named one digit, of these wrongly, several digits, not like a digit, unclear, no ink"
    columns = head.split(", ")
    rows = [columns, ["---"] * len(columns)]
    for name, (pictures, labels) in sets.items():
        pages = [read(network, of_grey(picture)) for picture in pictures]
        verdicts = np.array([page.verdict for page in pages])
        one = verdicts == "digit"
        wrong = ""
        if labels is not None:
            found = np.array([named(page) for page in pages])
            wrong = f"{(found != labels.astype(str))[one].mean():.2%}"
        counts = [
            (verdicts == verdict).sum() for verdict in ("several digits", "not like a digit", "unclear", "no ink")
        ]
        share = [f"{count / len(pictures):.2%}" for count in counts]
        rows.append([name, f"{len(pictures):,}", f"{one.sum() / len(pictures):.2%}", wrong, *share])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def coarse(image: UInt8[np.ndarray, "28 28"]) -> UInt8[np.ndarray, "28 28"]:
    """A digit as a scanner of 8×8 pixels would see it, drawn as MNIST would."""
    rows, columns = np.nonzero(image > 40)
    ink = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    height, width = ink.shape
    side = max(height, width)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = ink
    return fit_to_mnist(np.asarray(Image.fromarray(square).resize((8, 8), Image.Resampling.BOX)) / 255)


def all_digits() -> data.Examples:
    """The 1,797 digits of scikit-learn."""
    digits = data.load("digits", None, 0)
    return data.Examples(*map(np.concatenate, zip(digits.train, digits.test, strict=True)))


@functools.cache
def digits_to_name(data_dir: Path | None, val_size: int) -> dict[str, data.Examples]:
    """Sets of digits as networks take them: held out, then those that had no part in any choice."""
    mnist = data.load("mnist", data_dir, val_size)
    held_out = mnist.validation
    drawn = np.stack([fit_to_mnist(1 - glyph) for glyph in glyphs("0123456789")])
    return {
        "held-out images": held_out,
        "the same at 8×8 pixels": held_out._replace(images=np.stack([coarse(image) for image in held_out.images])),
        "MNIST's test set": mnist.test,
        "`digits`, all 1,797": all_digits(),
        f"digits of {len(fonts())} fonts": data.Examples(drawn, np.arange(10).repeat(3 * len(fonts()))),
    }


def accuracies(run: Path, data_dir: Path | None) -> dict[str, list[float]]:
    """The accuracy of each of a run's networks on each set of digits, in per cent."""
    networks = [classifier.load(directory) for directory in seed_directories(run) or [run]]
    sets = digits_to_name(data_dir, networks[0].card["config"]["val_size"])
    return {
        name: [100 * float((network.predict(images)[0] == labels).mean()) for network in networks]
        for name, (images, labels) in sets.items()
    }


def table_of_runs(runs: dict[str, dict[str, list[float]]]) -> str:
    """Mean and standard deviation of each run's `accuracies`, by the run's name."""
    sets = next(iter(runs.values()))
    lines = [f"| run | networks | {' | '.join(sets)} |", "| --- " * (2 + len(sets)) + "|"]
    for name, found in runs.items():
        number = len(next(iter(found.values())))
        lines.append(f"| `{name}` | {number} | {' | '.join(with_spread(each, 2) for each in found.values())} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.strangers", description="What networks make of digits that are not MNIST's."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory; all its seeds are taken")
    parser.add_argument("--data-dir", type=Path, help="TFDS data directory")
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    print(table_of_runs({run.name: accuracies(run, options.data_dir) for run in options.runs}))


if __name__ == "__main__":
    main()
