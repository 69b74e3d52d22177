"""What the report says of runs, in words and tables: read from their files, nothing is computed."""

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mnist_flax.config import EXECUTION_OPTIONS, Config, flag
from mnist_flax.inference.metrics import accuracy_interval
from mnist_flax.presets import defaults
from mnist_flax.training.contents import CONFIG, Recorded, read_recorded, seed_directories
from mnist_flax.training.records import read_history, read_summary
from mnist_flax.training.selection import Row, best_epoch
from mnist_flax.views.charts import Histories
from mnist_flax.views.html import Html, element, join, table

NOTHING = "–"


class Run(NamedTuple):
    """What a run directory, or one seed's directory in it, holds beside checkpoints.

    Attributes:
        home: the run directory.
        seeds: the directory of each seed and its rows, one for each epoch.
        recorded: the options; None if there is no config.json.
        results: the summary of each seed; of an unfinished run what is known so far.
        summary: of the whole run; None until it is finished.
    """

    path: Path
    home: Path
    seeds: list[tuple[Path, list[Row]]]
    recorded: Recorded | None
    results: list[dict[str, Any]]
    summary: dict[str, Any] | None


def read_run(path: Path) -> Run:
    """Read a run directory, or one seed's.

    Raises:
        UserError: it has no finished epoch, or a file is damaged.
    """
    home = path.parent if path.name.startswith("seed-") and not (path / CONFIG).exists() else path
    seeds = [(part, read_history(part)) for part in seed_directories(path) or [path]]
    recorded = read_recorded(home / CONFIG)
    summary = read_summary(home)
    if summary is None:
        return Run(path, home, seeds, recorded, [_so_far(*seed) for seed in seeds], None)
    results = summary.get("seeds", [summary])
    if path != home:
        results = [result for result in results if result["seed"] == _number(path)]
        summary = {
            name: value for name, value in {**summary, **results[0]}.items() if name not in {"seeds", "ensemble"}
        }
    return Run(path, home, seeds, recorded, results, summary)


def _number(directory: Path) -> int:
    digits = directory.name.removeprefix("seed-")
    return int(digits) if digits.isdecimal() else -1


def _so_far(directory: Path, rows: list[Row]) -> dict[str, Any]:
    best = rows[best_epoch(rows) - 1]
    seed = {"seed": _number(directory)} if directory.name.startswith("seed-") else {}
    return {**seed, "epochs_run": len(rows), "best_epoch": best["epoch"], "val_accuracy": best["val_accuracy"]}


def histories(runs: list[Run]) -> Histories:
    """The rows of all runs and of all their seeds, each under the name it has in the legend.

    Seeds of a run share its name, so that runs can be told apart; those of a single run have names of their own.
    """
    if len(runs) > 1:
        return [(shown(run.path), rows) for run in runs for _, rows in run.seeds]
    return [(shown(directory.name or directory), rows) for directory, rows in runs[0].seeds]


def shown(path: object) -> str:
    """A path as text; what is no text in it becomes "?"."""
    return str(path).encode(errors="replace").decode()


def percent(fraction: float) -> str:
    """A fraction in percent, on one line."""
    return f"{fraction:.2%}".replace("%", "\u00a0%")


def interval(low: float, high: float) -> str:
    """An interval of two fractions, in percent."""
    return f"{percent(low)} to {percent(high)}"


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600, 1)
    return f"{minutes} minutes" if minutes < 100 else f"{hours} hours"


def day(run: Run) -> str:
    """When the last epoch of a run ended."""
    end = datetime.fromtimestamp(max(rows[-1]["time"] for _, rows in run.seeds), UTC)
    return f"{end.day} {end:%B %Y, %H:%M} UTC"


def arguments(config: Config) -> list[str]:
    """The options that reproduce `config`: the preset and what differs from it, not where and how a run is executed.

    The inverse of the command's `parse`.
    """
    current, preset = config.to_json(), defaults(config.preset, config.dataset, config.initial_weights).to_json()
    names = [name for name in current if name not in EXECUTION_OPTIONS and current[name] != preset[name]]
    if config.preset != "default":
        names.insert(0, "preset")
    return [part for name in names for part in (flag(name), str(current[name]))]


