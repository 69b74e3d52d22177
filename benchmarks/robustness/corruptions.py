"""`python -m benchmarks.robustness.corruptions`: a network on images unlike its training images, in Markdown.

Corruptions of MNIST's test images, at the strengths of MNIST-C (Mu & Gilmer, 2019, arXiv:1906.02337), which takes
noise, blur, contrast, brightness and pixelation from ImageNet-C (Hendrycks & Dietterich, 2019, arXiv:1903.12261);
occlusion by a square is Cutout's (DeVries & Taylor, 2017, arXiv:1708.04552). They are written anew from those
definitions, so figures compare with each other and not digit for digit with that data set's. The `digits` of
scikit-learn come from other writers and another scanner. Every draw is fixed.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from benchmarks.common import markdown, parser_of
from benchmarks.reading.transfer import all_digits
from benchmarks.robustness import verdicts
from mnist_flax import data
from mnist_flax.cli import command
from mnist_flax.inference import classifier, metrics

Images = Float[np.ndarray, "n 28 28"]  # ink in 0..1
Corruption = Callable[[np.random.Generator, Images], Images]


def _warped(images: Images, linear: Float[np.ndarray, "n 2 2"]) -> Images:
    """Each image under a linear map, given from output to input, about the centre."""
    centre = np.full(2, 13.5)
    return np.stack(
        [
            ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1)
            for image, matrix in zip(images, linear, strict=True)
        ]
    )


def _signs(rng: np.random.Generator, count: int) -> Float[np.ndarray, " n"]:
    return rng.choice([-1.0, 1.0], count)


def _rotated(rng: np.random.Generator, images: Images, degrees: float) -> Images:
    angles = np.deg2rad(degrees) * _signs(rng, len(images))
    cos, sin = np.cos(angles), np.sin(angles)
    return _warped(images, np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], 1))


def _sheared(rng: np.random.Generator, images: Images, shear: float) -> Images:
    linear = np.tile(np.eye(2), (len(images), 1, 1))
    linear[:, 1, 0] = shear * _signs(rng, len(images))
    return _warped(images, linear)


def _translated(rng: np.random.Generator, images: Images, pixels: int) -> Images:
    moves = pixels * rng.choice([-1, 1], (len(images), 2))
    return np.stack([ndimage.shift(image, move, order=0) for image, move in zip(images, moves, strict=True)])


def _motion_blurred(rng: np.random.Generator, images: Images, length: int) -> Images:
    """Means along a line of `length` pixels at up to 45 degrees from the horizontal."""
    slopes, steps = np.tan(rng.uniform(-np.pi / 4, np.pi / 4, len(images))), np.arange(length) - (length - 1) / 2

    def blurred(image: Float[np.ndarray, "28 28"], slope: float) -> Float[np.ndarray, "28 28"]:
        moves = [(slope * step, step) for step in steps / np.hypot(1, slope)]
        return np.mean([ndimage.shift(image, move, order=1) for move in moves], axis=0)

    return np.stack([blurred(image, slope) for image, slope in zip(images, slopes, strict=True)])


def _pixelated(images: Images, size: int) -> Images:
    """Means over squares of `size` pixels."""
    blocks = images.reshape(len(images), 28 // size, size, 28 // size, size).mean((2, 4))
    return blocks.repeat(size, 1).repeat(size, 2)


def _impulses(rng: np.random.Generator, images: Images, amount: float) -> Images:
    draw = rng.random(images.shape)
    return np.where(draw < amount / 2, 0.0, np.where(draw < amount, 1.0, images))


def _occluded(rng: np.random.Generator, images: Images, side: int) -> Images:
    """A black square somewhere within the middle 20×20 pixels, where the ink is."""
    top, left = rng.integers(4, 24 - side + 1, (2, len(images), 1, 1))
    rows, columns = np.arange(28)[:, None], np.arange(28)
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return np.where(inside, 0.0, images)


def _striped(images: Images) -> Images:
    stripes = images.copy()
    stripes[:, :, :7], stripes[:, :, 21:] = 1 - images[:, :, :7], 1 - images[:, :, 21:]
    return stripes


CORRUPTIONS: dict[str, Corruption] = {
    "Gaussian noise, σ 0.38": lambda rng, x: x + rng.normal(0, 0.38, x.shape),
    "shot noise, 3 photons": lambda rng, x: rng.poisson(3 * x) / 3,
    "impulse noise, 17 %": lambda rng, x: _impulses(rng, x, 0.17),
    "Gaussian blur, σ 2": lambda rng, x: ndimage.gaussian_filter(x, (0, 2, 2)),
    "motion blur, 7 pixels": lambda rng, x: _motion_blurred(rng, x, 7),
    "pixelation, 4×4": lambda rng, x: _pixelated(x, 4),
    "contrast, a tenth": lambda rng, x: 0.1 * x + 0.9 * x.mean((1, 2), keepdims=True),
    "brightness, +0.5": lambda rng, x: x + 0.5,
    "rotation, ±23°": lambda rng, x: _rotated(rng, x, 23),
    "shear, ±0.4": lambda rng, x: _sheared(rng, x, 0.4),
    "scale, 0.7": lambda rng, x: _warped(x, np.tile(np.eye(2) / 0.7, (len(x), 1, 1))),
    "translation, 3 pixels each way": lambda rng, x: _translated(rng, x, 3),
    "occlusion, 8×8 square": lambda rng, x: _occluded(rng, x, 8),
    "inverted stripes": lambda rng, x: _striped(x),
    "inverted": lambda rng, x: 1 - x,
}


def corrupted(name: str, images: np.ndarray) -> np.ndarray:
    """`images`, uint8, under a corruption of `CORRUPTIONS`; the same every time."""
    result = CORRUPTIONS[name](np.random.default_rng(0), images / 255)
    return np.rint(255 * np.clip(result, 0, 1)).astype(np.uint8)


def report(network: classifier.Classifier, data_dir: Path | None) -> str:
    """Tables of accuracy on corrupted and foreign digits, of calibration, and of what `predict` says of no digits."""
    mnist = data.load("mnist", data_dir, network.card["config"]["val_size"])
    digits = all_digits()
    sets = {"MNIST's test set": mnist.test, "`digits`, all 1,797, never trained on": digits}
    sets |= {name: mnist.test._replace(images=corrupted(name, mnist.test.images)) for name in CORRUPTIONS}
    rows = []
    for name, (images, labels) in sets.items():
        log_probabilities = network.log_probabilities(images)
        correct = int((log_probabilities.argmax(-1) == labels).sum())
        low, high = metrics.accuracy_interval(correct, len(labels))
        error = metrics.calibration_error(labels, log_probabilities)
        figures = f"{100 * correct / len(labels):.2f} ({100 * low:.2f}–{100 * high:.2f})"
        rows.append((name, figures, f"{error:.3f}"))
    tables = [markdown(("data", "accuracy, % (95 % interval)", "calibration error"), rows)]
    images, labels = mnist.test
    after = network.log_probabilities(images)
    before = metrics.scaled(after, 1 / network.temperature)
    scored = {"as trained": before, f"temperature {network.temperature:.3f}, fitted on validation": after}
    rows = [
        (name, f"{metrics.calibration_error(labels, scores):.4f}", f"{metrics.cross_entropy(labels, scores):.4f}")
        for name, scores in scored.items()
    ]
    tables.append(markdown(("on MNIST's test set", "calibration error", "loss"), rows))
    tables += ["What `predict` says of other digits, and of no digits:", verdicts.table(network, mnist, digits)]
    return "\n\n".join(tables)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_checkpoint()
    parser.add_data_dir()
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    print(report(classifier.load(options.checkpoint), options.data_dir))


if __name__ == "__main__":
    main()
