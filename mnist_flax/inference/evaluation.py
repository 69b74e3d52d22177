"""How good a trained network is on a data set: `evaluate` measures it, `describe` writes the figures as text."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from mnist_flax import data
from mnist_flax.config import NAMES, located
from mnist_flax.data import Dataset, Examples
from mnist_flax.errors import UserError
from mnist_flax.inference import classifier, integers, metrics
from mnist_flax.inference.classifier import Classifier
from mnist_flax.inference.metrics import LogProbabilities


class Evaluation(NamedTuple):
    """A network, the examples it was measured on, its answers, and the figures (what `--json` prints)."""

    network: Classifier
    examples: Examples
    log_probabilities: LogProbabilities
    figures: dict[str, Any]


def evaluate(
    checkpoint: Path | None,
    dataset: str | None,
    split: str,
    data_dir: Path | None,
    shifts: int,
    load: integers.Load = data.load,
    *,
    int8: bool = False,
) -> Evaluation:
    """Measure a network on a split.

    Args:
        checkpoint: see `classifier.load`.
        dataset: by default the one the network was trained on.
        split: "test", "validation" (held out) or "train" (the rest). Of the network's own data set they are those of
            its run; of another one those that a run has by default.
        data_dir: TFDS data directory.
        shifts: see `Classifier.predict`.
        load: `reading.folder.load`, which this layer may not import, if the data set may be a folder.
        int8: measure the network in integers, as `export --format c` writes it, without shifts.

    Raises:
        UserError: the network or the data cannot be loaded.
    """
    network = classifier.load(checkpoint)
    name: str = dataset or network.card["dataset"]
    loaded = load(name, data_dir, 0) if split == "test" else _divided(network, name, data_dir, load)
    loaded = loaded.relabelled(network.class_names)
    if split == "validation" and loaded.selection_split != "validation":
        raise UserError("this network's run held no images out: there is no validation split to evaluate it on")
    where = str(checkpoint) if checkpoint else "the shipped weights"
    in_integers = integers.from_network(network, data_dir, load) if int8 else None
    return measure(network, getattr(loaded, split), shifts, in_integers, checkpoint=where, dataset=name, split=split)


def _divided(network: Classifier, name: str, data_dir: Path | None, load: integers.Load) -> Dataset:
    """Load a data set; if the network was trained on it, split as its run did, even if it was moved or copied."""
    val_size = network.card["config"]["val_size"]
    if located(name) == located(network.card["dataset"]):
        return load(name, data_dir, val_size)
    if name not in NAMES:
        with suppress(UserError):  # it has too few images for that
            loaded = load(name, data_dir, val_size)
            if network.was_trained_on(loaded):
                return loaded
    return load(name, data_dir, None)


def measure(
    network: Classifier,
    examples: Examples,
    shifts: int = 0,
    in_integers: integers.IntegerNetwork | None = None,
    **origin: str,
) -> Evaluation:
    """Measure a network, in float32 or in integers, on examples; the figures begin with `origin`."""
    if in_integers:
        logits = in_integers.logits(examples.images) * (in_integers.unit / network.temperature)
        log_probabilities = special.log_softmax(logits.astype(np.float32), axis=-1)
    elif shifts:
        log_probabilities = network.log_probabilities(examples.images, shifts=shifts)
    else:
        log_probabilities, _ = network.outputs(examples.images)  # the calibration of a run has compiled this program
    figures = figures_of(examples.labels, log_probabilities, network.class_names)
    settings = {"shifts": shifts, "temperature": network.temperature, "int8": in_integers is not None}
    return Evaluation(network, examples, log_probabilities, {**origin, **settings, **figures})


def figures_of(
    labels: metrics.Labels, log_probabilities: LogProbabilities, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Accuracy with its 95 % interval, loss, calibration error, figures of each class, confusion matrix."""
    classes = range(len(class_names))
    predicted = log_probabilities.argmax(-1)
    matrix = np.bincount(labels * len(classes) + predicted, minlength=len(classes) ** 2).reshape(len(classes), -1)
    correct, support, named = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    # What cannot be divided is 0: the precision of a class that was never predicted.
    per_class = {
        "precision": correct / np.maximum(named, 1),
        "recall": correct / np.maximum(support, 1),
        "f1_score": 2 * correct / np.maximum(support + named, 1),
        "support": support,
    }
    return {
        "num_examples": len(labels),
        "accuracy": int(correct.sum()) / len(labels),
        "accuracy_ci95": metrics.accuracy_interval(int(correct.sum()), len(labels)),
        "loss": metrics.cross_entropy(labels, log_probabilities),
        "calibration_error": metrics.calibration_error(labels, log_probabilities),
        "per_class": {
            name: {kind: float(values[i]) for kind, values in per_class.items()} for i, name in enumerate(class_names)
        },
        "confusion_matrix": matrix.tolist(),
    }


def describe(figures: dict[str, Any]) -> str:
    """The figures of an evaluation as text."""
    low, high = figures["accuracy_ci95"]
    width = max(map(len, figures["per_class"])) + 2
    shifted = f", averaged over shifts of up to {figures['shifts']} pixels" if figures["shifts"] else ""
    in_integers = " in integers" if figures["int8"] else ""
    tempered = "" if figures["temperature"] == 1 else f", with temperature {figures['temperature']:.3f}"
    lines = [
        f"{figures['checkpoint']}{in_integers} on {figures['dataset']}, {figures['split']} split{shifted}",
        "",
        f"accuracy           {figures['accuracy']:.2%} of {figures['num_examples']:,} images "
        f"(95 % interval {low:.2%} to {high:.2%})",
        f"loss               {figures['loss']:.4f}{tempered}",
        f"calibration error  {figures['calibration_error']:.4f}",
        "",
        f"{'class':<{width}}{'precision':>10}{'recall':>9}{'F1':>9}{'images':>8}",
    ]
    for name, row in figures["per_class"].items():
        lines.append(
            f"{name:<{width}}{row['precision']:>10.4f}{row['recall']:>9.4f}{row['f1_score']:>9.4f}{row['support']:>8.0f}"
        )
    matrix = np.array(figures["confusion_matrix"])
    cell = len(str(matrix.max())) + 2
    lines += ["", "confusion matrix (rows: true class, columns: predicted)"]
    lines += [
        f"{name:<{width}}" + "".join(f"{n or '·':>{cell}}" for n in row)
        for name, row in zip(figures["per_class"], matrix.tolist(), strict=True)
    ]
    return "\n".join(lines)