def commands(run: Run, recorded: Recorded) -> Html:
    """The commands that train as this run did: with its own file, if `train` takes it, and with options written out.

    Without options that this version does not have, the command may train another network; then the page says so.
    """
    config, unknown = recorded
    ways, title, how, note = [arguments(config)], "Train it again", "with the options that differ from the preset", ""
    if unknown:
        title, how = "Train a similar network", "with the options that this version has and that differ from the preset"
        text = "This run had options that this version does not have: "
        end = ". The command leaves them out, so it may train another network."
        note = element("p", text, _unknown(unknown), end, class_="notice")
    elif (run.home / CONFIG).exists():
        ways.insert(0, ["--config", str(run.home / CONFIG)])
        how = f"from its configuration file, or {how}"
    lines = (join(("python -m mnist_flax.train", _options([*way, "--workdir", "runs/again"])), " ") for way in ways)
    heading = element("h2", title, " ", element("small", how))
    return element("section", heading, note, element("pre", join(lines, "\n")))


def _unknown(options: dict[str, Any]) -> Html:
    """Options that this version does not have, as on the command line of the version that had them."""
    return _options([word for name, value in options.items() for word in (flag(name), str(value))])


def _options(words: list[str]) -> Html:
    """Options as on a command line, each on one line with its value."""
    return join((element("span", shlex.join(pair)) for pair in zip(words[::2], words[1::2], strict=True)), " ")


def _all_options(recorded: Recorded) -> Html:
    """The options that differ from the preset, then those that this version does not have."""
    known = _options(arguments(recorded.config))
    unknown = join(("not in this version: ", _unknown(recorded.unknown))) if recorded.unknown else ""
    return join(filter(None, (known, unknown)), Html("<br>"))


def seed_table(run: Run, num_test: int) -> Html:
    """A row for each seed."""
    rows = [
        (
            result["seed"],
            f"{result['best_epoch']} of {result['epochs_run']}",
            percent(result["val_accuracy"]),
            *_tested(result, num_test),
            result.get("stopped_because") or NOTHING,
        )
        for result in run.results
    ]
    head = (
        "seed",
        "best epoch",
        "selection accuracy",
        "test accuracy",
        "95 % interval",
        "test loss as trained",
        "ended because",
    )
    return table(head, rows, "Every seed", "words")


def _tested(result: dict[str, Any], num_test: int) -> tuple[str, str, str]:
    if "test_accuracy" not in result:
        return NOTHING, NOTHING, NOTHING
    bounds = accuracy_interval(round(result["test_accuracy"] * num_test), num_test)
    return percent(result["test_accuracy"]), interval(*bounds), f"{result['test_loss']:.4f}"


def run_table(runs: list[Run]) -> Html:
    """A row for each run."""
    rows = []
    for run in runs:
        summary = run.summary or {}
        epochs = max(result["epochs_run"] for result in run.results)
        validation = sum(result["val_accuracy"] for result in run.results) / len(run.results)
        test = percent(summary["test_accuracy"]) if summary else NOTHING
        if "test_accuracy_std" in summary and len(run.results) > 1:
            test += f" ± {100 * summary['test_accuracy_std']:.2f}"
        seconds = sum(row.get("seconds", 0) for row in max((rows for _, rows in run.seeds), key=len))
        options = _all_options(run.recorded) if run.recorded else NOTHING
        dataset = run.recorded.config.dataset if run.recorded else NOTHING
        state = "" if run.summary else " so far"
        rows.append(
            (
                run.path,
                dataset,
                len(run.results),
                f"{epochs}{state}",
                percent(validation),
                test,
                duration(seconds),
                options,
            )
        )
    head = ("run", "data set", "seeds", "epochs", "selection accuracy", "test accuracy", "time", "options")
    return table(head, rows, "The runs", "words")
