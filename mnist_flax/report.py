"""`python -m mnist_flax.report RUN...`: a run's report, one HTML file, and its pictures as PNGs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mnist_flax.cli import ArgumentParser, command, show, use_compilation_cache
from mnist_flax.files import expanded, local_path


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = ArgumentParser(
        "report",
        "Write a report, one HTML file: accuracy, curves, confusion matrix, calibration, mistakes, feature maps.",
        "runs/mnist_training runs/other",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=local_path,
        metavar="RUN",
        help="run directory; curves are of all runs, the rest is of the first",
    )
    parser.add_argument(
        "--output", type=local_path, metavar="DIR", help="directory to write into; default: `report` in the first run"
    )
    parser.add_argument("--dataset", type=expanded, help="where the first run's data is now, if it has moved")
    parser.add_data_dir()
    parser.add_json()
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    from mnist_flax.views.report import write_report

    use_compilation_cache()
    runs = [_run_of(path) for path in options.runs]
    page = write_report(runs, options.output or runs[0] / "report", options.data_dir, options.dataset)
    show(options, {"report": str(page)}, str(page))


def _run_of(path: Path) -> Path:
    """The run directory that a path means: a checkpoint, or a directory of them, stands for its run."""
    if path.name.isdecimal() and path.parent.name in ("best", "last"):
        path = path.parent
    return path.parent if path.name in ("best", "last") and not (path / "config.json").exists() else path


if __name__ == "__main__":
    main()
