"""`python -m mnist_flax.evaluate`: how good a trained network is, on whichever data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mnist_flax.config import DATASETS
from mnist_flax.errors import ArgumentParser, UserError, command

if TYPE_CHECKING:
    from mnist_flax.classifier import Classifier
    from mnist_flax.data import Examples
    from mnist_flax.metrics import LogProbabilities

SPLITS = ("test", "validation", "train")


class Evaluation(NamedTuple):
    """A network, what it was measured on, what it said, and the figures of that (what `--json` prints)."""

    network: "Classifier"
    examples: "Examples"
    log_probabilities: "LogProbabilities"
    figures: dict[str, Any]


def evaluate(
    checkpoint: Path | None, dataset: str | None, split: str, data_dir: Path | None, shifts: int
) -> Evaluation:
    """Measure a network on a split.

    Args:
        checkpoint: see `classifier.load`.
        dataset: by default the one the network was trained on.
        split: "test", or the held-out "validation" or the rest, "train", of that network's run (of another data set
            what a run holds out by default).
        data_dir: TFDS data directory.
        shifts: see `Classifier.predict`.

    Raises:
        UserError: the network or the data cannot be had.
    """
    from mnist_flax import classifier, data

    network = classifier.load(checkpoint)
    name: str = dataset or network.card["dataset"]
    own = name == network.card["dataset"]
    loaded = data.load(name, data_dir, 0 if split == "test" else network.card["config"]["val_size"] if own else None)
    if split == "validation" and loaded.selection_split != "validation":
        raise UserError("this network's run held no images out: there is no validation split to evaluate it on")
    where = str(checkpoint) if checkpoint else "the shipped weights"
    return measure(network, getattr(loaded, split), shifts, checkpoint=where, dataset=name, split=split)


def measure(network: "Classifier", examples: "Examples", shifts: int, **origin: Any) -> Evaluation:
    """Measure a network on examples; `origin` says which they are, and opens the figures."""
    from sklearn.metrics import classification_report, confusion_matrix

    from mnist_flax import metrics

    images, labels = examples
    log_probabilities = network.log_probabilities(images, shifts=shifts)
    predicted = log_probabilities.argmax(-1)
    correct = int((predicted == labels).sum())
    classes = list(range(len(network.class_names)))
    names = list(network.class_names)
    never_predicted: Any = 0.0  # what the precision of such a class is; scikit-learn would warn
    report: Any = classification_report(
        labels, predicted, labels=classes, target_names=names, output_dict=True, zero_division=never_predicted
    )
    figures = {
        **origin,
        "num_examples": len(labels),
        "accuracy": correct / len(labels),
        "accuracy_ci95": metrics.accuracy_interval(correct, len(labels)),
        "loss": metrics.cross_entropy(labels, log_probabilities),
        "calibration_error": metrics.calibration_error(labels, log_probabilities),
        "shifts": shifts,
        "per_class": {name: {key.replace("-", "_"): value for key, value in report[name].items()} for name in names},
        "confusion_matrix": confusion_matrix(labels, predicted, labels=classes).tolist(),
    }
    return Evaluation(network, examples, log_probabilities, figures)


def describe(figures: dict[str, Any]) -> str:
    """The figures for people."""
    low, high = figures["accuracy_ci95"]
    width = max(map(len, figures["per_class"])) + 2
    shifted = f", averaged over shifts of up to {figures['shifts']} pixels" if figures["shifts"] else ""
    lines = [
        f"{figures['checkpoint']} on {figures['dataset']}, {figures['split']} split{shifted}",
        "",
        f"accuracy           {figures['accuracy']:.2%} of {figures['num_examples']:,} images "
        f"(95 % interval {low:.2%} to {high:.2%})",
        f"loss               {figures['loss']:.4f}",
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


@command
def main() -> None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m mnist_flax.evaluate",
        description="Measure a trained network: accuracy, loss, calibration, every class.",
        epilog="example: python -m mnist_flax.evaluate runs/mnist_training --split test --save-plots pictures",
    )
    parser.add_checkpoint()
    parser.add_argument("--dataset", choices=DATASETS, help="default: the one the network was trained on")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: %(default)s")
    parser.add_argument("--data-dir", type=Path, help="TFDS data directory")
    parser.add_argument(
        "--shifts", type=int, default=0, metavar="PIXELS", help="average over shifts of up to so many pixels each way"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--save-plots", type=Path, metavar="DIR", help="write pictures there as PNGs")
    options = parser.parse_args()
    if not 0 <= options.shifts <= 3:
        raise UserError(f"--shifts is {options.shifts}; it must be between 0 and 3")
    from mnist_flax.mesh import use_compilation_cache

    use_compilation_cache()
    evaluation = evaluate(options.checkpoint, options.dataset, options.split, options.data_dir, options.shifts)
    if options.save_plots is not None:
        from mnist_flax.views import plots

        plots.save(plots.of_network(*evaluation), options.save_plots)
    print(json.dumps(evaluation.figures) if options.json else describe(evaluation.figures))


if __name__ == "__main__":
    main()
