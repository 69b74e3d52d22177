import subprocess
import sys

import jax
import numpy as np
import pytest

import mnist_flax
from mnist_flax.errors import UserError
from mnist_flax.inference import weights
from mnist_flax.inference.classifier import Classifier

IMAGES = np.random.RandomState(0).randint(0, 256, (30, 28, 28)).astype(np.uint8)


@pytest.fixture(scope="module")
def file(golden_weights, card, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    weights.save(path, golden_weights, card)
    return path


def test_weights_come_back_as_they_were(file, golden_weights, card):
    loaded, loaded_card, reference = weights.load(file)
    jax.tree.map(np.testing.assert_array_equal, loaded, golden_weights)
    assert loaded_card == card
    assert reference is None
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_files_that_are_not_this_network_are_refused(file, card, tmp_path):
    for name, content in (("empty", b""), ("text", b"hello" * 100), ("cut", file.read_bytes()[:-1000])):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a safetensors file"):
            mnist_flax.load(path)
    other = jax.tree.map(lambda x: x, weights.load(file)[0])
    other["params"]["block1"]["conv"]["kernel"] = np.zeros((3, 3, 1, 9), np.float32)
    weights.save(tmp_path / "other.safetensors", other, card)
    with pytest.raises(UserError, match="does not hold this network"):
        mnist_flax.load(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        mnist_flax.load(tmp_path / "nothing")


def test_predictions_are_the_models(file):
    network = mnist_flax.load(file)
    labels, probabilities = network.predict(IMAGES)
    logits = jax.jit(network.model.apply)(network.variables, network.normalization(IMAGES))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)
    np.testing.assert_array_equal(labels, probabilities.argmax(-1))
    assert network.predict(IMAGES[:0])[1].shape == (0, 10)


def test_shifts_average_over_moved_images(file):
    network = mnist_flax.load(file)
    image = np.pad(IMAGES[:, 4:24, 4:24], ((0, 0), (4, 4), (4, 4)))
    moved = [np.roll(image, (down, right), (1, 2)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    expected = np.mean([network.predict(images)[1] for images in moved], axis=0)
    np.testing.assert_allclose(network.predict(image, shifts=1)[1], expected, atol=1e-5)


@pytest.mark.parametrize(
    "method", ["predict", "log_probabilities", "novelty", "features", "outputs", "judge", "activations"]
)
def test_every_method_takes_images_as_they_come_and_answers_the_same(method):
    """`as_images` has a test over all shapes, types and ranges."""
    answer = getattr(mnist_flax.load(), method)
    for several in (IMAGES[:8].astype(np.float32) / 255, IMAGES[:8, ..., None], IMAGES[:8].reshape(8, 784).tolist()):
        jax.tree.map(np.testing.assert_array_equal, answer(several), answer(IMAGES[:8]))
    jax.tree.map(np.testing.assert_array_equal, answer(IMAGES[0]), answer(IMAGES[:1]))
    for refused in (IMAGES[:8, 4:24, 4:24], IMAGES[:8] / 100, IMAGES[:8] // 255):
        with pytest.raises(UserError, match=r"images of shape \(8, .* and type .*, with values from 0 to"):
            answer(refused)


def test_importing_the_package_imports_nothing_heavy():
    code = "import mnist_flax, sys; print(sorted({'jax', 'flax'} & set(sys.modules)), mnist_flax.Classifier.__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"[] {Classifier.__name__}\n"
