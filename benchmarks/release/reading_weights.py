"""`python -m benchmarks.release.reading_weights`: fits the weights of mnist_flax/reading/scoring.py.

By these weights the reader scores each way to read a picture. The pictures are of half of the kinds of
`benchmarks.reading.photographs` (`is_fitted`), drawn from the training images that the shipped network's run held out;
the other kinds and the test images are left to measure with. Each picture is read in all ways. A way is right if it
names the digits that were drawn. To name none is a way of score zero, right if no other is. With the scores as logits,
the weights maximise the likelihood of the right ways.
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize

from benchmarks.common import parser_of
from benchmarks.reading.photographs import pictures
from benchmarks.reading.synthetic.kinds import KINDS, ONLY_FITTED, family, is_fitted
from benchmarks.reading.synthetic.strokes import Digits
from mnist_flax import data
from mnist_flax.cli import command
from mnist_flax.inference import classifier
from mnist_flax.reading import image, proposals, scoring
from mnist_flax.reading.candidates import CandidateScorer
from mnist_flax.reading.parts import Parts
from mnist_flax.reading.reader import in_reading_order

SEED = 4  # not that of benchmarks.reading.photographs
PENALTIES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)  # times the sum of the weights' squares
FOLDS = 5


class Ways(NamedTuple):
    """The ways to read one picture; the last is to name nothing."""

    features: Float[np.ndarray, "ways features"]
    right: Bool[np.ndarray, " ways"]


def ways_to_read(network: classifier.Classifier, file: bytes, labels: Sequence[str]) -> Ways:
    """All ways to read a picture that name a digit, and the one that names none."""
    rows, right, scorer = [], [], CandidateScorer(network)
    for tone in proposals.all_tones(image.decode(file)):
        parts = Parts(tone.ink)
        for reading in proposals.readings(tone, parts, scorer):
            named = [digit for digit in reading.digits if digit.is_named]
            if named:
                found = scoring.features(tone, parts, reading.digits)
                rows.append([*(found[name] for name in scoring.WEIGHTS), 1.0])
                names = [network.class_names[digit.probabilities.argmax()] for digit, _ in in_reading_order(named)]
                right.append(names == list(labels))
    nothing = not labels or not any(right)
    return Ways(np.array([*rows, np.zeros(len(scoring.WEIGHTS) + 1)]), np.array([*right, nothing]))


def surprise(
    weights: Float[np.ndarray, " features"], pages: Sequence[Ways]
) -> tuple[Float[np.ndarray, " pages"], Float[np.ndarray, " features"]]:
    """The negative logarithm of the probability that each page's right ways have, and the gradient of their sum."""
    features, right = (np.concatenate(each) for each in zip(*pages, strict=True))
    counts = [len(page.right) for page in pages]
    first = np.cumsum([0, *counts[:-1]])
    scores = features @ weights
    of_right = np.where(right, scores, -np.inf)
    total, total_of_right = (np.logaddexp.reduceat(each, first) for each in (scores, of_right))
    shares = np.exp(scores - total.repeat(counts)) - np.exp(of_right - total_of_right.repeat(counts))
    return total - total_of_right, features.T @ shares


def fit(pages: Sequence[Ways], penalty: float) -> Float[np.ndarray, " features"]:
    """The weights, and the bias behind them."""

    def loss(weights: Float[np.ndarray, " features"]) -> tuple[float, Float[np.ndarray, " features"]]:
        values, gradient = surprise(weights, pages)
        return float(values.sum() + penalty * weights @ weights), gradient + 2 * penalty * weights

    return optimize.minimize(loss, np.zeros(len(scoring.WEIGHTS) + 1), jac=True, method="L-BFGS-B").x


def cross_validated(pages: Mapping[str, Sequence[Ways]], penalty: float) -> Float[np.ndarray, " pages"]:
    """The surprise at each page by weights that were not fitted to its family of kinds."""
    families, surprises = sorted({family(kind) for kind in pages}), []
    for fold in range(FOLDS):
        left_out = set(families[fold::FOLDS])
        weights = fit([*chain(*(pages[kind] for kind in pages if family(kind) not in left_out))], penalty)
        surprises.append(surprise(weights, [*chain(*(pages[kind] for kind in pages if family(kind) in left_out))])[0])
    return np.concatenate(surprises)


def strongest(surprises: Mapping[float, Float[np.ndarray, " pages"]]) -> float:
    """The strongest penalty that is as good as the best but for one standard error (Breiman et al., 1984)."""
    best = min(surprises.values(), key=np.mean)
    limit = best.mean() + best.std() / len(best) ** 0.5
    return max(penalty for penalty, found in surprises.items() if found.mean() <= limit)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_data_dir()
    parser.add_argument("--per-kind", type=int, default=8, metavar="N", help="pictures of each kind (8)")
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    network = classifier.load(None)
    dataset = data.load("mnist", options.data_dir, network.card["config"]["val_size"])
    digits = Digits(dataset, "validation")
    pages = {
        kind: [
            ways_to_read(network, picture.data, picture.labels)
            for picture in pictures(kind, digits, SEED, options.per_kind)
        ]
        for kind in (*filter(is_fitted, KINDS), *ONLY_FITTED)
    }
    surprises = {penalty: cross_validated(pages, penalty) for penalty in PENALTIES}
    for penalty, found in surprises.items():
        error = found.std() / len(found) ** 0.5
        print(f"penalty {penalty:6}: {found.mean():.4f} ± {error:.4f} nats a picture, cross-validated")
    every = [*chain(*pages.values())]
    *weights, bias = fitted = fit(every, strongest(surprises))
    for name, weight in zip(scoring.WEIGHTS, weights, strict=True):
        print(f"{name:10} {weight:6.2f}")
    print(f"{'bias':10} {bias:6.2f}")
    right = sum(page.right[(page.features @ fitted).argmax()] for page in every)
    print(f"{right} of {len(every)} pictures are read rightly, or refused where no way is right")


if __name__ == "__main__":
    main()
