"""Pictures of runs and networks, as matplotlib figures."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from mnist_flax.inference import metrics
from mnist_flax.inference.evaluation import Evaluation
from mnist_flax.model import BLOCKS
from mnist_flax.training.selection import Row

Images = UInt8[np.ndarray, "n 28 28"]

# More mistakes than this are of no use to look at, and matplotlib draws no picture of more than 65,536 pixels a side.
MOST_MISTAKES = 1000


def of_network(evaluation: Evaluation) -> dict[str, Figure]:
    """What there is to see of a network and what it says of a data set, by caption."""
    network, (images, labels), log_probabilities, figures = evaluation
    names = network.class_names
    one_each = images[np.unique(labels, return_index=True)[1]]
    outputs = network.activations(one_each)
    kernel = np.asarray(network.variables["params"]["block1"]["conv"]["kernel"])
    return {
        "Confusion matrix": confusion(np.array(figures["confusion_matrix"]), names),
        "Reliability": reliability_diagram(labels, log_probabilities),
        "Misclassified images": misclassified(images, labels, log_probabilities, names),
        "First-layer filters": filters(kernel),
        "Activations": activations({name: outputs[name] for name in BLOCKS}, one_each),
    }


def save(figures: dict[str, Figure], directory: Path) -> dict[str, Path]:
    """Write figures as PNGs, named by their captions; the files, by caption."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {caption: directory / f"{caption.lower().replace(' ', '-')}.png" for caption in figures}
    for caption, file in files.items():
        figures[caption].savefig(file, dpi=110)
    return files


def learning_curves(histories: list[tuple[str, list[Row]]]) -> Figure:
    """Loss, error and learning rate by epoch, every name in a colour of its own; training dashed, validation solid."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    names = list(dict.fromkeys(name for name, _ in histories))
    for name, history in histories:
        style: Any = {"color": f"C{names.index(name) % 10}", "marker": ".", "linewidth": 1}
        epochs = [row["epoch"] for row in history]
        for split, line in (("train", "--"), ("val", "-")):
            loss.plot(epochs, [row[f"{split}_loss"] for row in history], line, **style)
            error.plot(epochs, [100 * (1 - row[f"{split}_accuracy"]) for row in history], line, **style)
        rate.plot(epochs, [row["learning_rate"] for row in history], **style)
    for axes, label in ((loss, "loss"), (error, "error, %"), (rate, "learning rate")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # As accuracies 99.4 and 99.6 % would look the same.
    _logarithmic(loss)
    _logarithmic(error)
    loss.set_title("training dashed, validation solid", fontsize="small")
    handles = [Line2D([], [], color=f"C{i % 10}", marker=".") for i in range(len(names))]
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize="x-small")
    return figure


def _logarithmic(axes: Any) -> None:
    """The vertical axis, with plain numbers: 30, not 3 × 10¹."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}" if high < 10 * low else NullFormatter())


