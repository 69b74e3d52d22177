"""`python -m benchmarks.release.ship [RUN]`: makes a run's best network the shipped one, and writes its model card.

Without RUN the weights stay, and what is known of them is measured anew: what integers need, and the model card. What
that says of the run's other networks is kept in `benchmarks/release/results/`.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import parser_of
from benchmarks.reading import transfer
from benchmarks.release import tables
from benchmarks.robustness import corruptions
from mnist_flax import data
from mnist_flax.cli import command
from mnist_flax.config import flag
from mnist_flax.inference import classifier, integers, weights
from mnist_flax.inference.calibration import calibrate
from mnist_flax.inference.card import INT8_ACCURACY, MAXIMA
from mnist_flax.inference.evaluation import evaluate
from mnist_flax.inference.formats import export
from mnist_flax.reading.reader import redraw
from mnist_flax.training.contents import recorded
from mnist_flax.views import runs

CARD = classifier.PRETRAINED.with_suffix(".md")
NAME = "shipped"  # of its run among the results kept


def model_card(data_dir: Path | None) -> str:
    """What to know about the shipped network, as Markdown.

    Every figure is measured now, on the shipped file, but for those of all seeds, which are kept.
    """
    network = classifier.load()
    config, card = network.card["config"], network.card
    of_all_seeds = json.loads((tables.KEPT / f"{NAME}.json").read_text())["strangers"]
    figures = evaluate(None, "mnist", "test", data_dir, 0).figures
    averaged = evaluate(None, "mnist", "test", data_dir, 1).figures
    low, high = figures["accuracy_ci95"]
    rows = [
        f"| {name} | {row['precision']:.4f} | {row['recall']:.4f} | {row['f1_score']:.4f} | {row['support']:.0f} |"
        for name, row in figures["per_class"].items()
    ]
    return f"""# The shipped network

`mnist_flax.load_pretrained()` is a 12,534-parameter network trained by

{training(config)}

on {60_000 - config["val_size"]:,} of MNIST's training images. It is the one of {config["num_seeds"]} seeds
(number {card["seed"]}, epoch {card["epoch"]}) with the highest accuracy on the {config["val_size"]:,} images held out,
{card["val_accuracy"]:.2%}; the test set had no part in the choice. Accuracies of all seeds, in per cent, with their
standard deviation (`python -m benchmarks.reading.transfer RUN`):

{transfer.table_of_runs({NAME: of_all_seeds})}

On MNIST's test set (`python -m mnist_flax.evaluate`): accuracy **{figures["accuracy"]:.2%}**, 95 % interval {low:.2%}
to {high:.2%}; loss {figures["loss"]:.4f}. Averaged over shifts of up to one pixel (`--shifts 1`):
{averaged["accuracy"]:.2%}. In integers, as a chip computes it (`--int8`): {card[INT8_ACCURACY]:.2%}.

| class | precision | recall | F1 | images |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

## Where it is weak

It was trained on single, upright, centred, light digits on a dark ground, as MNIST draws them, and on nothing else.
`Classifier.predict` names a digit for every image, whatever it shows.

Training with label smoothing makes probabilities too low. The file therefore has a temperature, fitted on the held-out
images, by which `mnist_flax.load()` divides the logits.

The file also has what the out-of-distribution score (`Classifier.novelty`) is measured from: the classes' mean features
and their common covariance. 99.5 % of the held-out images score at most 1; `python -m mnist_flax.predict` answers "not
like a digit" above that. Many things that resemble a digit, such as letters, are named all the same: the last table
says how many (`benchmarks/reading/synthetic/drawings.py` draws them).

Measured by `python -m benchmarks.robustness.corruptions` (accuracies in %, with 95 % intervals):

{corruptions.report(network, data_dir)}
"""


def measure_integers(data_dir: Path | None) -> None:
    """Put into the shipped file what the network in integers is scaled by, and how good that is on MNIST's test set."""
    network = classifier.load()
    mnist = data.load("mnist", data_dir, network.card["config"]["val_size"])
    largest = integers.maxima(network, mnist.train)
    named = integers.quantize(network, largest).logits(mnist.test.images).argmax(-1)
    card = {**network.card, MAXIMA: largest, INT8_ACCURACY: float((named == mnist.test.labels).mean())}
    weights.save(classifier.PRETRAINED, network.variables, card, network.reference)


def training(config: dict[str, Any]) -> str:
    """The command that trains as a network was trained, and the options of its run that are none of this version."""
    known, unknown = recorded(config)
    command = f"```bash\npython -m mnist_flax.train {shlex.join(runs.arguments(known))}\n```"
    options = ", ".join(f"`{flag(name)} {value}`" for name, value in unknown.items())
    return f"{command}\n\nand options that this version does not have ({options})," if unknown else command


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="default: the shipped network stays")
    parser.add_data_dir()
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    if options.run is not None:
        network = classifier.load(options.run)
        mnist = data.load("mnist", options.data_dir, network.card["config"]["val_size"])
        export(calibrate(network, mnist, redraw), "safetensors", classifier.PRETRAINED)
        print(tables.write(options.run, NAME, strangers=transfer.accuracies(options.run, options.data_dir)))
    measure_integers(options.data_dir)
    CARD.write_text(model_card(options.data_dir))
    print(f"{CARD} is that of {classifier.PRETRAINED}")


if __name__ == "__main__":
    main()
