"""The run directory: who may write it, and whose run it holds."""

import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mnist_flax.config import EXECUTION_OPTIONS, Config, flag, located
from mnist_flax.errors import UserError
from mnist_flax.files import read_json, unused, write_json
from mnist_flax.training import checkpoint_files, contents
from mnist_flax.training.contents import CONFIG, SUMMARY, Recorded, recorded


def read_config(path: Path) -> Config:
    """The configuration to train with that is in a run's config.json.

    Raises:
        UserError: there is none, it is damaged, or it has options that this version does not have.
    """
    try:
        values = json.loads(path.read_text("utf-8-sig"))  # editors may add a byte order mark
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        config = Config.from_json(values)
        if unknown := recorded(values).unknown:
            raise ValueError(f"there is no option {json.dumps(min(unknown))[:50]}")
        return config
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(f"--config {path} is not a run's config.json ({error})") from error


@contextmanager
def made(workdir: Path) -> Iterator[None]:
    """Make the directory and try it; if what follows is refused, the directories that were made and are empty go.

    Raises:
        UserError: it cannot be written.
    """
    probe = unused(workdir / "writable")
    new = [path for path in (workdir, *workdir.parents) if not path.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written ({error.strerror}); choose another") from error
    try:
        yield
    except UserError:
        for path in new:
            with suppress(OSError):
                path.rmdir()
        raise


def require_free(config: Config) -> None:
    """Refuse a run that would have to write where something lies that no run of this directory wrote.

    Raises:
        UserError: naming it; or the directory holds other runs, or another program's config.json.
    """
    workdir = config.workdir
    stored = contents.read_recorded(workdir / CONFIG)
    if stored is None:
        for other in (*workdir.glob(f"*/{CONFIG}"), *workdir.glob(f"*/*/{CONFIG}")):
            if contents.written_by_a_run(other):
                raise UserError(
                    f"{workdir} holds another run, {other.parent}: choose a --workdir of its own, such as {workdir}/new"
                )
        lock = [path for path in workdir.glob(".lock") if not path.is_file() or path.stat().st_size]
        taken = [*contents.files_of(config), *contents.foreign_checkpoints(config), *lock]
    elif config.overwrite:
        earlier = _earlier(config, stored)
        theirs = {*filter(contents.written_by_a_run, contents.files_of(earlier.config))}
        taken = [path for path in contents.files_of(config) if path not in theirs]
        taken += contents.foreign_checkpoints(config, earlier)
    elif (workdir / SUMMARY).exists():
        return  # nothing is done
    else:
        taken = [path for path in contents.files_of(config) if not contents.written_by_a_run(path)]
    if taken:
        raise UserError(
            f"{taken[0]} is in the way, and no run here wrote it: move it away, or choose another --workdir"
        )


def _earlier(config: Config, stored: Recorded) -> Recorded:
    """The run that the directory holds, wherever it was when that was recorded."""
    return stored._replace(config=dataclasses.replace(stored.config, workdir=config.workdir, no_report=False))


@contextmanager
def lock(config: Config) -> Iterator[None]:
    """Lock the run directory for this process, and make it that of `config`, or check that it is.

    The system releases the lock however the process ends.

    Raises:
        UserError: another process has locked it, or it cannot be locked, or it holds a run with another configuration.
    """
    from filelock import FileLock, Timeout

    workdir = config.workdir
    try:
        lock = FileLock(workdir / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise UserError(f"{workdir} is in use by another process; wait for it, or choose another --workdir") from error
    except (OSError, NotImplementedError) as error:  # the latter: filelock's, if the file system has no locks
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{workdir / '.lock'} cannot be locked ({reason}), so a second process might train there too: choose a "
            "--workdir on a local disk, or mount its file system with locks (NFS: with lockd, Lustre: with flock)"
        ) from error
    with lock:
        stored = read_json(workdir / CONFIG)
        if config.overwrite:
            _delete_run(config)
        if stored is None or config.overwrite:
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
    if isinstance(stored.get("dataset"), str):
        stored = {**stored, "dataset": located(stored["dataset"])}  # earlier versions kept a relative path
    names = sorted((set(stored) | set(current)) - EXECUTION_OPTIONS)
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
    """How an option's value changed. A version that does not have the option has no value for it."""
    was, now = json.dumps(stored.get(name)), json.dumps(current.get(name))
    if name not in current:
        return f"was {was}, which this version does not have"
    return f"was {was}, is now {now}" if name in stored else f"is now {now}, which that run's version did not have"


def _delete_run(config: Config) -> None:
    """Delete what the run in a directory wrote, and nothing else that may lie there; its config.json is replaced last.

    Damaged checkpoints are set aside.
    """
    stored = contents.read_recorded(config.workdir / CONFIG)
    if stored is None:
        return
    earlier = _earlier(config, stored)
    files = contents.files_of(earlier.config)
    for path in sorted(files, key=lambda path: path.name != SUMMARY):  # first what says that it is finished
        if contents.written_by_a_run(path):
            path.unlink()
    for directory, ours in contents.directories_of_checkpoints(earlier).items():
        checkpoint_files.delete_unfinished(directory)
        for path in checkpoint_files.numbered(directory):
            found = checkpoint_files.condition(path, ours)
            if found in ("sound", "deleted"):
                checkpoint_files.delete(path)
            elif found != "foreign":
                aside = checkpoint_files.set_aside(path)
                warnings.warn(f"{path} is {found} and set aside as {aside.name}", stacklevel=2)
    for directory in (*contents.directories_of(earlier.config), config.workdir):
        for folder in (*(directory / name for name in contents.FOLDERS), directory):
            if folder != config.workdir and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
