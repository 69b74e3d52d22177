"""`python -m benchmarks.recipes RUN...`: compares finished runs by their summaries, as a Markdown table.

The first run is what the others are compared with. Only validation accuracy is shown: recipes are chosen here, and the
test set has no part in that.
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from mnist_flax.errors import UserError, command

# Options that say where and for how long to run, not what is computed.
_NOT_SHOWN = {"preset", "workdir", "data_dir", "seed", "num_seeds", "num_devices", "distributed"}
_NOT_SHOWN |= {"no_compilation_cache", "overwrite", "target_accuracy", "patience"}


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run's configuration and summary."""
    try:
        config, summary = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    except (OSError, ValueError) as error:
        raise UserError(f"{run} is not a finished run ({error})") from error
    return config, summary


def accuracies(summary: dict[str, Any]) -> dict[int, float]:
    """Validation accuracy by seed, in per cent."""
    return {result["seed"]: 100 * result["val_accuracy"] for result in summary.get("seeds", [summary])}


def difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Mean difference over the seeds that both have, in points, with its 95 % interval (paired, Student's t)."""
    from scipy import stats

    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(pairs) < 2:
        return "–"
    margin = float(stats.t.ppf(0.975, len(pairs) - 1)) * statistics.stdev(pairs) / math.sqrt(len(pairs))
    return f"{statistics.mean(pairs):+.3f} ± {margin:.3f}"


def table(runs: list[Path]) -> str:
    """The table as Markdown."""
    loaded = [read(run) for run in runs]
    first, first_summary = loaded[0]
    shown = [name for name in first if name not in _NOT_SHOWN]
    lines = [
        "| recipe | seeds | validation accuracy, % | paired difference to the first | training s a seed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for i, (config, summary) in enumerate(loaded):
        differing = shown if i == 0 else [name for name in shown if config.get(name) != first.get(name)]
        recipe = " ".join(f"`--{name.replace('_', '-')} {config.get(name)}`" for name in differing) or "the same"
        ours = accuracies(summary)
        spread = f" ± {statistics.stdev(ours.values()):.3f}" if len(ours) > 1 else ""
        lines.append(
            f"| {recipe} | {len(ours)} | {statistics.mean(ours.values()):.3f}{spread} "
            f"| {difference(ours, accuracies(first_summary)) if i else '–'} "
            f"| {summary['train_seconds'] / len(ours):.0f} |"
        )
    return "\n".join(lines)


@command
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.recipes", description="Compare finished runs by validation accuracy, in Markdown."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory; the first is the baseline")
    print(table(parser.parse_args().runs))


if __name__ == "__main__":
    main()
