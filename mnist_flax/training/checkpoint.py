"""Checkpoints through Orbax: `best` (variables to use) and `last` (complete state to resume from).

Each is a directory of numbered Orbax checkpoints. A checkpoint is finished when the SHA-256 sums of its files are
written beside them, and sound as long as the sums are right: Orbax itself restores a flipped bit without any warning.
The newest two are kept: a run that was killed while it wrote one, or finds the newest damaged, uses the other.
"""

import errno
import logging
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mnist_flax.errors import UserError
from mnist_flax.files import write_text
from mnist_flax.step import TrainState
from mnist_flax.training.mesh import wait_for_all
from mnist_flax.training.sums import SUMS, checksums, is_sound

KEEP = 2
SLACK = 250_000  # bytes, more than a checkpoint's own records take
_KNOWN = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG
_DAMAGE = "its files are not those that were saved"


class Checkpoints:
    """A directory of checkpoints, numbered by step. Each has arrays (`state`) and a JSON object (`metadata`).

    This is for the run that owns the directory, and puts it in order: unfinished checkpoints are deleted, damaged ones
    are renamed to `damaged-STEP`, with a warning. Others use `find` and `read`, which change nothing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with _explained(f"cannot use {directory} for checkpoints"):
            if jax.process_index() == 0:
                _put_in_order(directory)
            wait_for_all(f"{directory} is in order")
            # The main process has verified what is left; the others need not read it again.
            self._sound = [int(path.name) for path in _numbered(directory)]
            self._manager = ocp.CheckpointManager(directory.absolute())

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Write a checkpoint; returns when it is complete on disk."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata))
        path = self.directory / str(step)
        with _explained(f"cannot write a checkpoint to {self.directory}"):
            # If the disk is full half-way, TensorStore's threads print tracebacks that cannot be caught: ask first.
            if shutil.disk_usage(self.directory).free < 2 * sum(x.nbytes for x in jax.tree.leaves(state)) + SLACK:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                write_text(path / SUMS, checksums(path))
        self._sound.append(step)
        for old in self._sound[:-KEEP]:
            self._discard(old)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest sound checkpoint as `(state, metadata)`, its arrays placed like those of `like`.

        None if nothing was ever saved.

        Raises:
            UserError: all checkpoints are damaged, or the newest sound one does not fit `like`.
        """
        step = self.latest_step()
        if step is not None:
            return read(self.directory / str(step), like, alone=False)
        if any(self.directory.glob("damaged-*")):
            raise none_left(self.directory)
        return None

    def latest_step(self) -> int | None:
        """Number of the newest sound checkpoint."""
        return max(self._sound, default=None)

    def discard_after(self, step: int) -> None:
        """Delete checkpoints newer than `step`: an interrupted run saved them and is about to repeat that work."""
        for newer in [found for found in self._sound if found > step]:
            self._discard(newer)

    def _discard(self, step: int) -> None:
        """Delete a checkpoint, its sums first: if that is interrupted, the rest looks unfinished, not damaged."""
        with _explained(f"cannot delete {self.directory / str(step)}"):
            if jax.process_index() == 0:
                (self.directory / str(step) / SUMS).unlink(missing_ok=True)
            self._manager.delete(step)
        self._sound.remove(step)

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()


def find(directory: Path) -> Path:
    """The newest sound checkpoint in a directory of checkpoints; or `directory` itself, if it is a checkpoint.

    Warns of newer ones that are damaged.

    Raises:
        UserError: there is none, or only damaged ones.
    """
    with _explained(f"cannot use {directory} for checkpoints"):
        if (directory / SUMS).exists():
            if not is_sound(directory):
                raise UserError(
                    f"{directory} is damaged ({_DAMAGE}): restore it from a copy, or use another checkpoint"
                )
            return directory
        finished = [path for path in _numbered(directory) if (path / SUMS).exists()]
        for path in reversed(finished):
            if is_sound(path):
                return path
            _warn(path, "passed over")
        if finished or any(directory.glob("damaged-*")):
            raise none_left(directory)
        raise UserError(f"{directory} holds no finished checkpoint")


