"""The sections of the report, as HTML."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from mnist_flax.config import Config
from mnist_flax.data import Dataset, Examples
from mnist_flax.inference import metrics
from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import BLOCKS, count_parameters
from mnist_flax.training.contents import Recorded
from mnist_flax.training.selection import interval_of_mean
from mnist_flax.views import charts, html, plots
from mnist_flax.views.html import Html, element, escape, join
from mnist_flax.views.runs import Run, day, duration, interval, percent

# The page shows as many mistakes; misclassified-images.png has more.
MOST_SHOWN = 120


def notes(run: Run, config: Config, dataset: Dataset) -> Html:
    """What a reader must know before any figure."""
    found = []
    if run.summary is None:
        done = max(result["epochs_run"] for result in run.results)
        found.append(f"This run is not finished: {done} of {config.epochs} epochs are done.")
    if run.summary and run.summary.get("dataset_note"):
        found.append(f"Trained on {dataset.name}, not on MNIST: {run.summary['dataset_note']}.")
    if dataset.selection_split == "test":
        found.append("The network was selected on the test set itself, so its test accuracy is biased upwards.")
    return join(element("p", note, class_="notice") for note in found)


def scores(run: Run, figures: dict[str, Any]) -> Html:
    """The test accuracy in large type, with how sure it is."""
    summary, count = run.summary or {}, figures["num_examples"]
    if len(run.results) == 1 or not summary:
        title = "Test accuracy" if summary else "Test accuracy so far"
        return _score_of_one(title, summary.get("test_accuracy", figures["accuracy"]), count)
    bounds = interval_of_mean([result["test_accuracy"] for result in run.results])
    mean = _score(
        f"Test accuracy, mean of {len(run.results)} seeds",
        summary["test_accuracy"],
        f"standard deviation {100 * summary['test_accuracy_std']:.2f} points",
        *([f"95 % interval of the mean {interval(*bounds)}"] if bounds else []),
    )
    return join((mean, _score_of_one("Their ensemble", summary["ensemble"]["test_accuracy"], count)))


def _score_of_one(title: str, accuracy: float, count: int) -> Html:
    correct = round(accuracy * count)
    bounds = interval(*metrics.accuracy_interval(correct, count))
    return _score(title, accuracy, f"{correct:,} of {count:,} images", f"95 % interval {bounds}")


def _score(title: str, accuracy: float, *details: str) -> Html:
    number, sign = percent(accuracy).split("\u00a0")
    large = element("p", number, element("small", "\u00a0", sign), class_="score")
    return element("div", element("h2", title), large, element("p", join(details, Html("<br>")), class_="detail"))


def facts(run: Run, config: Config, dataset: Dataset, network: Classifier) -> Html:
    """What was trained, on what, how it was selected, and what it took."""
    summary, seeds = run.summary or {}, [result["seed"] for result in run.results if "seed" in result]
    held_out = len(dataset.validation.labels) if dataset.selection_split == "validation" else 0
    selection = f"{held_out:,} held-out images" if held_out else f"the {len(dataset.test.labels):,} test images"
    validation = [result["val_accuracy"] for result in run.results]
    chosen = ", ".join(dict.fromkeys(str(result["best_epoch"]) for result in run.results))
    versions = summary.get("versions", {})
    rows = {
        "Network": f"{count_parameters(network.variables['params']):,} parameters, preset {config.preset}",
        "Started from": config.initial_weights or "",
        "Teacher": config.teacher or "",
        "Data": f"{dataset.name}: {len(dataset.train.labels):,} training"
        + (f", {held_out:,} held-out" if held_out else "")
        + f" and {len(dataset.test.labels):,} test images",
        "Selected": f"epoch {chosen}, by the accuracy on {selection}: "
        + " to ".join(dict.fromkeys(map(percent, (min(validation), max(validation))))),
        "Seeds" if len(seeds) > 1 else "Seed": f"{len(seeds)}, from {min(seeds)} to {max(seeds)}"
        if len(seeds) > 1
        else str(*seeds),
        "Ended": "; ".join(dict.fromkeys(str(result.get("stopped_because", "")) for result in run.results)),
        "Training time": duration(summary["train_seconds"]) + f", {summary['images_per_second']:,.0f} images/s"
        if {"train_seconds", "images_per_second"} <= set(summary)
        else "",
        "Devices": summary.get("devices", ""),
        "Date": day(run),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    return join(element("div", element("dt", name), element("dd", value)) for name, value in rows.items() if value)


def curves(histories: charts.Histories) -> dict[str, Html]:
    """The learning curves, with a legend."""
    pictures = [
        element(
            "figure",
            Html(charts.svg(charts.learning_curve(caption, histories), caption.replace(" ", "-"))),
            **{"role": "img", "aria-label": f"{caption} by epoch"},
        )
        for caption in charts.CURVES
    ]
    entries = charts.series(histories).items()
    owners = [element("li", element("i", style=f"background:var(--{colour})"), name) for name, colour in entries]
    return {"legend": join(owners if len(owners) > 1 else []), "curves": join(pictures)}


def classes(per_class: dict[str, dict[str, float]]) -> Html:
    """How good the network is at each class."""
    rows = [
        (name, *(f"{row[key]:.4f}" for key in ("precision", "recall", "f1_score")), f"{row['support']:,.0f}")
        for name, row in per_class.items()
    ]
    return html.table(("class", "precision", "recall", "F1", "images"), rows, "Every class")


def confusion(matrix: Int[np.ndarray, "classes classes"], names: tuple[str, ...]) -> Html:
    """The confusion matrix; colour stands for the errors alone, or the diagonal would outshine them."""
    most = max(1, (matrix * (1 - np.eye(len(matrix), dtype=int))).max())

    def cell(i: int, j: int, count: int) -> Html:
        if i == j:
            return element("td", count, class_="right")
        return element("td", count, style=f"--share:{count / most:.2f}") if count else element("td", "·", class_="none")

    rows = [(names[i], *(cell(i, j, count) for j, count in enumerate(row))) for i, row in enumerate(matrix.tolist())]
    head = [element("span", name) for name in names]
    kind = "matrix long" if max(map(len, names)) > 2 else "matrix"
    return html.table(("class", *head), rows, "Confusion matrix", kind)


def reliability(labels: metrics.Labels, log_probabilities: metrics.LogProbabilities) -> Html:
    """The reliability diagram."""
    return Html(charts.svg(charts.reliability_diagram(labels, log_probabilities), "reliability"))


def mistakes(
    examples: Examples, log_probabilities: metrics.LogProbabilities, names: tuple[str, ...]
) -> dict[str, Html]:
    """The most confident mistakes, and how many there are."""
    wrong = plots.mistakes(examples.labels, log_probabilities, names)
    shown = [
        element(
            "li",
            html.grey(examples.images[mistake.place]),
            element("b", f"{mistake.label} → {mistake.predicted}"),
            f" {mistake.probability:.0%}".replace("%", "\u00a0%"),
        )
        for mistake in wrong[:MOST_SHOWN]
    ]
    count = f"{len(wrong):,} of {len(examples.labels):,} test images"
    if len(wrong) > MOST_SHOWN:
        count += f", of which the {MOST_SHOWN} with the highest probability"
    return {"mistake_count": escape(count), "mistakes": join(shown)}


def augmentation(
    images: UInt8[np.ndarray, "n 28 28"], samples: UInt8[np.ndarray, "n copies 28 28"], recorded: Recorded
) -> Html:
    """Images, each followed by what augmentation made of it."""
    rows = [(html.grey(images[i]), *map(html.grey, copies)) for i, copies in enumerate(samples)]
    head = ("image", element("th", "augmented copies", colspan=samples.shape[1], scope="col"))
    note = "Drawn with the options that this version has; the run had others, so its images may have been different."
    pictures = html.table(head, rows, "Augmentation", "pictures samples")
    return join((element("p", note, class_="note"), pictures)) if recorded.unknown else pictures


def filters(kernel: Float[np.ndarray, "height width 1 features"]) -> Html:
    """The first layer's filters."""
    limit = float(np.abs(kernel).max())
    return join(html.diverging(kernel[:, :, 0, i], limit, f"Filter {i + 1}") for i in range(kernel.shape[-1]))


