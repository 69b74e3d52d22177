"""`python -m mnist_flax.evaluate`: how good a trained network is, on whichever data."""

import argparse
from collections.abc import Sequence

from mnist_flax.cli import ArgumentParser, command, show, use_compilation_cache
from mnist_flax.config import DATASETS
from mnist_flax.errors import UserError
from mnist_flax.files import expanded, local_path


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "evaluate",
        "Measure a trained network: accuracy, loss, calibration, precision and recall of every class.",
        "runs/mnist_training --split test --save-plots pictures",
    )
    parser.add_checkpoint()
    parser.add_argument(
        "--dataset",
        type=expanded,
        help=f"{', '.join(DATASETS)}, or a file or folder; default: the one that the network was trained on",
    )
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test", help="default: %(default)s")
    parser.add_data_dir()
    parser.add_argument(
        "--shifts",
        type=int,
        default=0,
        metavar="PIXELS",
        help="average probabilities over all shifts of the image by up to this many pixels, 0 to 3",
    )
    parser.add_argument(
        "--int8", action="store_true", help="measure the network in 8-bit integers, as export --format c writes it"
    )
    parser.add_json()
    parser.add_argument(
        "--save-plots", type=local_path, metavar="DIR", help="write pictures into this directory, as PNGs"
    )
    options = parser.parse_args(arguments)
    if not 0 <= options.shifts <= 3:
        raise UserError(f"--shifts is {options.shifts}; it must be between 0 and 3")
    if options.int8 and options.shifts:
        raise UserError("--int8 and --shifts exclude each other: a chip has the image once")
    return options


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    from mnist_flax.inference.evaluation import describe, evaluate
    from mnist_flax.reading.folder import load

    use_compilation_cache()
    evaluation = evaluate(
        options.checkpoint,
        options.dataset,
        options.split,
        options.data_dir,
        options.shifts,
        load,
        int8=options.int8,
    )
    if options.save_plots is not None:
        from mnist_flax.views import plots

        plots.save(plots.of_network(*evaluation), options.save_plots)
    show(options, evaluation.figures, describe(evaluation.figures))


if __name__ == "__main__":
    main()
