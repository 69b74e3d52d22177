"""The run directory: who may write it, and whose run it holds."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from mnist_flax.config import CARRYING_OUT, Config, flag
from mnist_flax.errors import UserError
from mnist_flax.files import read_json, write_json

CONFIG, SUMMARY, NETWORK = "config.json", "summary.json", "network.safetensors"
# What a run writes; `--overwrite` deletes these and nothing else.
OWN_FILES = (CONFIG, "metrics.jsonl", SUMMARY, NETWORK, "best", "last", "hparams", "report", "events.out.tfevents.*")


class Recorded(NamedTuple):
    """What a run of any version recorded of its options.

    Attributes:
        config: the options that this version has.
        unknown: the values of those that it does not have.
    """

    config: Config
    unknown: dict[str, Any]


def recorded(values: dict[str, Any]) -> Recorded:
    """What a run recorded of its options, from its config.json or its networks' cards.

    Raises:
        UserError: a value is not of its option's type.
    """
    known = {field.name for field in dataclasses.fields(Config)}
    return Recorded(Config.from_json(values), {name: value for name, value in values.items() if name not in known})


def read_recorded(path: Path) -> Recorded | None:
    """What a config.json records; None if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    values = read_json(path)
    try:
        return None if values is None else recorded(values)
    except UserError as error:
        raise UserError(f"{path} is not a run's config.json ({error})") from error


def read_config(path: Path) -> Config:
    """The configuration to train with that is in a run's config.json.

    Raises:
        UserError: there is none, it is damaged, or it has options that this version does not have.
    """
    try:
        values = json.loads(path.read_text("utf-8-sig"))  # editors may add a byte order mark
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        config, unknown = recorded(values)
        if unknown:
            raise ValueError(f"there is no option {json.dumps(min(unknown))[:50]}")
        return config
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(f"--config {path} is not a run's config.json ({error})") from error


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


def require_writable(workdir: Path) -> None:
    """Make the directory and try it.

    Raises:
        UserError: it cannot be written.
    """
    probe = workdir / f".writable{os.getpid()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written ({error.strerror}); choose another") from error


@contextmanager
def claimed(config: Config) -> Iterator[None]:
    """Lock the run directory for this process, and make it that of `config`, or check that it is.

    The system releases the lock however the process ends.

    Raises:
        UserError: another process has locked it, or it holds a run with another configuration.
    """
    from filelock import FileLock, Timeout

    workdir = config.workdir
    try:
        lock = FileLock(workdir / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise UserError(f"{workdir} is in use by another process; wait for it, or choose another --workdir") from error
    with lock:
        if config.overwrite:
            _delete_run(workdir)
        stored = read_json(workdir / CONFIG)
        if stored is None:
            write_json(workdir / CONFIG, config.to_json())
        else:
            refuse_changes(stored, config)
        yield


def refuse_changes(stored: dict[str, Any], config: Config) -> None:
    """Hold a resuming run to the configuration with which its run directory was started.

    Raises:
        UserError: something that is computed differs; the message lists every difference.
    """
    current = config.to_json()
    names = sorted((set(stored) | set(current)) - CARRYING_OUT)
    changed = [
        f"{flag(name)} {_change(name, stored, current)}" for name in names if stored.get(name) != current.get(name)
    ]
    of_another_version = any((name in stored) != (name in current) for name in names)
    way = (
        "resume it with the version that started it" if of_another_version else "repeat that run's options to resume it"
    )
    if changed:
        raise UserError(
            f"{config.workdir} belongs to a run with another configuration ({'; '.join(changed)}): {way}, or choose "
            "another --workdir; --overwrite would delete it"
        )


def _change(name: str, stored: dict[str, Any], current: dict[str, Any]) -> str:
    """What became of an option. One that a version does not have cannot be given to it, so it has no value there."""
    was, now = json.dumps(stored.get(name)), json.dumps(current.get(name))
    if name not in current:
        return f"was {was}, which this version does not have"
    return f"was {was}, is now {now}" if name in stored else f"is now {now}, which that run's version did not have"


def _delete_run(workdir: Path) -> None:
    """Delete what a run writes, and nothing else that may lie there."""
    for path in [*(path for pattern in OWN_FILES for path in workdir.glob(pattern)), *seed_directories(workdir)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
