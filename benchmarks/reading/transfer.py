"""`python -m benchmarks.reading.transfer RUN...`: how well networks name digits that are not MNIST's, in Markdown."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from benchmarks.common import markdown, parser_of, with_spread
from benchmarks.reading.synthetic.drawings import fonts, glyphs
from mnist_flax import data
from mnist_flax.cli import command
from mnist_flax.data.geometry import fit_to_mnist
from mnist_flax.inference import classifier
from mnist_flax.training.contents import seed_directories


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
    rows = [
        (f"`{name}`", len(next(iter(found.values()))), *(with_spread(each, 2) for each in found.values()))
        for name, found in runs.items()
    ]
    return markdown(("run", "networks", *sets), rows)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run directory; all its seeds are taken")
    parser.add_data_dir()
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    print(table_of_runs({run.name: accuracies(run, options.data_dir) for run in options.runs}))


if __name__ == "__main__":
    main()
