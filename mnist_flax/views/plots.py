"""Pictures of runs and networks: matplotlib figures where there are axes, else Pillow images."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mnist_flax.data import Examples
from mnist_flax.files import SIGN, require_ours, write_bytes
from mnist_flax.inference import metrics
from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import BLOCKS
from mnist_flax.views.charts import reliability_diagram
from mnist_flax.views.style import STYLE, Figure, matplotlib

Images = UInt8[np.ndarray, "n 28 28"]
Picture = Figure | Image.Image

# More mistakes than this are of no use to look at.
MOST_MISTAKES = 1000


def of_network(
    network: Classifier, examples: Examples, log_probabilities: metrics.LogProbabilities, figures: dict[str, Any]
) -> dict[str, Picture]:
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
def save(drawn: dict[str, Picture], directory: Path) -> dict[str, Path]:
    """Write pictures as PNGs, named by their captions; returns the files by caption.

    Raises:
        UserError: a file is in the way that is not ours.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = {caption: directory / f"{caption.lower().replace(' ', '-')}.png" for caption in drawn}
    require_ours(*files.values())
    pictures = {file: io.BytesIO() for file in files.values()}
    signed = PngInfo()
    signed.add_text("Software", SIGN)
    for caption, file in files.items():  # drawing takes seconds: if it is stopped, none is written
        picture = drawn[caption]
        if isinstance(picture, Figure):
            picture.savefig(pictures[file], dpi=110, metadata={"Software": SIGN})
        else:
            picture.save(pictures[file], "PNG", pnginfo=signed)
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


def tiled(
    tiles: Sequence[UInt8[np.ndarray, "..."]],
    columns: int,
    side: int = 112,
    *,
    head: Sequence[str] = (),
    captions: Sequence[str] = (),
) -> Image.Image:
    """Grey or coloured tiles in rows, each enlarged by a whole number so that it fits into a square of `side` pixels.

    By Pillow, which takes a tenth of matplotlib's time for hundreds of small images.

    Args:
        tiles: of any sizes.
        columns: the tiles of a row.
        side: in pixels.
        head: what stands above each column, once.
        captions: what stands above each tile.
    """
    gap, line = side // 14, side // 10 + 6
    top, above, rows = (2 * line if head else 0), (line if captions else 0), max(1, -(-len(tiles) // columns))
    across, down = side + gap, side + gap + above
    picture = Image.new("RGB", (columns * across, top + rows * down), "white")
    write = functools.partial(ImageDraw.Draw(picture).text, fill="black", font=_font(side // 10), align="center")
    for i, tile in enumerate(tiles):
        height, width = (side // max(tile.shape[:2]) * length for length in tile.shape[:2])
        left, upper = i % columns * across + gap // 2, top + i // columns * down + above + gap // 2
        enlarged = Image.fromarray(tile).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(enlarged, (left + (side - width) // 2, upper + (side - height) // 2))
        if captions:
            write((left + side / 2, upper - gap / 2), captions[i], anchor="md")
    for i, title in enumerate(head):
        write((i * across + across / 2, top / 2), title, anchor="mm")
    if not len(tiles):
        write((picture.width / 2, picture.height / 2), "none", anchor="mm")
    return picture


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font of matplotlib's figures."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


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


def misclassified(
    images: Images,
    labels: metrics.Labels,
    log_probabilities: metrics.LogProbabilities,
    names: tuple[str, ...],
) -> Image.Image:
    """The images that are classified wrongly, the most confident first: true class → predicted, probability.

    All of them, unless there are more than `MOST_MISTAKES`.
    """
    wrong = mistakes(labels, log_probabilities, names)[:MOST_MISTAKES]
    captions = [f"{mistake.label} → {mistake.predicted}  {mistake.probability:.0%}" for mistake in wrong]
    return tiled([images[mistake.place] for mistake in wrong], 10, captions=captions)


def image_grid(images: Images) -> Image.Image:
    """Images side by side."""
    return tiled(list(images), 16)


def filters(kernel: Float[np.ndarray, "height width 1 features"]) -> Image.Image:
    """First-layer filters; blue is negative, red positive."""
    colours = diverging(kernel[:, :, 0].transpose(2, 0, 1), float(np.abs(kernel).max()))
    return tiled(list(colours), len(colours))


def diverging(values: Float[np.ndarray, "*shape"], limit: float) -> UInt8[np.ndarray, "*shape 3"]:
    """Values as colours, from -`limit` in blue to `limit` in red."""
    return np.ascontiguousarray(matplotlib.colormaps["RdBu_r"](0.5 + values / (2 * limit), bytes=True)[..., :3])


def activations(maps: dict[str, Float[np.ndarray, "n h w c"]], images: Images) -> Image.Image:
    """For each image a row: the image, then every block's channels, in a mosaic of their own."""
    sizes = ["×".join(map(str, values.shape[1:])) for values in maps.values()]
    head = ["", *(f"{name}\n{size}" for name, size in zip(maps, sizes, strict=True))]
    colours = matplotlib.colormaps["magma"]
    tiles = []
    for i, image in enumerate(images):
        bright = [(values[i], max(values[i].max(), 1e-9)) for values in maps.values()]
        tiles += [image, *(colours(mosaic(x / top, 1.0), bytes=True)[..., :3].copy() for x, top in bright)]
    return tiled(tiles, len(head), 220, head=head)


def mosaic(channels: Shaped[np.ndarray, "h w c"], gap: np.generic | float) -> Shaped[np.ndarray, "rows columns"]:
    """Channels side by side, four to a row, with a line of `gap` below and to the right of each."""
    padded = np.pad(channels, ((0, 1), (0, 1), (0, -channels.shape[-1] % 4)), constant_values=gap)
    height, width, _ = padded.shape
    tiles = padded.transpose(2, 0, 1).reshape(-1, 4, height, width)
    return tiles.transpose(0, 2, 1, 3).reshape(-1, 4 * width)
