import numpy as np
import pytest
import sklearn.metrics

from mnist_flax import data
from mnist_flax.errors import UserError
from mnist_flax.evaluate import parse
from mnist_flax.inference import evaluation, integers, weights
from mnist_flax.inference.evaluation import describe, evaluate
from mnist_flax.reading.folder import load


@pytest.fixture(scope="module")
def file(golden_weights, card, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    weights.save(path, golden_weights, card)
    return path


def test_evaluate_counts_as_scikit_learn_does(file):
    _, (_, labels), log_probabilities, figures = evaluate(file, None, "test", None, 0)
    hits = log_probabilities.argmax(-1) == labels
    assert (figures["num_examples"], figures["accuracy"]) == (359, hits.mean())
    matrix = np.array(figures["confusion_matrix"])
    assert matrix.sum() == 359
    assert np.trace(matrix) == hits.sum()
    predicted, kinds = log_probabilities.argmax(-1), ("precision", "recall", "f1_score", "support")
    np.testing.assert_array_equal(matrix, sklearn.metrics.confusion_matrix(labels, predicted))
    expected = sklearn.metrics.precision_recall_fscore_support(labels, predicted, zero_division=0.0)
    found = [[row[kind] for row in figures["per_class"].values()] for kind in kinds]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert "accuracy" in describe(figures)
    assert evaluate(file, None, "validation", None, 0).figures["num_examples"] == 119
    assert evaluate(file, None, "train", None, 0).figures["num_examples"] == 1319
    # Of a data set that is not the network's own, what a run would hold out: MNIST's 5,000 are more than there are.
    assert evaluate(None, "digits", "validation", None, 0).figures["num_examples"] == 119


def test_a_class_that_is_never_seen_or_named_has_zeros():
    log_probabilities = np.log(np.array([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]]))
    rows = evaluation.figures_of(np.array([0, 1]), log_probabilities, ("a", "b", "c"))["per_class"]
    assert rows["a"] == {"precision": 0.5, "recall": 1.0, "f1_score": pytest.approx(2 / 3), "support": 1.0}
    assert rows["b"] == {"precision": 0.0, "recall": 0.0, "f1_score": 0.0, "support": 1.0}
    assert rows["c"] == dict.fromkeys(rows["a"], 0.0)


def test_in_integers(file):
    network, (images, labels), log_probabilities, figures = evaluate(file, None, "test", None, 0, int8=True)
    predicted = integers.from_network(network).logits(images).argmax(-1)
    np.testing.assert_array_equal(log_probabilities.argmax(-1), predicted)
    assert figures["accuracy"] == (predicted == labels).mean()
    assert describe(figures).splitlines()[0].endswith(" in integers on digits, test split")
    assert figures["loss"] == pytest.approx(evaluate(file, None, "test", None, 0).figures["loss"], rel=0.1)
    with pytest.raises(UserError, match="--int8 and --shifts exclude each other"):
        parse(["--int8", "--shifts", "1"])


def test_validation_split_of_a_run_that_had_none(golden_weights, card, tmp_path):
    card = {**card, "config": {**card["config"], "val_size": 0}}
    weights.save(tmp_path / "w.safetensors", golden_weights, card)
    with pytest.raises(UserError, match="held no images out"):
        evaluate(tmp_path / "w.safetensors", None, "validation", None, 0)


def test_a_run_held_out_the_same_images_wherever_its_data_are_now(golden_weights, card, tmp_path, monkeypatch):
    nothing = np.zeros((0, 10), np.float32), {}
    monkeypatch.setattr(evaluation, "measure", lambda *measured, **_: evaluation.Evaluation(*measured[:2], *nothing))
    images, labels = (array[:300] for array in data.load("digits", None, 0).train)
    for name, count in (("moved", 300), ("others", 299), ("few", 50)):
        x, y = images[:count], labels[:count]
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    held_out = load(str(tmp_path / "moved.npz"), None, 60)
    origin = {
        "dataset": str(tmp_path / "gone.npz"),
        "normalization": held_out.normalization._asdict(),
        "config": {**card["config"], "val_size": 60},
    }
    weights.save(tmp_path / "w.safetensors", golden_weights, {**card, **origin})
    for name, num_held_out in (("moved", 60), ("others", 299 // 12), ("few", 50 // 12), ("digits", 119)):
        dataset = name if name == "digits" else str(tmp_path / f"{name}.npz")
        _, examples, *_ = evaluate(tmp_path / "w.safetensors", dataset, "validation", None, 0, load)
        assert len(examples.labels) == num_held_out
        if name == "moved":
            np.testing.assert_array_equal(examples.images, held_out.validation.images)
