"""`python -m mnist_flax.report RUN...`: a run's pictures, in one HTML file and as PNGs."""

import base64
import html
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_flax.errors import ArgumentParser, UserError, command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnist_flax.evaluate import Evaluation
    from mnist_flax.logs import Row

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


def read_history(run: Path) -> "list[Row]":
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


def read_histories(runs: list[Path]) -> "list[tuple[str, list[Row]]]":
    """The histories of all runs and of all their seeds, each under the name it is to have in the legend.

    Seeds of a run share its name, so that runs can be told apart; those of a single run have names of their own.
    """
    return [
        (str(run if len(runs) > 1 else part), read_history(part))
        for run in runs
        for part in (sorted(run.glob("seed-*"), key=_seed) or [run])
    ]


def _seed(directory: Path) -> int:
    return int(directory.name.removeprefix("seed-"))


def augmentation(evaluation: "Evaluation") -> "Figure":
    """Eight images, each as the network's run augmented them, eight times."""
    import jax
    import numpy as np

    from mnist_flax import plots
    from mnist_flax.augment import augment
    from mnist_flax.config import Config
    from mnist_flax.programs import RUN_ONCE, augmentation_of

    options = augmentation_of(Config.from_json(evaluation.network.card["config"]))
    warp = jax.jit(augment, static_argnums=2, compiler_options=RUN_ONCE)
    images = np.repeat(evaluation.examples.images[:8], 8, axis=0)
    return plots.image_grid(np.asarray(warp(jax.random.key(0), images, options)).round().astype(np.uint8))


def report(runs: list[Path], output: Path, data_dir: Path | None = None) -> Path:
    """Write `output`/report.html, which needs no other file, and its pictures beside it as PNGs.

    Learning curves are those of all runs; the rest is of the first run's best network.

    Raises:
        UserError: a run or the data it was trained on cannot be read.
    """
    from mnist_flax import plots
    from mnist_flax.evaluate import describe, evaluate

    histories = read_histories(runs)
    evaluation = evaluate(runs[0], None, "test", data_dir, 0)
    pictures = {
        "Learning curves": plots.learning_curves(histories),
        **plots.of_network(evaluation),
        "Augmentation": augmentation(evaluation),
    }
    sections = []
    for caption, file in plots.save(pictures, output).items():
        encoded = base64.b64encode(file.read_bytes()).decode()
        sections.append(f'<h2>{caption}</h2>\n<img alt="{caption}" src="data:image/png;base64,{encoded}">')
    path = output / "report.html"
    title, summary = html.escape(", ".join(map(str, runs))), html.escape(describe(evaluation.figures))
    path.write_text(_PAGE.format(title=title, summary=summary, sections="\n".join(sections)), encoding="utf-8")
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
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    # A run's checkpoint directory stands for the run, as it does for the other commands.
    runs = [run.parent if run.name == "best" and not (run / "config.json").exists() else run for run in options.runs]
    page = report(runs, options.output or runs[0] / "report", options.data_dir)
    print(json.dumps({"report": str(page)}) if options.json else page)


if __name__ == "__main__":
    main()
