"""A run's pictures, in one HTML file and as PNGs."""

import base64
import html
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from mnist_flax.augment import augment
from mnist_flax.config import Config
from mnist_flax.inference.evaluation import Evaluation, describe, evaluate
from mnist_flax.training.programs import RUN_ONCE, augmentation_of
from mnist_flax.training.records import read_history
from mnist_flax.training.selection import Row
from mnist_flax.views import plots

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


def read_histories(runs: list[Path]) -> list[tuple[str, list[Row]]]:
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


def augmentation(evaluation: Evaluation) -> Figure:
    """Eight images, each as the network's run augmented them, eight times."""
    options = augmentation_of(Config.from_json(evaluation.network.card["config"]))
    warp = jax.jit(augment, static_argnums=2, compiler_options=RUN_ONCE)
    images = np.repeat(evaluation.examples.images[:8], 8, axis=0)
    return plots.image_grid(np.asarray(warp(jax.random.key(0), images, options)).round().astype(np.uint8))


def write_report(runs: list[Path], output: Path, data_dir: Path | None = None) -> Path:
    """Write `output`/report.html, which needs no other file, and its pictures beside it as PNGs.

    Learning curves are those of all runs; the rest is of the first run's best network.

    Raises:
        UserError: a run or the data it was trained on cannot be read.
    """
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
