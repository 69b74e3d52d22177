import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnist_flax
from mnist_flax import evaluate, weights
from mnist_flax.classifier import Classifier
from mnist_flax.errors import UserError

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
    logits = network.model.apply(network.variables, network.normalization(jnp.asarray(IMAGES)))
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)
    np.testing.assert_array_equal(labels, probabilities.argmax(-1))
    assert network.predict(IMAGES[:0])[1].shape == (0, 10)


def test_shifts_average_over_moved_images(file):
    network = mnist_flax.load(file)
    image = np.pad(IMAGES[:, 4:24, 4:24], ((0, 0), (4, 4), (4, 4)))
    moved = [np.roll(image, (down, right), (1, 2)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    expected = np.mean([network.predict(images)[1] for images in moved], axis=0)
    np.testing.assert_allclose(network.predict(image, shifts=1)[1], expected, atol=1e-5)


def test_evaluate_counts_as_scikit_learn_does(file, monkeypatch):
    _, (_, labels), log_probabilities, figures = evaluate.evaluate(file, None, "test", None, 0)
    hits = log_probabilities.argmax(-1) == labels
    assert (figures["num_examples"], figures["accuracy"]) == (359, hits.mean())
    matrix = np.array(figures["confusion_matrix"])
    assert matrix.sum() == 359
    assert np.trace(matrix) == hits.sum()
    for digit, row in figures["per_class"].items():
        assert row["support"] == matrix[int(digit)].sum()
        assert row["recall"] == pytest.approx(matrix[int(digit), int(digit)] / row["support"])
    assert "accuracy" in evaluate.describe(figures)
    assert evaluate.evaluate(file, None, "validation", None, 0).figures["num_examples"] == 119
    assert evaluate.evaluate(file, None, "train", None, 0).figures["num_examples"] == 1319
    # Of a data set that is not the network's own, what a run would hold out: MNIST's 5,000 are more than there are.
    assert evaluate.evaluate(None, "digits", "validation", None, 0).figures["num_examples"] == 119


def test_validation_split_of_a_run_that_had_none(golden_weights, card, tmp_path):
    card = {**card, "config": {**card["config"], "val_size": 0}}
    weights.save(tmp_path / "w.safetensors", golden_weights, card)
    with pytest.raises(UserError, match="held no images out"):
        evaluate.evaluate(tmp_path / "w.safetensors", None, "validation", None, 0)


def test_evaluate_command(file, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "mnist_flax.evaluate"]
    arguments = [file, "--json", "--save-plots", tmp_path / "new" / "pictures"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert {"accuracy", "loss", "num_examples"} <= set(figures)
    assert {path.name for path in (tmp_path / "new" / "pictures").iterdir()} == {
        *("confusion-matrix.png", "reliability.png", "misclassified-images.png"),
        *("first-layer-filters.png", "activations.png"),
    }
    failed = subprocess.run([*command, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.splitlines()) == 1


def test_importing_the_package_imports_nothing_heavy():
    code = "import mnist_flax, sys; print(sorted({'jax', 'flax'} & set(sys.modules)), mnist_flax.Classifier.__name__)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == f"[] {Classifier.__name__}\n"
