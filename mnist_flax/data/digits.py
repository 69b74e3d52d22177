"""The `digits` data set, which ships with scikit-learn and needs no download, redrawn in MNIST's geometry."""

from importlib.metadata import distribution

import numpy as np

from mnist_flax.data.examples import Examples, split_off
from mnist_flax.data.geometry import NUM_CLASSES, fit_to_mnist


def load_digits() -> tuple[tuple[str, ...], Examples, Examples]:
    """Class names, training and test examples of 1,797 digits by 43 writers; a fixed fifth of them is the test set.

    https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits
    """
    # What `sklearn.datasets.load_digits` reads; to import scikit-learn for it takes two seconds.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")  # a row an image: 64 pixels in 0..16, and the class
    images = np.stack([fit_to_mnist(pixels.reshape(8, 8) / 16) for pixels in table[:, :-1]])
    labels = table[:, -1].astype(np.int32)
    names = tuple(str(digit) for digit in range(NUM_CLASSES))
    return names, *split_off(Examples(images, labels), len(labels) // 5)
