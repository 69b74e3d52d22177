"""Learning curves and the reliability diagram, as matplotlib figures."""

import io
import re
from collections.abc import Callable
from typing import Any

from mnist_flax.inference import metrics
from mnist_flax.training.selection import Row
from mnist_flax.views.style import COLOURS, STYLE, Figure  # first: it imports matplotlib

# isort: split
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

Histories = list[tuple[str, list[Row]]]  # the rows of each seed, under the name it has in the legend

SERIES = ("accent", *(f"series-{i}" for i in range(1, 8)))


@STYLE
def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element for a page that defines `COLOURS` as CSS variables; `name` keeps its ids apart."""
    buffer = io.StringIO()
    no_metadata: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = re.sub(r'^.*?<svg [^>]*?(viewBox="[^"]*")[^>]*>', r"<svg \1>", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'xlink:href="#|id="|url\(#', lambda match: match[0].removeprefix("xlink:") + name + "-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    return re.sub(r"\s*\n\s*", "\n", text)


def series(histories: Histories) -> dict[str, str]:
    """The colour's name for each name in the legend."""
    names = dict.fromkeys(name for name, _ in histories)
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(names)}


@STYLE
def learning_curves(histories: Histories) -> Figure:
    """Loss, error and learning rate by epoch, every name in a colour of its own; training dashed, validation solid."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, draw in zip(figure.subplots(1, 3), CURVES.values(), strict=True):
        draw(axes, histories)
    colours = series(histories)
    handles = [Line2D([], [], color=COLOURS[colour], marker=".") for colour in colours.values()]
    legend = figure.legend(
        handles,
        ["run"] * len(handles),  # matplotlib would leave out names that begin with an underscore
        title="training dashed, validation solid",
        loc="outside lower center",
        ncols=4,
        fontsize="x-small",
        title_fontsize="small",
        frameon=False,
    )
    for text, name in zip(legend.get_texts(), colours, strict=True):
        text.set_text(name)
    return figure


@STYLE
def learning_curve(caption: str, histories: Histories) -> Figure:
    """One of the learning curves in `CURVES`, without legend."""
    figure = Figure(figsize=(4.4, 3.3))
    figure.subplots_adjust(left=0.14, right=0.97, bottom=0.15, top=0.9)  # "constrained" draws every figure twice
    CURVES[caption](figure.subplots(), histories)
    return figure


def _loss(axes: Axes, histories: Histories) -> None:
    _curves(axes, histories, "Loss", {"train_loss": "--", "val_loss": "-"})
    _logarithmic(axes)


def _error(axes: Axes, histories: Histories) -> None:
    # As accuracies 99.4 and 99.6 % would look the same.
    errors = [
        (
            name,
            [
                {**row, **{split: 100 * (1 - row[split]) for split in ("train_accuracy", "val_accuracy")}}
                for row in rows
            ],
        )
        for name, rows in histories
    ]
    _curves(axes, errors, "Error, %", {"train_accuracy": "--", "val_accuracy": "-"})
    _logarithmic(axes)


def _learning_rate(axes: Axes, histories: Histories) -> None:
    _curves(axes, histories, "Learning rate", {"learning_rate": "-"})


CURVES: dict[str, Callable[[Axes, Histories], None]] = {
    "Loss": _loss,
    "Error": _error,
    "Learning rate": _learning_rate,
}


def _curves(axes: Axes, histories: Histories, label: str, lines: dict[str, str]) -> None:
    """Columns of the rows by epoch, each in a line style of its own."""
    colours = series(histories)
    for name, rows in histories:
        style: Any = {"color": COLOURS[colours[name]], "marker": "." if len(rows) < 40 else "", "linewidth": 1.2}
        for column, line in lines.items():
            axes.plot([row["epoch"] for row in rows], [row[column] for row in rows], line, **style)
    axes.set(xlabel="epoch")
    axes.set_title(label, loc="left", fontsize="medium")
    axes.grid()
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _logarithmic(axes: Any) -> None:
    """Make the vertical axis logarithmic, with plain numbers: 30, not 3 × 10¹."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 100 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}" if high < 5 * low else NullFormatter())


@STYLE
def reliability_diagram(labels: metrics.Labels, log_probabilities: metrics.LogProbabilities) -> Figure:
    """Accuracy against the probability given, in 15 bins, over the number of images in each."""
    bins = metrics.reliability(labels, log_probabilities)
    figure = Figure(figsize=(4.8, 5))
    figure.subplots_adjust(left=0.18, right=0.97, bottom=0.1, top=0.87, hspace=0.1)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    middles = [(row["low"] + row["high"]) / 2 for row in bins]
    style: Any = {"width": 1 / 15, "edgecolor": COLOURS["raised"]}
    confidences = [row["confidence"] for row in bins]
    top.bar(middles, [row["accuracy"] for row in bins], color=COLOURS["accent"], label="accuracy", **style)
    top.plot(confidences, confidences, ".", color=COLOURS["series-1"], label="probability given")
    top.plot([0, 1], [0, 1], ":", color=COLOURS["muted"], linewidth=1)
    top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    top.set_title(f"calibration error {metrics.calibration_error(labels, log_probabilities):.4f}", fontsize="medium")
    bottom.bar(middles, [row["count"] for row in bins], color=COLOURS["muted"], **style)
    _logarithmic(bottom)
    bottom.set(xlabel="probability of the predicted class", ylabel="images")
    figure.legend(loc="upper center", ncols=2, frameon=False)
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    return figure
