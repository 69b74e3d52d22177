"""Calibration: what is fitted to a network when training has ended.

That is the temperature, the statistics of the out-of-distribution score, and the activation maxima, which set the
scales of the network in integers.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from mnist_flax.config import Config
from mnist_flax.data import Dataset, Examples
from mnist_flax.data.examples import stratified_choice
from mnist_flax.files import require_ours
from mnist_flax.inference import classifier, integers, metrics, ood, weights
from mnist_flax.inference.card import MAXIMA
from mnist_flax.inference.classifier import Classifier
from mnist_flax.training.contents import NETWORK, directories_of
from mnist_flax.training.selection import FEWEST

# The statistics are fitted to so many training images. On MNIST the scores are within 1.6 % (root mean square) of those
# with all 55,000, 11 of 10,000 test images change sides of 1, and the features take an eleventh of the time.
FITTED_ON = 5000
# So many training and held-out images count a second time, drawn as `predict` draws them, which takes 1 ms an image.
# Without them `predict` refused half of the test images of `digits`, whose own drawings are softer.
REDRAWN = 1000
# With fewer images no statistics are fitted. 100 scores determine their 99.5 % quantile badly enough: it is nearly the
# highest, which every hundredth image exceeds. A covariance of 80 features from 1,000 images gives scores within 4 %.
FEWEST_HELD_OUT, FEWEST_TRAINED_ON = FEWEST, 1000

Redraw = Callable[[UInt8[np.ndarray, "n 28 28"]], UInt8[np.ndarray, "n 28 28"]]


def calibrate(network: Classifier, dataset: Dataset, redraw: Redraw) -> Classifier:
    """Fit temperature and out-of-distribution statistics to the held-out images, and measure the activation maxima.

    The network comes back as it was if nothing was held out, and without statistics if there are too few images.

    Args:
        network: its own temperature and statistics are ignored.
        dataset: what it was trained on.
        redraw: `reading.reader.redraw`, which this layer may not import.
    """
    if dataset.selection_split == "test":
        return network
    return _calibrated(network, dataset, _ood_examples(dataset, redraw))


def _calibrated(network: Classifier, dataset: Dataset, ood_examples: tuple[Examples, Examples] | None) -> Classifier:
    """`calibrate`, given what `_ood_examples` returns, which is the same for all networks of a run."""
    held_out = dataset.validation
    plain = Classifier(network.variables, {**network.card, "temperature": 1.0})
    temperature = metrics.fit_temperature(held_out.labels, plain.outputs(held_out.images)[0])
    statistics = None
    if ood_examples is not None:
        train, held_out = ood_examples
        statistics = ood.fit(plain.features(train.images), train.labels, plain.features(held_out.images))
    fitted = {"temperature": temperature, MAXIMA: integers.maxima(network, dataset.train)}
    return Classifier(network.variables, {**network.card, **fitted}, statistics)


def _ood_examples(dataset: Dataset, redraw: Redraw) -> tuple[Examples, Examples] | None:
    """The training and held-out examples to fit the statistics on, some of them also redrawn; None if too few."""
    train, held_out = dataset.train, dataset.validation
    if len(held_out.labels) < FEWEST_HELD_OUT or len(train.labels) < FEWEST_TRAINED_ON:
        return None
    return _with_redrawn(_some(train, FITTED_ON), redraw), _with_redrawn(held_out, redraw)


def _some(examples: Examples, count: int) -> Examples:
    chosen = stratified_choice(examples.labels, min(count, len(examples.labels)), seed=0)
    return Examples(examples.images[chosen], examples.labels[chosen])


def _with_redrawn(examples: Examples, redraw: Redraw) -> Examples:
    images, labels = _some(examples, REDRAWN)
    return Examples(np.concatenate([examples.images, redraw(images)]), np.concatenate([examples.labels, labels]))


def calibrate_run(config: Config, dataset: Dataset, redraw: Redraw) -> None:
    """Write each seed's best network, calibrated, beside its checkpoints, unless that is done or nothing was held out.

    Raises:
        UserError: a checkpoint cannot be read.
    """
    if dataset.selection_split == "test":
        return
    drawn_once = functools.cache(lambda: _ood_examples(dataset, redraw))  # for all seeds, if any needs it
    for directory in directories_of(config):
        network = classifier.load(directory / "best")
        if "temperature" not in network.card:
            require_ours(directory / NETWORK)
            fitted = _calibrated(network, dataset, drawn_once())
            weights.save(directory / NETWORK, fitted.variables, fitted.card, fitted.reference)
