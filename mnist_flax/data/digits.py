"""The `digits` data set, which ships with scikit-learn and needs no download, redrawn in MNIST's geometry."""

from typing import Any

import numpy as np

from mnist_flax.data.examples import Examples, split_off
from mnist_flax.data.geometry import NUM_CLASSES, fit_to_mnist


def load_digits() -> tuple[tuple[str, ...], Examples, Examples]:
    """Class names, training and test examples of 1,797 digits by 43 writers; a fixed fifth of them is the test set.

    https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits
    """
    from sklearn import datasets

    digits: Any = datasets.load_digits()
    images = np.stack([fit_to_mnist(image / 16) for image in digits.images])
    labels = digits.target.astype(np.int32)
    names = tuple(str(digit) for digit in range(NUM_CLASSES))
    return names, *split_off(Examples(images, labels), len(labels) // 5)
