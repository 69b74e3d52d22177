import re
import tomllib
from pathlib import Path

import jax
import numpy as np
from scipy import special

import mnist_flax
from mnist_flax import data
from mnist_flax.inference import classifier, integers
from mnist_flax.inference.evaluation import evaluate


def test_one_line_gives_model_variables_and_normalisation():
    model, variables, normalization = mnist_flax.load_pretrained()
    digits = data.load("digits", None, 0)
    logits = jax.jit(model.apply)(variables, normalization(digits.test.images))
    labels, probabilities = mnist_flax.load().predict(digits.test.images)
    np.testing.assert_array_equal(labels, np.asarray(logits).argmax(-1))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    # It was trained on MNIST alone: these digits come from other writers and another scanner.
    assert (labels == digits.test.labels).mean() > 0.9


def test_it_reproduces_its_card(mnist_dir):
    network, (images, _), log_probabilities, figures = evaluate(None, "mnist", "test", mnist_dir, 0)
    card = classifier.PRETRAINED.with_suffix(".md").read_text()
    stated = re.search(r"accuracy \*\*(\d+\.\d+)%\*\*", card)
    assert stated is not None
    assert f"{100 * figures['accuracy']:.2f}" == stated[1]
    assert f"loss {figures['loss']:.4f}" in card
    # In integers it names the 500 images alike that it is least certain of, and so all.
    hardest = np.argsort(log_probabilities.max(-1))[:500]
    in_integers = integers.from_network(network)
    logits = in_integers.logits(images[hardest])
    np.testing.assert_array_equal(logits.argmax(-1), log_probabilities[hardest].argmax(-1))
    assert network.card["int8_test_accuracy"] == figures["accuracy"] >= 0.996
    probabilities = special.softmax(logits * in_integers.unit / network.temperature, axis=-1)
    assert np.abs(probabilities - np.exp(log_probabilities[hardest])).mean() < 0.005


def test_a_wheel_carries_it():
    root = Path(__file__).parents[2]
    carried = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    lying = {path for path in (root / "mnist_flax").rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert root / "mnist_flax/inference/pretrained.safetensors" in lying
    assert lying == {
        path
        for package, patterns in carried.items()
        for pattern in patterns
        for path in (root / package.replace(".", "/")).glob(pattern)
        if path.is_file()
    }
