"""Calibration: the temperature and the reference of the out-of-distribution score, fitted when training has ended."""

from mnist_flax.config import Config
from mnist_flax.data import Dataset
from mnist_flax.data.examples import stratified_choice
from mnist_flax.inference import classifier, metrics, novelty, weights
from mnist_flax.inference.classifier import Classifier
from mnist_flax.training.run_directory import NETWORK, directories_of

# The reference is fitted on so many training images. On MNIST the scores are within 1.6 % (root mean square) of those
# with all 55,000, 11 of 10,000 test images change sides of 1, and the features take an eleventh of the time.
FITTED_ON = 5000
# With fewer images there is no reference. 100 scores determine their 99.5 % quantile badly enough: it is nearly the
# highest, which every hundredth image exceeds. A covariance of 80 features from 1,000 images gives scores within 4 %.
FEWEST_HELD_OUT, FEWEST_TRAINED_ON = 100, 1000


def calibrate(network: Classifier, dataset: Dataset) -> Classifier:
    """The network with a temperature and a reference that are fitted to its held-out images.

    It comes back as it was if nothing was held out, and without a reference if there are too few images for one.
    """
    if dataset.selection_split == "test":
        return network
    held_out, train = dataset.validation, dataset.train
    plain = Classifier(network.variables, {**network.card, "temperature": 1.0})
    temperature = metrics.fit_temperature(held_out.labels, plain.log_probabilities(held_out.images))
    reference = None
    if len(held_out.labels) >= FEWEST_HELD_OUT and len(train.labels) >= FEWEST_TRAINED_ON:
        chosen = stratified_choice(train.labels, min(FITTED_ON, len(train.labels)), seed=0)
        features = plain.features(train.images[chosen])
        reference = novelty.fit(features, train.labels[chosen], plain.features(held_out.images))
    return Classifier(network.variables, {**network.card, "temperature": temperature}, reference)


def calibrate_run(config: Config, dataset: Dataset) -> None:
    """Write each seed's best network, calibrated, beside its checkpoints, unless that is done or nothing was held out.

    Raises:
        UserError: a checkpoint cannot be read.
    """
    if dataset.selection_split == "test":
        return
    for directory in directories_of(config):
        network = classifier.load(directory / "best")
        if "temperature" not in network.card:
            fitted = calibrate(network, dataset)
            weights.save(directory / NETWORK, fitted.variables, fitted.card, fitted.reference)
