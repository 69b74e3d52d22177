"""`python -m benchmarks.release.tables recipes|results|keep RUN...`: finished runs side by side, in Markdown.

`recipes` compares them with the first by validation accuracy alone: recipes are chosen there, and the test set has no
part in that. `results` reports test accuracy. `keep` writes what the tables need of each run to
`benchmarks/release/results/`, whose files the other two take in place of runs.

`python -m benchmarks.release.tables update docs/*.md` makes the tables in pages anew from what was kept.
"""

import argparse
import json
import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.common import markdown, parser_of, with_spread
from mnist_flax.cli import command
from mnist_flax.config import EXECUTION_OPTIONS
from mnist_flax.errors import UserError
from mnist_flax.presets import PRESETS, resolve
from mnist_flax.training.selection import interval_of_mean, margin_of_mean

# Options that say where, how and for how long to run, not what the recipe is.
_NOT_SHOWN = {"preset", "workdir", "data_dir", "seed", "num_seeds", "num_devices", "distributed"}
_NOT_SHOWN |= {"no_compilation_cache", "no_report", "overwrite", "target_accuracy", "patience"}
_NOT_SHOWN |= {"checkpoint_every_seconds", "debug_nans", "kernels"}

MNIST_HELD_OUT = 5_000  # of its 60,000 training images, by default

KEPT = Path(__file__).parent / "results"

# A table in a page, after the block of commands whose last prints it.
_PRINTED = re.compile(r"(?<=^```bash\n)((?:(?!```).*\n)+)```\n\n((?:\|.*\n)+)", re.MULTILINE)


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and summary of a run, or of what was kept of it."""
    try:
        if run.suffix == ".json":
            kept = json.loads(run.read_text())
            return kept["config"], kept["summary"]
        config, summary = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run} is not a finished run ({error})") from error
    return config, summary


def keep(runs: list[Path]) -> str:
    """Write each run's configuration and summary to `KEPT`, without the paths of the machine it ran on."""
    return "\n".join(write(run, run.resolve().name) for run in runs)


def write(run: Path, name: str, **more: Any) -> str:
    """Keep a run under a name, with `more` that is known about it."""
    config, summary = read(run)
    config = {name: value for name, value in config.items() if name not in {"workdir", "data_dir"}}
    path = KEPT / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"config": config, "summary": summary} | more, indent=1) + "\n")
    return f"{path}: {summary.get('num_seeds', 1)} seeds"


def accuracies(summary: dict[str, Any]) -> dict[int, float]:
    """Validation accuracy by seed, in per cent."""
    return {result["seed"]: 100 * result["val_accuracy"] for result in summary.get("seeds", [summary])}


def difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Mean difference over the seeds that both have, in points, with its 95 % interval (Student's t).

    None of fewer than three seeds: see `interval_of_mean`.
    """
    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if len(pairs) < 3:
        return "–"
    return f"{statistics.mean(pairs):+.3f} ± {margin_of_mean(statistics.stdev(pairs), len(pairs)):.3f}"


def unpaired(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Difference of the means in points, with its 95 % interval (Welch's); of runs on different devices.

    Those have other random numbers and other rounding, so equal seeds do not make a pair.
    """
    if min(len(ours), len(theirs)) < 3:
        return "–"
    found: Any = stats.ttest_ind([*ours.values()], [*theirs.values()], equal_var=False)
    low, high = found.confidence_interval()
    return f"{(low + high) / 2:+.3f} ± {(high - low) / 2:.3f}"


def recipes(runs: list[Path]) -> str:
    """What differs from the first run, and what it gives on the validation split."""
    loaded = [read(run) for run in runs]
    first, first_summary = loaded[0]
    # Runs of different versions have different options.
    shown = [name for name in dict.fromkeys(name for config, _ in loaded for name in config) if name not in _NOT_SHOWN]
    rows = []
    for i, (config, summary) in enumerate(loaded):
        differing = [name for name in shown if config.get(name) != first.get(name)]
        changed = " ".join(_option(name, config) for name in differing) or "the same"
        ours = accuracies(summary)
        theirs = accuracies(first_summary)
        if i and summary.get("devices") != first_summary.get("devices"):
            change = f"{unpaired(ours, theirs)}, not paired: on {summary['devices']}"
        else:
            change = difference(ours, theirs) if i else "–"
        rows.append((changed if i else _preset(first), len(ours), with_spread(list(ours.values()), 3), change))
    return markdown(("recipe", "seeds", "validation accuracy, %", "paired difference to the first"), rows)


def _option(name: str, config: dict[str, Any]) -> str:
    flag = f"--{name.replace('_', '-')}"
    return f"`{flag} {config[name]}`" if name in config else f"no `{flag}`"


def results(runs: list[Path]) -> str:
    """Test accuracy of each run's networks."""
    columns = ("preset", "epochs", "seeds", "test accuracy, %", "95 % interval of the mean", "ensemble", "each seed")
    columns += ("selected on", "trained on")
    rows = []
    for config, summary in map(read, runs):
        each = [100 * result["test_accuracy"] for result in summary.get("seeds", [summary])]
        bounds = interval_of_mean([accuracy / 100 for accuracy in each])
        interval = " to ".join(f"{100 * bound:.2f}" for bound in bounds) if bounds else "–"
        ensemble = f"{100 * summary['ensemble']['test_accuracy']:.2f}" if "ensemble" in summary else "–"
        split = "the test set" if summary["selection_split"] == "test" else f"{config['val_size']:,} held-out images"
        cells = [_preset(config), str(summary["epochs_run"]), str(len(each)), with_spread(each, 2), interval]
        cells += [ensemble, ", ".join(f"{accuracy:.2f}" for accuracy in each), split, summary.get("devices", "–")]
        rows.append(cells)
    return markdown(columns, rows)


def _preset(config: dict[str, Any]) -> str:
    """A run's preset, and every option that makes it another recipe or protocol than `--preset` alone."""
    preset = PRESETS[config["preset"]]
    val_size = MNIST_HELD_OUT if preset.val_size is None else preset.val_size
    plain = resolve(preset, config["dataset"], 12 * MNIST_HELD_OUT, val_size).to_json()
    hidden = EXECUTION_OPTIONS | {"preset", "num_seeds"}
    differing = [name for name in config if name not in hidden and config[name] != plain.get(name)]
    return " ".join([f"`{preset.preset}`", *(_option(name, config) for name in differing)])


def update(pages: list[Path]) -> str:
    """Make the tables of kept results in pages anew."""
    changed = []
    for page in pages:
        before = page.read_text(encoding="utf-8")
        after = _PRINTED.sub(_printed_anew, before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            changed.append(f"{page} has changed")
    return "\n".join(changed) or "nothing has changed"


def _printed_anew(found: re.Match[str]) -> str:
    """A table after its commands, which stays if `recipes` or `results` did not print it."""
    *_, command = found[1].replace("\\\n", " ").strip().splitlines()
    words = shlex.split(command)
    if words[:3] != ["python", "-m", "benchmarks.release.tables"]:
        return found[0]
    options = parse(words[3:])
    return f"{found[1]}```\n\n{TABLES[options.table](options.runs)}\n"


TABLES = {"recipes": recipes, "results": results, "keep": keep, "update": update}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directory, or a file that `keep` wrote; `recipes`: first the baseline; `update`: pages",
    )
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    print(TABLES[options.table](options.runs))


if __name__ == "__main__":
    main()
