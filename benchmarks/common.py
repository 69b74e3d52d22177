"""What the benchmarks' commands share: the parser of their options, and tables in Markdown."""

import statistics
from collections.abc import Iterable, Sequence

from mnist_flax.cli import ArgumentParser


def parser_of(documentation: str) -> ArgumentParser:
    """The parser of a module whose documentation begins "`python -m MODULE ...`: what it does"."""
    call, _, description = documentation.partition(": ")
    parser = ArgumentParser("", description)
    parser.prog, parser.epilog = " ".join(call.strip("`").split(" ")[:3]), None
    return parser


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def with_spread(values: Sequence[float], decimals: int) -> str:
    """Their mean, and of more than one their standard deviation."""
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{spread}"
