"""The out-of-distribution score, called novelty: how far an image is from all classes of training images.

It is a Mahalanobis distance between features, which are the outputs of the network's later blocks averaged over the
image: the distance from the nearest class, with one covariance for all classes (Lee et al., 2018, arXiv:1807.03888).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# Earlier blocks would tell other scanners and pens apart too, although those draw digits all the same.
BLOCKS = ("block4", "channel_reduce", "block5", "block6", "block7")
NUM_FEATURES = 20 + 12 + 16 + 16 + 16
WITHIN = 0.995  # the share of held-out images whose score is at most 1

Features = Float[np.ndarray, "n features"]


class MahalanobisStatistics(NamedTuple):
    """Mean features of each class, and the matrix that whitens differences from them."""

    means: Float[np.ndarray, "classes features"]
    whitening: Float[np.ndarray, "features features"]


def fit(
    features: Features, labels: Int[np.ndarray, " n"], held_out: Float[np.ndarray, "m features"]
) -> MahalanobisStatistics:
    """Fit the statistics to training features, scaled so that `WITHIN` of the held-out images score at most 1."""
    means = np.stack([features[labels == label].mean(0, dtype=np.float64) for label in range(labels.max() + 1)])
    covariance = np.cov(features - means[labels], rowvar=False)
    # A feature that is always zero would make it singular.
    precision = np.linalg.inv(covariance + 1e-6 * np.eye(len(covariance)))
    statistics = MahalanobisStatistics(means.astype(np.float32), np.linalg.cholesky(precision).astype(np.float32))
    limit = np.quantile(distances(statistics, held_out), WITHIN)
    return statistics._replace(whitening=(statistics.whitening / limit).astype(np.float32))


def distances(statistics: MahalanobisStatistics, features: Features) -> Float[np.ndarray, " n"]:
    """The score of each image: its Mahalanobis distance from the nearest class."""
    offsets = features[:, None] - statistics.means
    return np.linalg.norm(offsets @ statistics.whitening, axis=-1).min(-1)
