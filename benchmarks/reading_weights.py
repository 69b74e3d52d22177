"""`python -m benchmarks.reading_weights`: fits the weights by which `reading.scoring` judges ways to read a picture.

It draws pictures of every kind of `benchmarks.photographs`, with another seed, and reads each in all ways. The right
ways are those that give the digits it drew; to name none is a way of score zero, right if there are none. The weights
are those under which the right ways are likeliest, scores taken as logits.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, special

from benchmarks.drawn.kinds import KINDS
from benchmarks.drawn.strokes import Digits
from benchmarks.photographs import pictures
from mnist_flax import data
from mnist_flax.cli import command
from mnist_flax.inference import classifier
from mnist_flax.reading import image, proposals, scoring
from mnist_flax.reading.judging import Judge
from mnist_flax.reading.parts import Parts
from mnist_flax.reading.reader import in_reading_order

MAX_DIGITS = 9  # in a grid of a hundred, one that is misread would make every way wrong
PENALTY = 0.05  # times the sum of the weights' squares


class Ways(NamedTuple):
    """The ways to read one picture; the last is to name nothing."""

    features: Float[np.ndarray, "ways features"]
    right: Bool[np.ndarray, " ways"]


def ways_to_read(network: classifier.Classifier, file: bytes, labels: Sequence[str]) -> Ways:
    """All ways to read a picture that name a digit, and the one that names none."""
    rows, right, judge = [], [], Judge(network)
    for tone in proposals.all_tones(image.decode(file)):
        parts = Parts(tone.ink)
        for reading in proposals.readings(tone, parts, judge):
            named = [digit for digit in reading.digits if digit.is_named]
            if named:
                found = scoring.features(tone, parts, reading.digits)
                rows.append([*(found[name] for name in scoring.WEIGHTS), 1.0])
                names = [network.class_names[digit.probabilities.argmax()] for digit, _ in in_reading_order(named)]
                right.append(names == list(labels))
    nothing = not labels or not any(right)
    return Ways(np.array([*rows, np.zeros(len(scoring.WEIGHTS) + 1)]), np.array([*right, nothing]))


def fit(pages: Sequence[Ways]) -> Float[np.ndarray, " features"]:
    """The weights, and the bias behind them."""

    def loss(weights: Float[np.ndarray, " features"]) -> tuple[float, Float[np.ndarray, " features"]]:
        total, gradient = PENALTY * float(weights @ weights), 2 * PENALTY * weights
        for page in pages:
            scores = page.features @ weights
            among_right = scores[page.right]
            total += special.logsumexp(scores) - special.logsumexp(among_right)
            gradient = gradient + page.features.T @ special.softmax(scores)
            gradient = gradient - page.features[page.right].T @ special.softmax(among_right)
        return total, gradient

    start = np.zeros(len(scoring.WEIGHTS) + 1)
    return optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reading_weights", description="Fit the weights of mnist_flax/reading/scoring.py."
    )
    parser.add_argument("--data-dir", type=Path, help="TFDS data directory")
    parser.add_argument("--per-kind", type=int, default=4, metavar="N", help="pictures of each kind (4)")
    parser.add_argument("--seed", type=int, default=4, help="not that of benchmarks.photographs (4)")
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    network, digits = classifier.load(None), Digits(data.load("mnist", options.data_dir, None))
    pages = [
        ways_to_read(network, picture.data, picture.labels)
        for kind in KINDS
        for picture in pictures(kind, digits, options.seed, options.per_kind)
        if len(picture.labels) <= MAX_DIGITS
    ]
    *weights, bias = fit(pages)
    for name, weight in zip(scoring.WEIGHTS, weights, strict=True):
        print(f"{name:10} {weight:6.2f}")
    print(f"{'bias':10} {bias:6.2f}")
    scores = [page.features @ np.array([*weights, bias]) for page in pages]
    right = sum(page.right[found.argmax()] for page, found in zip(pages, scores, strict=True))
    print(f"{right} of {len(pages)} pictures are read rightly, or refused where no way is right")


if __name__ == "__main__":
    main()
