"""Pictures of runs and networks, as matplotlib figures."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from mnist_flax.data import Examples
from mnist_flax.files import SIGN, require_ours, write_bytes
from mnist_flax.inference import metrics
from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import BLOCKS
from mnist_flax.views.charts import reliability_diagram
from mnist_flax.views.style import STYLE, Figure

Images = UInt8[np.ndarray, "n 28 28"]


# More mistakes than this are of no use to look at, and matplotlib draws no picture of more than 65,536 pixels a side.
MOST_MISTAKES = 1000


def of_network(
    network: Classifier, examples: Examples, log_probabilities: metrics.LogProbabilities, figures: dict[str, Any]
) -> dict[str, Figure]:
    """All pictures of a network and of its answers on a data set, by caption. Takes what `evaluate` returns."""
    images, labels = examples
    names = network.class_names
    one_each = images[np.unique(labels, return_index=True)[1]]
    outputs = network.activations(one_each)
    return {
        "Confusion matrix": confusion(np.array(figures["confusion_matrix"]), names),
        "Reliability": reliability_diagram(labels, log_probabilities),
        "Misclassified images": misclassified(images, labels, log_probabilities, names),
        "First-layer filters": filters(first_kernel(network)),
        "Activations": activations({name: outputs[name] for name in BLOCKS}, one_each),
    }


def first_kernel(network: Classifier) -> Float[np.ndarray, "height width 1 features"]:
    """The weights of the first convolution."""
    return np.asarray(network.variables["params"]["block1"]["conv"]["kernel"])


@STYLE
def save(figures: dict[str, Figure], directory: Path) -> dict[str, Path]:
    """Write figures as PNGs, named by their captions; returns the files by caption.

    Raises:
        UserError: a file is in the way that is not ours.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = {caption: directory / f"{caption.lower().replace(' ', '-')}.png" for caption in figures}
    require_ours(*files.values())
    pictures = {file: io.BytesIO() for file in files.values()}
    for caption, file in files.items():  # drawing takes seconds: if it is stopped, none is written
        figures[caption].savefig(pictures[file], dpi=110, metadata={"Software": SIGN})
    for file, picture in pictures.items():
        write_bytes(file, picture.getvalue())
    return files


@STYLE
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


def _grid(
    images: Shaped[np.ndarray, "n h w"], titles: list[str] | None = None, columns: int = 10, **options: Any
) -> Figure:
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


class Mistake(NamedTuple):
    """A test image that is classified wrongly: its place in the data set, and the network's answer."""

    place: int
    label: str
    predicted: str
    probability: float


def mistakes(
    labels: metrics.Labels, log_probabilities: metrics.LogProbabilities, names: tuple[str, ...]
) -> list[Mistake]:
    """The images that are classified wrongly, the most confident mistake first."""
    predicted, confidence = log_probabilities.argmax(-1), np.exp(log_probabilities.max(-1))
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    return [Mistake(int(i), names[labels[i]], names[predicted[i]], float(confidence[i])) for i in wrong]


@STYLE
def misclassified(
    images: Images,
    labels: metrics.Labels,
    log_probabilities: metrics.LogProbabilities,
    names: tuple[str, ...],
) -> Figure:
    """The images that are classified wrongly, the most confident first: true class → predicted, probability.

    All of them, unless there are more than `MOST_MISTAKES`.
    """
    wrong = mistakes(labels, log_probabilities, names)[:MOST_MISTAKES]
    titles = [f"{mistake.label} → {mistake.predicted}  {mistake.probability:.0%}" for mistake in wrong]
    return _grid(images[[mistake.place for mistake in wrong]], titles, vmin=0, vmax=255)


@STYLE
def image_grid(images: Images) -> Figure:
    """Images side by side."""
    return _grid(images, columns=16, vmin=0, vmax=255)


@STYLE
def filters(kernel: Float[np.ndarray, "height width 1 features"]) -> Figure:
    """First-layer filters; blue is negative, red positive."""
    limit = float(np.abs(kernel).max())
    return _grid(kernel[:, :, 0].transpose(2, 0, 1), columns=kernel.shape[-1], cmap="RdBu_r", vmin=-limit, vmax=limit)


@STYLE
def activations(maps: dict[str, Float[np.ndarray, "n h w c"]], images: Images) -> Figure:
    """For each image a row: the image, then every block's channels, in a mosaic of their own.

    All on one pair of axes: a pair for each takes 1.5 s more.
    """
    columns: dict[str, Sequence[np.ndarray] | np.ndarray] = {"": images}
    for name, values in maps.items():
        size = "×".join(map(str, values.shape[1:]))
        columns[f"{name}\n{size}"] = [mosaic(value, value.max()) for value in values]
    above = 0.35
    figure = Figure(figsize=(1.5 * len(columns), 1.5 * (len(images) + above)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for left, (title, pictures) in enumerate(columns.items()):
        axes.text(left + 0.5, above - 0.05, title, ha="center", va="bottom", fontsize="small")
        for row, picture in enumerate(pictures):
            height, width = 0.92 * np.array(picture.shape) / max(picture.shape)
            x, y = left + (1 - width) / 2, above + row + (1 - height) / 2
            axes.imshow(picture, extent=(x, x + width, y + height, y), cmap="magma" if title else "gray")
    axes.set(xlim=(0, len(columns)), ylim=(above + len(images), 0))
    return figure


def mosaic(channels: Shaped[np.ndarray, "h w c"], gap: np.generic | float) -> Shaped[np.ndarray, "rows columns"]:
    """Channels side by side, four to a row, with a line of `gap` below and to the right of each."""
    padded = np.pad(channels, ((0, 1), (0, 1), (0, -channels.shape[-1] % 4)), constant_values=gap)
    height, width, _ = padded.shape
    tiles = padded.transpose(2, 0, 1).reshape(-1, 4, height, width)
    return tiles.transpose(0, 2, 1, 3).reshape(-1, 4 * width)
