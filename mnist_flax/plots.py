"""Pictures of runs and networks, as matplotlib figures. Nothing here touches files."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure

from mnist_flax import metrics
from mnist_flax.logs import Row

Images = UInt8[np.ndarray, "n 28 28"]


def learning_curves(histories: dict[str, list[Row]]) -> Figure:
    """Loss, error and learning rate by epoch, every run in a colour of its own; training dashed, validation solid."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    loss, error, rate = figure.subplots(1, 3)
    for i, (run, history) in enumerate(histories.items()):
        style: Any = {"color": f"C{i % 10}", "marker": "."}
        epochs = [row["epoch"] for row in history]
        for split, line in (("train", "--"), ("val", "-")):
            loss.plot(epochs, [row[f"{split}_loss"] for row in history], line, **style)
            error.plot(epochs, [100 * (1 - row[f"{split}_accuracy"]) for row in history], line, **style)
        rate.plot(epochs, [row["learning_rate"] for row in history], label=run, **style)
    for axes, label in ((loss, "loss"), (error, "error, %"), (rate, "learning rate")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    # As accuracies 99.4 and 99.6 % would look the same.
    loss.set_yscale("log")
    error.set_yscale("log")
    loss.set_title("training dashed, validation solid", fontsize="small")
    figure.legend(loc="outside lower center", ncols=4, fontsize="x-small")
    return figure


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
    bottom.set_yscale("log")
    bottom.set(xlabel="probability of the predicted class", ylabel="images")
    return figure


def _grid(images: Any, titles: list[str] | None = None, columns: int = 10, **options: Any) -> Figure:
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(columns, rows * (1.25 if titles else 1.0)), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for i, (axes, image) in enumerate(zip(panels.flat, images, strict=False)):
        axes.imshow(image, **{"cmap": "gray", **options})
        if titles:
            axes.set_title(titles[i], fontsize="x-small")
    return figure


def misclassified(
    images: Images,
    labels: metrics.Labels,
    log_probabilities: metrics.LogProbabilities,
    names: tuple[str, ...],
) -> Figure:
    """Every image that is classified wrongly, the most confident first: true class → predicted, probability."""
    predicted, confidence = log_probabilities.argmax(-1), np.exp(log_probabilities.max(-1))
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
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
