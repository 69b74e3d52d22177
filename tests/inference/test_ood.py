import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

import mnist_flax
from benchmarks.reading import transfer
from benchmarks.reading.synthetic import drawings
from benchmarks.robustness import verdicts
from mnist_flax import data
from mnist_flax.data import Examples
from mnist_flax.errors import UserError
from mnist_flax.inference import integers, ood, weights
from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import BLOCKS
from mnist_flax.reading import answers
from mnist_flax.reading.drawing import draw
from mnist_flax.reading.image import of_grey
from mnist_flax.reading.reader import read


def test_it_is_the_mahalanobis_distance_from_the_nearest_class_in_units_of_the_held_out_images():
    rng = np.random.RandomState(0)
    labels = rng.randint(0, 3, 3000)
    mixing = rng.standard_normal((5, 5))
    features = (rng.standard_normal((3000, 5)) @ mixing + 10 * labels[:, None]).astype(np.float32)
    reference = ood.fit(features[:2000], labels[:2000], features[2000:])
    distances = ood.distances(reference, features)
    assert (distances[2000:] <= 1).mean() == ood.WITHIN
    inverse = np.linalg.inv(mixing.T @ mixing)
    expected = [min(mahalanobis(x, np.full(5, 10.0 * label), inverse) for label in range(3)) for x in features]
    np.testing.assert_allclose(distances / distances.mean(), expected / np.mean(expected), rtol=0.2)


def test_features_are_the_later_blocks_averaged():
    network, images = mnist_flax.load(), data.load("digits", None, 0).test.images[:3]
    outputs = network.activations(images)
    expected = np.concatenate([outputs[block].mean((1, 2)) for block in ood.BLOCKS], axis=-1)
    assert expected.shape == (3, ood.NUM_FEATURES)
    np.testing.assert_allclose(network.features(images), expected, atol=1e-5)
    assert network.features(images[:0]).shape == (0, ood.NUM_FEATURES)
    # What integers are scaled by goes by the same outputs, by NumPy alone.
    largest = integers.maxima(network, Examples(images, np.arange(3)))
    np.testing.assert_allclose(largest, [outputs[block].max() for block in BLOCKS], rtol=1e-4)


def test_what_is_no_digit_is_told_from_what_is():
    network = mnist_flax.load()
    digits = data.load("digits", None, 0).test.images[:100]
    _, verdicts = answers.judge(network, np.stack([draw(picture) for picture in digits / np.float32(255)]))
    assert verdicts.count("digit") / len(digits) > 0.9
    kinds = (drawings.scribbles, drawings.polygons, drawings.stripes)
    pictures = [1 - kind(np.random.RandomState(seed)) for kind in kinds for seed in range(20)]
    images = np.stack([draw(ink) for ink in pictures])
    _, verdicts = answers.judge(network, images)
    assert verdicts.count("not like a digit") / len(verdicts) > 0.7
    # A network of which nothing but its weights is known goes by probability.
    plain = Classifier(network.variables, network.card)
    assert plain.novelty(images) is None
    assert set(answers.judge(plain, images)[1]) == {"digit", "unclear"}


def test_most_fonts_digits_are_named():
    assert len(drawings.fonts()) >= 10
    network = mnist_flax.load()
    pictures = list(drawings.glyphs("38"))[1::3]  # one of three sizes
    pages = [read(network, of_grey(grey)) for grey in pictures]
    found = [verdicts.named(page) for page in pages]
    right = [label == ("3" if i < len(pages) / 2 else "8") for i, label in enumerate(found)]
    assert np.mean(right) > 0.9


def test_digits_that_are_not_mnists(tmp_path, capsys, mnist_dir):
    network = mnist_flax.load()
    card = network.card | {"config": network.card["config"] | {"val_size": 100}}
    weights.save(tmp_path / "w.safetensors", network.variables, card, network.reference)
    transfer.main([str(tmp_path / "w.safetensors"), "--data-dir", str(mnist_dir)])
    accuracies = [float(cell) for cell in capsys.readouterr().out.splitlines()[2].strip("| ").split(" | ")[2:]]
    assert len(accuracies) == 5
    assert min(accuracies) > 90


def test_weights_files_carry_it(tmp_path):
    network = mnist_flax.load()
    weights.save(tmp_path / "w.safetensors", network.variables, network.card, network.reference)
    loaded = weights.load(tmp_path / "w.safetensors")[2]
    assert loaded is not None
    assert network.reference is not None
    for ours, theirs in zip(loaded, network.reference, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    short = ood.MahalanobisStatistics(loaded.means[:, 1:], loaded.whitening[1:, 1:])
    weights.save(tmp_path / "short.safetensors", network.variables, network.card, short)
    with pytest.raises(UserError, match=r"does not hold this network.*reference/means"):
        mnist_flax.load(tmp_path / "short.safetensors")


def test_mnists_own_digits_are_seldom_novel(mnist_dir):
    images = data.load("mnist", mnist_dir, 0).test.images
    assert (mnist_flax.load().novelty(images) > 1).mean() < 0.006
