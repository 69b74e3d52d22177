"""How unlike all that it was trained on an image is to a network.

Its novelty is the Mahalanobis distance, of what the network's later blocks put out averaged over the image, from the
nearest class of training images, with one covariance for all classes (Lee et al., 2018, arXiv:1807.03888).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

# With earlier blocks other scanners and pens are novel as well, and what they draw are digits none the less.
BLOCKS = ("block4", "channel_reduce", "block5", "block6", "block7")
NUM_FEATURES = 20 + 12 + 16 + 16 + 16
WITHIN = 0.995  # the share of held-out images whose novelty is at most 1

Features = Float[np.ndarray, "n features"]


class Reference(NamedTuple):
    """What novelty is measured from: mean features of the classes, and what makes a distance a Mahalanobis distance."""

    means: Float[np.ndarray, "classes features"]
    whitening: Float[np.ndarray, "features features"]


def fit(features: Features, labels: Int[np.ndarray, " n"], held_out: Float[np.ndarray, "m features"]) -> Reference:
    """The reference of training images' features, in such units that `WITHIN` of the held-out images lie within 1."""
    means = np.stack([features[labels == label].mean(0, dtype=np.float64) for label in range(labels.max() + 1)])
    covariance = np.cov(features - means[labels], rowvar=False)
    # A feature that is always zero would make it singular.
    precision = np.linalg.inv(covariance + 1e-6 * np.eye(len(covariance)))
    reference = Reference(means.astype(np.float32), np.linalg.cholesky(precision).astype(np.float32))
    limit = np.quantile(distances(reference, held_out), WITHIN)
    return reference._replace(whitening=(reference.whitening / limit).astype(np.float32))


def distances(reference: Reference, features: Features) -> Float[np.ndarray, " n"]:
    """Each image's distance from the nearest class."""
    offsets = features[:, None] - reference.means
    return np.linalg.norm(offsets @ reference.whitening, axis=-1).min(-1)
