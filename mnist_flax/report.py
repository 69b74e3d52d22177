"""`python -m mnist_flax.report RUN...`: a run's report, one HTML file, and its pictures as PNGs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_flax.errors import ArgumentParser, command


def parse(arguments: Sequence[str] | None = None) -> Any:
    """The command line's options."""
    parser = ArgumentParser(
        prog="python -m mnist_flax.report",
        description="Show what came out: accuracy, curves, confusion matrix, calibration, mistakes, feature maps.",
        epilog="example: python -m mnist_flax.report runs/mnist_training runs/other",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directory; curves are of all, the rest is of the first"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: `report` in the first run")
    parser.add_argument("--data-dir", type=Path, help="TFDS data directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    options = parse(arguments)
    from mnist_flax.views.report import report

    # A run's checkpoint directory stands for the run, as it does for the other commands.
    runs = [run.parent if run.name == "best" and not (run / "config.json").exists() else run for run in options.runs]
    page = report(runs, options.output or runs[0] / "report", options.data_dir)
    print(json.dumps({"report": str(page)}) if options.json else page)


if __name__ == "__main__":
    main()