def confusion(matrix: Int[np.ndarray, "classes classes"], names: tuple[str, ...]) -> Figure:
    """The confusion matrix; colour stands for the errors alone, or the diagonal would outshine them."""
    figure = Figure(figsize=(6.5, 6), layout="constrained")
    axes = figure.subplots()
    errors = matrix * (1 - np.eye(len(matrix), dtype=int))
    axes.imshow(errors, cmap="Reds", vmin=0, vmax=max(errors.max(), 1))
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            dark = i != j and errors[i, j] > 0.6 * errors.max()
            colour = "white" if dark else "black" if count else "lightgrey"
            axes.text(j, i, str(count), ha="center", va="center", fontsize="small", color=colour)
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def reliability_diagram(labels: metrics.Labels, log_probabilities: metrics.LogProbabilities) -> Figure:
    """Accuracy against the probability given, in 15 bins, over the number of images in each."""
    bins = metrics.reliability(labels, log_probabilities)
    figure = Figure(figsize=(5, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middles = [(row["low"] + row["high"]) / 2 for row in bins]
    top.bar(middles, [row["accuracy"] for row in bins], 1 / 15, edgecolor="white", label="accuracy")
    top.plot([row["confidence"] for row in bins], [row["confidence"] for row in bins], "k.", label="probability given")
    top.plot([0, 1], [0, 1], "k:", linewidth=1)
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    top.set_title(f"calibration error {metrics.calibration_error(labels, log_probabilities):.4f}")
    top.legend()
    bottom.bar(middles, [row["count"] for row in bins], 1 / 15, edgecolor="white", color="grey")
    _logarithmic(bottom)
    bottom.set(xlabel="probability of the predicted class", ylabel="images")
    return figure


def _grid(images: Any, titles: list[str] | None = None, columns: int = 10, **options: Any) -> Figure:
    """Images side by side, on one pair of axes: matplotlib takes 30 ms for a pair."""
    count, height, width = images.shape
    rows, gap, above = max(1, -(-count // columns)), width / 14, height / 4 if titles else 0.0
    across, down = width + gap, height + gap + above
    figure = Figure(figsize=(columns, rows * down / across))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for i, image in enumerate(images):
        left, top = i % columns * across + gap / 2, i // columns * down + gap / 2 + above
        axes.imshow(image, extent=(left, left + width, top + height, top), **{"cmap": "gray", **options})
        if titles:
            axes.text(left + width / 2, top - gap / 2, titles[i], ha="center", va="bottom", fontsize="x-small")
    axes.set(xlim=(0, columns * across), ylim=(rows * down, 0))
    if not count:
        figure.text(0.5, 0.5, "none", ha="center", va="center")
    return figure


def misclassified(
    images: Images,
    labels: metrics.Labels,
    log_probabilities: metrics.LogProbabilities,
    names: tuple[str, ...],
) -> Figure:
    """The images that are classified wrongly, the most confident first: true class → predicted, probability.

    All of them, unless there are more than `MOST_MISTAKES`.
    """
    predicted, confidence = log_probabilities.argmax(-1), np.exp(log_probabilities.max(-1))
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST_MISTAKES]
    titles = [f"{names[labels[i]]} → {names[predicted[i]]}  {confidence[i]:.0%}" for i in wrong]
    return _grid(images[wrong], titles, vmin=0, vmax=255)


def image_grid(images: Images) -> Figure:
    """Images side by side."""
    return _grid(images, columns=16, vmin=0, vmax=255)


def filters(kernel: Float[np.ndarray, "height width 1 features"]) -> Figure:
    """First-layer filters; blue is negative, red positive."""
    limit = float(np.abs(kernel).max())
    return _grid(kernel[:, :, 0].transpose(2, 0, 1), columns=kernel.shape[-1], cmap="RdBu_r", vmin=-limit, vmax=limit)


def activations(maps: dict[str, Float[np.ndarray, "n h w c"]], images: Images) -> Figure:
    """For each image a row: the image, then every block's channels, in a mosaic of their own."""
    figure = Figure(figsize=(1.5 * (1 + len(maps)), 1.5 * len(images)), layout="constrained")
    panels = figure.subplots(len(images), 1 + len(maps), squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, image in zip(panels, images, strict=True):
        row[0].imshow(image, cmap="gray")
    for column, (name, values) in enumerate(maps.items(), start=1):
        panels[0][column].set_title(f"{name}\n{values.shape[1]}×{values.shape[2]}×{values.shape[3]}", fontsize="small")
        for row, value in zip(panels, values, strict=True):
            row[column].imshow(_mosaic(value), cmap="magma")
    return figure


def _mosaic(channels: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "rows columns"]:
    """Channels side by side, four to a row."""
    height, width, count = channels.shape
    padded = np.pad(channels, ((0, 1), (0, 1), (0, -count % 4)), constant_values=float(channels.max()))
    tiles = padded.transpose(2, 0, 1).reshape(-1, 4, height + 1, width + 1)
    return tiles.transpose(0, 2, 1, 3).reshape(-1, 4 * (width + 1))
