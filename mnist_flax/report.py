"""`python -m mnist_flax.report RUN...`: a run's pictures, in one HTML file and as PNGs."""

import base64
import html
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_flax.errors import ArgumentParser, UserError, command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; background: white; border-radius: 4px; }}
pre {{ overflow-x: auto; }}
</style>
<h1>{title}</h1>
<pre>{summary}</pre>
{sections}
</html>
"""


def read_history(run: Path) -> list[dict[str, Any]]:
    """A run's rows, one an epoch.

    Raises:
        UserError: it has none, or they are damaged.
    """
    try:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except OSError as error:
        raise UserError(f"{run} is not a run directory ({error.filename}: {error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{run / 'metrics.jsonl'} is damaged ({error})") from error
    if not rows:
        raise UserError(f"{run} has not finished an epoch yet")
    return rows


def expand(runs: list[Path]) -> list[Path]:
    """Run directories, those of several seeds replaced by the seeds'."""
    return [part for run in runs for part in (sorted(run.glob("seed-*"), key=_seed) or [run])]


def _seed(directory: Path) -> int:
    return int(directory.name.removeprefix("seed-"))


def pictures(checkpoint: Path, data_dir: Path | None) -> tuple[dict[str, "Figure"], str]:
    """What there is to see of one network, by caption, and its figures as text."""
    import jax
    import numpy as np

    from mnist_flax import classifier, data, evaluate, plots
    from mnist_flax.augment import augment
    from mnist_flax.config import Config
    from mnist_flax.interop import BLOCKS
    from mnist_flax.programs import RUN_ONCE, augmentation_of

    network = classifier.load(checkpoint)
    figures, labels, log_probabilities = evaluate.evaluate(checkpoint, None, "test", data_dir, 0)
    images = data.load(network.card["dataset"], data_dir, 0).test.images
    augmentation = augmentation_of(Config.from_json(network.card["config"]))
    warp = jax.jit(augment, static_argnums=2, compiler_options=RUN_ONCE)
    examples = np.repeat(images[:8], 8, axis=0)
    augmented = np.asarray(warp(jax.random.key(0), examples, augmentation))
    one_each = images[[int(np.flatnonzero(labels == label)[0]) for label in range(len(network.class_names))]]
    outputs = network.activations(one_each)
    return {
        "Confusion matrix": plots.confusion(np.array(figures["confusion_matrix"]), network.class_names),
        "Reliability": plots.reliability_diagram(labels, log_probabilities),
        "Misclassified test images": plots.misclassified(images, labels, log_probabilities, network.class_names),
        "Augmentation": plots.image_grid(augmented.round().astype(np.uint8)),
        "First-layer filters": plots.filters(np.asarray(network.variables["params"]["block1"]["conv"]["kernel"])),
        "Activations": plots.activations({name: outputs[name] for name in BLOCKS}, one_each),
    }, evaluate.describe(figures)


def report(runs: list[Path], output: Path, data_dir: Path | None = None) -> Path:
    """Write `output`/report.html, which needs no other file, and its pictures beside it as PNGs.

    Learning curves are those of all runs; the rest is of the first run's best network.

    Raises:
        UserError: a run or the data it was trained on cannot be read.
    """
    from mnist_flax import plots

    histories = {str(run): read_history(run) for run in expand(runs)}
    figures, summary = pictures(runs[0], data_dir)
    figures = {"Learning curves": plots.learning_curves(histories), **figures}
    sections = []
    output.mkdir(parents=True, exist_ok=True)
    for caption, figure in figures.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        (output / f"{caption.lower().replace(' ', '-')}.png").write_bytes(buffer.getvalue())
        encoded = base64.b64encode(buffer.getvalue()).decode()
        sections.append(f'<h2>{caption}</h2>\n<img alt="{caption}" src="data:image/png;base64,{encoded}">')
    path = output / "report.html"
    title = html.escape(", ".join(map(str, runs)))
    path.write_text(_PAGE.format(title=title, summary=html.escape(summary), sections="\n".join(sections)))
    return path


@command
def main() -> None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m mnist_flax.report",
        description="Draw curves, confusion matrix, calibration, mistakes, augmentation, filters and activations.",
        epilog="example: python -m mnist_flax.report runs/mnist_training runs/other",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directory; curves are of all, the rest is of the first"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: `report` in the first run")
    parser.add_argument("--data-dir", type=Path, help="TFDS data directory")
    options = parser.parse_args()
    print(report(options.runs, options.output or options.runs[0] / "report", options.data_dir))


if __name__ == "__main__":
    main()
