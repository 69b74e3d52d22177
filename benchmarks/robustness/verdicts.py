"""What `predict` says of digits from elsewhere, and of pictures that show no digit."""

import numpy as np

from benchmarks.common import markdown
from benchmarks.reading.synthetic.drawings import (
    LETTERS,
    SYMBOLS,
    fonts,
    frames,
    glyphs,
    noise,
    polygons,
    scribbles,
    stripes,
)
from mnist_flax import data
from mnist_flax.inference import classifier
from mnist_flax.reading.image import of_grey
from mnist_flax.reading.reader import Page, read


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
    rows = []
    for name, (pictures, labels) in sets.items():
        pages = [read(network, of_grey(picture)) for picture in pictures]
        verdicts = np.array([page.verdict for page in pages])
        one = verdicts == "digit"
        wrong = ""
        if labels is not None:
            found = np.array([named(page) for page in pages])
            wrong = f"{(found != labels.astype(str))[one].mean():.2%}"
        others = ("several digits", "not like a digit", "unclear", "no ink")
        shares = [f"{(verdicts == verdict).mean():.2%}" for verdict in others]
        rows.append((name, f"{len(pictures):,}", f"{one.mean():.2%}", wrong, *shares))
    return markdown(head.split(", "), rows)