def activations(network: Classifier, examples: Examples) -> Html:
    """What each block puts out for an image of each class."""
    present, first = np.unique(examples.labels, return_index=True)
    maps = network.activations(examples.images[first])
    sizes = ["×".join(map(str, maps[name].shape[1:])) for name in BLOCKS]
    head = ["image", *(join((element("b", name), size), " ") for name, size in zip(BLOCKS, sizes, strict=True))]
    rows = [
        (
            html.grey(examples.images[index], network.class_names[label]),
            *(html.feature_maps(maps[name][i]) for name in BLOCKS),
        )
        for i, (label, index) in enumerate(zip(present, first, strict=True))
    ]
    return html.table(head, rows, "Feature maps of every block", "pictures maps")


def which(run: Run, network: Classifier, figures: dict[str, Any], several_runs: bool) -> Html:
    """Which network the tables and pictures are of, where there is more than one, and its figures."""
    of = []
    if several_runs:
        of.append(f"run {run.path}")
    if len(run.seeds) > 1:
        of.append(f"seed {network.card.get('seed')}, the one with the highest accuracy in selection")
    calibrated = (
        "" if network.temperature == 1 else f"; its logits are divided by a temperature, {network.temperature:.3f}"
    )
    return escape(
        f"{'Of ' + ', '.join(of) + ': accuracy' if of else 'Accuracy'} {percent(figures['accuracy'])}, "
        f"loss {figures['loss']:.4f}, calibration error {figures['calibration_error']:.4f} on the test set{calibrated}."
    )
