"""`python -m benchmarks.reading.own_digits`: what training on a few images of one's own digits gains, in Markdown.

The images are of `digits`, which ships with scikit-learn: real handwriting, from other writers and another scanner than
MNIST's. A draw is five of each class to train on; all others are the test set. They come from the second half of the
data set, because the first half chose the defaults of such runs (`presets.STEPS` and what is beside it).
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import markdown, parser_of, with_spread
from mnist_flax import ops, train
from mnist_flax.cli import command, use_compilation_cache
from mnist_flax.data import Dataset
from mnist_flax.errors import UserError
from mnist_flax.inference import classifier
from mnist_flax.inference.evaluation import measure
from mnist_flax.inference.transfer import initial_variables
from mnist_flax.presets import resolve
from mnist_flax.reading.folder import load
from mnist_flax.training.mesh import make_mesh, platform_of
from mnist_flax.training.run import from_trained, prepare, start

WAYS = {
    "the shipped network as it is": None,
    "trained from scratch": [],
    "`--initial-weights pretrained`": ["--initial-weights", "pretrained"],
}


def write(folder: Path, draw: int, per_class: int) -> None:
    """Write a draw as PNG files of dark digits on white: `per_class` images of each into `train`, the rest `test`."""
    from sklearn import datasets

    digits: Any = datasets.load_digits()
    half = len(digits.target) // 2
    images, labels = digits.images[half:], digits.target[half:]
    rng = np.random.RandomState(draw)
    for label in range(10):
        for i, k in enumerate(rng.permutation(np.flatnonzero(labels == label))):
            path = folder / ("train" if i < per_class else "test") / str(label) / f"{k:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(255 * (1 - images[k] / 16)).astype(np.uint8)).save(path)


def accuracy_of(dataset: Dataset, options: Sequence[str], draw: int) -> float:
    """The test accuracy of what `train --dataset FOLDER` makes with these options, without writing its files.

    As few images are held out, that is the network of the last epoch.
    """
    config = train.parse(["--dataset", dataset.name, "--seed", str(draw), *options])
    config = resolve(config, dataset.name, len(dataset.train.labels), len(dataset.validation.labels))
    mesh = make_mesh(config.batch_size, 1)
    run = prepare(config, dataset, mesh, ops.choose("auto", platform_of(mesh)))
    progress = start(run)
    if config.initial_weights:
        progress = from_trained(run, progress, initial_variables(config.initial_weights, dataset.class_names))
    state = progress.state
    for _ in range(run.epochs):
        state, _ = run.training.epoch(state)
    return float(run.evaluation(state.variables, run.evaluation.batches(dataset.test)).accuracies[0])


def accuracies(folder: Path, draw: int) -> list[float]:
    """The test accuracy of each of `WAYS`, in percent."""
    dataset, shipped = load(str(folder), None, None), classifier.load()
    found = [measure(shipped, dataset.relabelled(shipped.class_names).test).figures["accuracy"]]
    found += [accuracy_of(dataset, options, draw) for options in WAYS.values() if options is not None]
    return [100 * accuracy for accuracy in found]


def table(rows: Sequence[Sequence[float]]) -> str:
    """A line for each way; `rows` has the accuracies of each draw."""
    each_way = zip(WAYS, zip(*rows, strict=True), strict=True)
    lines = [(name, with_spread(each, 1), ", ".join(f"{accuracy:.1f}" for accuracy in each)) for name, each in each_way]
    return markdown(("network", "test accuracy, %", "each draw"), lines)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_argument("--draws", type=int, default=10, metavar="N", help="how often images are drawn (10)")
    parser.add_argument("--per-class", type=int, default=5, metavar="N", help="images of each class to train on (5)")
    parser.add_argument("--write", type=Path, metavar="DIR", help="only write the first draw's images here")
    options = parser.parse_args(arguments)
    if options.draws < 2 or not 1 <= options.per_class <= 80:
        raise UserError("--draws must be at least 2, and --per-class between 1 and 80")
    return options


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    if options.write:
        write(options.write, 0, options.per_class)
        return
    use_compilation_cache()
    rows = []
    for draw in range(options.draws):
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which images the shipped network does not recognise
            folder = Path(scratch) / "own"
            write(folder, draw, options.per_class)
            rows.append(accuracies(folder, draw))
        print(f"draw {draw}: {', '.join(f'{accuracy:.1f}' for accuracy in rows[-1])}", file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
