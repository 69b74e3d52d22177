import dataclasses
import shutil

import jax
import numpy as np
import pytest

import mnist_flax
from mnist_flax import data
from mnist_flax.config import Config
from mnist_flax.inference import integers, metrics, weights
from mnist_flax.inference.calibration import calibrate, calibrate_run
from mnist_flax.inference.card import MAXIMA
from mnist_flax.inference.classifier import Classifier
from mnist_flax.reading.reader import redraw
from mnist_flax.training.checkpoint import Checkpoints

FILE = "network.safetensors"


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None, 119)


@pytest.fixture(scope="module")
def network(golden_weights, card):
    return Classifier(golden_weights, {**card, "val_loss": 1.0})


@pytest.fixture(scope="module")
def run(network, digits, tmp_path_factory):
    """A run directory as training leaves it, calibrated."""
    directory = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(directory / "best")
    checkpoints.save(1, network.variables, network.card)
    calibrate_run(Config(workdir=directory), digits, redraw)
    return directory


def test_it_is_fitted_to_the_held_out_images(network, digits):
    calibrated, (images, labels) = calibrate(network, digits, redraw), digits.validation
    fitted, plain = (metrics.cross_entropy(labels, n.log_probabilities(images)) for n in (calibrated, network))
    assert fitted < plain
    scores = np.concatenate([calibrated.novelty(images), calibrated.novelty(redraw(images))])
    assert (scores > 1).sum() == 2  # of 238
    assert (calibrated.novelty(digits.test.images) <= 1).mean() > 0.97
    assert (calibrated.novelty(redraw(digits.test.images)) <= 1).mean() > 0.97  # as `predict` draws them
    again = calibrate(calibrated, digits, redraw)
    assert again.temperature == calibrated.temperature
    np.testing.assert_array_equal(again.reference.whitening, calibrated.reference.whitening)


def test_nothing_is_fitted_to_test_images_and_no_reference_to_few(network):
    assert calibrate(network, data.load("digits", None, 0), redraw) is network
    for val_size in (99, 439):
        few = calibrate(network, data.load("digits", None, val_size), redraw)
        assert few.reference is None
        assert 0 < few.temperature != 1


def test_a_run_is_used_with_it(run, network, digits):
    loaded, expected = mnist_flax.load(run), calibrate(network, digits, redraw)
    assert loaded.temperature == expected.temperature
    assert loaded.card[MAXIMA] == expected.card[MAXIMA] == integers.maxima(network, digits.train)
    for name in ("means", "whitening"):
        np.testing.assert_array_equal(getattr(loaded.reference, name), getattr(expected.reference, name))
    for path in (run / "best", run / FILE):
        assert mnist_flax.load(path).temperature == expected.temperature


def test_it_is_written_once_and_never_for_another_network(run, network, digits, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    config, before = Config(workdir=workdir), (workdir / FILE).stat().st_mtime_ns
    calibrate_run(config, digits, redraw)
    assert (workdir / FILE).stat().st_mtime_ns == before
    (workdir / FILE).unlink()
    calibrate_run(config, dataclasses.replace(digits, selection_split="test"), redraw)
    assert mnist_flax.load(workdir).reference is None
    fitted = mnist_flax.load(run)
    other = jax.tree.map(lambda x: x + 1, network.variables)
    weights.save(workdir / FILE, other, {**fitted.card, "temperature": 9.0}, fitted.reference)
    assert mnist_flax.load(workdir).temperature == 1
    calibrate_run(config, digits, redraw)
    assert mnist_flax.load(workdir).temperature == fitted.temperature


def test_without_a_sound_file_the_checkpoint_is_used_all_the_same(run, digits, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    (workdir / FILE).write_bytes((run / FILE).read_bytes()[:-1])
    with pytest.warns(UserWarning, match="cannot be read .* used without its temperature and reference"):
        assert mnist_flax.load(workdir).reference is None
    with pytest.warns(UserWarning, match="cannot be read"):
        calibrate_run(Config(workdir=workdir), digits, redraw)
    assert (workdir / FILE).read_bytes() == (run / FILE).read_bytes()