def _readers(alone: bool) -> ocp.options.MultiprocessingOptions:
    """Who reads: by default Orbax waits until all processes of a job do."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        **({"primary_host": process, "active_processes": {process}} if alone else {})
    )


def read(checkpoint: Path, like: Any, *, alone: bool = True) -> tuple[Any, dict[str, Any]]:
    """Arrays and metadata of a sound checkpoint, the arrays placed like those of `like`.

    `alone` says that this process reads without the others of its job.

    Raises:
        UserError: it cannot be read, or does not fit `like`.
    """
    with (
        _explained(f"cannot read {checkpoint}"),
        ocp.StandardCheckpointer(multiprocessing_options=_readers(alone)) as arrays,
    ):
        return arrays.restore(checkpoint.absolute() / "state", like), read_metadata(checkpoint, alone=alone)


def read_metadata(checkpoint: Path, *, alone: bool = True) -> Any:
    """The metadata of a sound checkpoint; `alone` as in `read`.

    Raises:
        UserError: it cannot be read.
    """
    handler, options = ocp.JsonCheckpointHandler(), _readers(alone)
    with _explained(f"cannot read {checkpoint}"), ocp.Checkpointer(handler, multiprocessing_options=options) as json:
        return json.restore(checkpoint.absolute() / "metadata")


def read_arrays(checkpoint: Path, names: Any) -> Any:
    """Some arrays of a sound checkpoint, whatever their shapes: those at the leaves of the tree `names`.

    Raises:
        UserError: it cannot be read, or lacks some of them.
    """
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
    some = ocp.args.PyTreeRestore(item=names, restore_args=as_numpy, partial_restore=True)
    handler, options = ocp.PyTreeCheckpointHandler(), _readers(alone=True)
    with _explained(f"cannot read {checkpoint}"), ocp.Checkpointer(handler, multiprocessing_options=options) as arrays:
        return arrays.restore(checkpoint.absolute() / "state", args=some)


def none_left(directory: Path) -> UserError:
    """The error of a directory without a sound checkpoint. What else the run holds may be sound: nothing is deleted."""
    return UserError(
        f"{directory} has no sound checkpoint left: restore one of them from a copy, or train into a new --workdir"
    )


def _numbered(directory: Path) -> list[Path]:
    """The folders that have a number for a name, as Orbax writes it; other files and folders are somebody else's."""
    found = [path for path in directory.glob("*") if re.fullmatch("0|[1-9][0-9]*", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def _put_in_order(directory: Path) -> None:
    unfinished = [path for path in directory.glob("*.orbax-checkpoint-tmp*") if path.is_dir()]
    for path in [*unfinished, *_numbered(directory)]:
        if not (path / SUMS).exists():
            shutil.rmtree(path)
        elif not is_sound(path):
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            _warn(path, f"set aside as {aside.name}")


def _warn(checkpoint: Path, what_now: str) -> None:
    warnings.warn(f"{checkpoint} is damaged ({_DAMAGE}) and {what_now}", stacklevel=2)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn any exception into one sentence: Orbax and TensorStore report a full disk in many ways, with pages of log.

    Raises:
        UserError: in place of any exception.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        known = next((text for text in map(os.strerror, _KNOWN) if text in reason), None)
        if "tree structures do not match" in reason:
            known = "another version of mnist_flax wrote it; use that one, or train anew with --overwrite"
        raise UserError(f"{what}: {known or reason[:300]}") from error
    finally:
        logger.setLevel(level)


def resumable(state: TrainState) -> dict[str, Any]:
    """The arrays of a training state that a run needs to go on from it."""
    names = ("step", "params", "batch_stats", "opt_state", "key")
    return {name: getattr(state, name) for name in names}
