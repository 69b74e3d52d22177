"""The contents of a run directory: names of files, recorded options, and which of the files a run wrote."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from mnist_flax.config import EXECUTION_OPTIONS, Config
from mnist_flax.errors import UserError
from mnist_flax.files import is_ours, read_json
from mnist_flax.training import checkpoint_files
from mnist_flax.training.checkpoint_files import Ours

CONFIG, SUMMARY, HISTORY, NETWORK = "config.json", "summary.json", "metrics.jsonl", "network.safetensors"
FOLDERS = "best", "last", "hparams", "report"
EVENTS_SUFFIX = ".mnist_flax"  # of the names of our TensorBoard events, so that they are never another program's
REPORT = tuple(
    f"report/{name}"
    for name in (
        *("report.html", "learning-curves.png", "confusion-matrix.png", "reliability.png", "misclassified-images.png"),
        *("first-layer-filters.png", "activations.png", "augmentation.png"),
    )
)
# Keys of the JSON objects that every version of ours has written, by the files' names.
_KEYS = {
    CONFIG: {"workdir", "dataset", "batch_size", "seed"},
    SUMMARY: {"dataset", "num_params", "versions"},
    HISTORY: {"epoch", "train_loss", "val_accuracy"},
}


class Recorded(NamedTuple):
    """The options that a run of any version recorded.

    Attributes:
        config: the options that this version has.
        unknown: the values of those that it does not have.
    """

    config: Config
    unknown: dict[str, Any]


def recorded(values: dict[str, Any]) -> Recorded:
    """The options in a run's config.json or its networks' cards.

    Raises:
        UserError: a value is not of its option's type.
    """
    choices = {name: get_args(hint) for name, hint in get_type_hints(Config).items() if get_origin(hint) is Literal}
    known = {field.name for field in dataclasses.fields(Config)}
    unknown = {
        name: value
        for name, value in values.items()
        if name not in known or (name in choices and isinstance(value, str) and value not in choices[name])
    }
    return Recorded(Config.from_json({name: value for name, value in values.items() if name not in unknown}), unknown)


def read_recorded(path: Path) -> Recorded | None:
    """The options in a config.json; None if there is no such file.

    Raises:
        UserError: it is damaged, or another program's.
    """
    values = read_json(path)
    try:
        return None if values is None else recorded(_of_a_run(values))
    except UserError as error:
        raise UserError(f"{path} is not a run's config.json ({error})") from error


def _of_a_run(values: dict[str, Any]) -> dict[str, Any]:
    if missing := _KEYS[CONFIG] - values.keys():
        raise UserError(f"it has no {min(missing)}")
    return values


def seed_directories(workdir: Path) -> list[Path]:
    """The directories of the seeds of a run of several, in order. A folder with a name like "seed-3 (copy)" is none."""
    found = [path for path in workdir.glob("seed-*") if re.fullmatch("seed-[0-9]+", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("seed-")))


def has_checkpoints(workdir: Path) -> bool:
    """Whether a run has saved a state to go on from, sound or not."""
    return any((workdir / "last").glob("*"))


def directories_of(config: Config) -> list[Path]:
    """Where each seed's own files are: in directories of their own if there are several."""
    if config.num_seeds == 1:
        return [config.workdir]
    return [config.workdir / f"seed-{config.seed + i}" for i in range(config.num_seeds)]


def of_run(options: dict[str, Any], seed: int | None = None) -> Ours:
    """A function that recognises a run's checkpoints by their metadata; `seed` is that of a directory `best`."""
    computed = {name: value for name, value in options.items() if name not in EXECUTION_OPTIONS}

    def ours(metadata: dict[str, Any]) -> bool:
        found = metadata.get("config", {})  # `last` of earlier versions does not have it
        same = isinstance(found, dict) and all(found.get(name, value) == value for name, value in computed.items())
        return same and (seed is None or metadata.get("seed", seed) == seed)

    return ours


def files_of(config: Config) -> Iterator[Path]:
    """The files that lie where a run writes its own, except config.json and checkpoints."""
    yield from (path for name in (SUMMARY, *(() if config.no_report else REPORT)) for path in config.workdir.glob(name))
    for directory in directories_of(config):
        yield from (path for name in (HISTORY, NETWORK) for path in directory.glob(name))
        yield from (path for part in (directory, directory / "hparams") for path in events_in(part))
    for directory in (config.workdir, *directories_of(config)):
        folders = (directory, *(directory / name for name in FOLDERS))
        yield from (path for path in folders if path.exists() and not path.is_dir())


def events_in(directory: Path) -> list[Path]:
    """Our TensorBoard events in a directory."""
    return [
        path for path in directory.glob(f"events.out.tfevents.*{EVENTS_SUFFIX}") if path.is_file() and is_ours(path)
    ]


def directories_of_checkpoints(run: Recorded) -> dict[Path, Ours]:
    """The directories of a run's checkpoints, each with the function that recognises the run's own."""
    config, options = run.config, {**run.config.to_json(), **run.unknown}
    bests = {path / "best": of_run(options, config.seed + i) for i, path in enumerate(directories_of(config))}
    return {config.workdir / "last": of_run(options), **bests}


def foreign_checkpoints(config: Config, earlier: Recorded | None = None) -> Iterator[Path]:
    """Files that have the name of a checkpoint which the run will write, and that the `earlier` run did not write."""
    theirs = directories_of_checkpoints(earlier) if earlier else {}
    for directory in directories_of_checkpoints(Recorded(config, {})):
        yield from checkpoint_files.in_the_way(directory, 0, theirs.get(directory, lambda metadata: False))


def written_by_a_run(path: Path) -> bool:
    """Whether a run wrote a file, by its content; or it is empty, so that nothing can be lost."""
    keys = _KEYS.get(path.name)
    if keys is None or not path.is_file():
        return path.is_file() and is_ours(path)
    try:
        text = path.read_text("utf-8-sig")
        value = json.loads(text.partition("\n")[0] if path.name == HISTORY else text) if text else dict.fromkeys(keys)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and keys <= value.keys()
