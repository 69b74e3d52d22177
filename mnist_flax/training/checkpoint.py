"""Checkpoints through Orbax: `best` (variables to use) and `last` (complete state to resume from).

Each is a directory of numbered Orbax checkpoints. A checkpoint gets its number when it is finished, with the SHA-256
sums of its files beside them, and is sound as long as these are right: Orbax itself restores a flipped bit without any
warning. The newest two are kept: a run that was killed while it wrote one, or finds the newest damaged, uses the other.

`Checkpoints` is for the run that owns a directory; `find` and `read` are for others, and change nothing. Orbax's
CheckpointManager has no part in this: it takes any numbered folder for its own, and deletes it whole.
"""

import errno
import gc
import logging
import os
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mnist_flax.errors import UserError
from mnist_flax.files import write_text
from mnist_flax.state import TrainState
from mnist_flax.training import checkpoint_files
from mnist_flax.training.checkpoint_files import SUMS, Ours, checksums, explained, numbered
from mnist_flax.training.mesh import wait_for_all

KEEP = 2
SLACK = 250_000  # bytes, more than a checkpoint's own records take
DAMAGE = "its files are not those that were saved"
UNLISTED = f"has lost its {SUMS}, as in a copy, but all of it can be read, so it is used"
_USABLE = "sound", "unlisted"


class Checkpoints:
    """A directory of checkpoints, numbered by step. Each has arrays (`state`) and a JSON object (`metadata`).

    The directory is put in order first: unfinished checkpoints are deleted, damaged ones are renamed to `damaged-STEP`,
    with a warning. `ours` tells the run's checkpoints by their metadata; whatever else is there stays as it is.
    """

    def __init__(self, directory: Path, ours: Ours = lambda metadata: True) -> None:
        self.directory, self._ours = directory, ours
        with explained(f"cannot use {directory} for checkpoints"):
            if jax.process_index() == 0:
                directory.mkdir(parents=True, exist_ok=True)
                _put_in_order(directory, ours)
            wait_for_all(f"{directory} is in order")
            # The main process has verified what is left; the others need not read it again.
            self._sound = [int(path.name) for path in numbered(directory) if checkpoint_files.has_sums(path, ours)]
            self._unfinished = checkpoint_files.unused_suffix(directory)

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Write a checkpoint; returns when it is complete on disk."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata))
        path, unfinished = self.directory / str(step), self.directory / f"{step}{self._unfinished}"
        with explained(f"cannot write a checkpoint to {self.directory}"):
            # If the disk is full half-way, TensorStore's threads print tracebacks that cannot be caught: ask first.
            if shutil.disk_usage(self.directory).free < 2 * sum(x.nbytes for x in jax.tree.leaves(state)) + SLACK:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            is_main = jax.process_index() == 0
            with checkpoint_files.announced(unfinished) if is_main else nullcontext():
                with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
                    writer.save(unfinished.absolute(), args=items)
                if is_main:
                    write_text(unfinished / SUMS, checksums(unfinished))
                    unfinished.rename(path)
            wait_for_all(f"{path} is complete")
        self._sound.append(step)
        for old in self._sound[:-KEEP]:
            self._discard(old)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest sound checkpoint as `(state, metadata)`, its arrays placed like those of `like`.

        None if there is none.

        Raises:
            UserError: it does not fit `like`.
        """
        step = self.latest_step()
        return None if step is None else read(self.directory / str(step), like, alone=False)

    def latest_step(self) -> int | None:
        """Number of the newest sound checkpoint."""
        return max(self._sound, default=None)

    def of_later_epochs(self) -> list[Path]:
        """The sound checkpoints of networks that were trained for more than one epoch."""
        paths = [self.directory / str(step) for step in self._sound]
        return [path for path in paths if (checkpoint_files.metadata_of(path) or {}).get("epoch", 1) != 1]

    def discard_after(self, step: int) -> None:
        """Delete checkpoints newer than `step`: an interrupted run saved them and is about to repeat that work.

        Raises:
            UserError: what no run wrote has the number of a checkpoint that is still to come.
        """
        for newer in [found for found in self._sound if found > step]:
            self._discard(newer)
        for path in checkpoint_files.in_the_way(self.directory, step, self._ours):
            raise UserError(f"{path} is in the way, and this run did not write it: move it away, and start again")

    def _discard(self, step: int) -> None:
        """Delete a checkpoint: what its sums list."""
        with explained(f"cannot delete {self.directory / str(step)}"):
            if jax.process_index() == 0:
                checkpoint_files.delete(self.directory / str(step))
        self._sound.remove(step)


def _put_in_order(directory: Path, ours: Ours) -> None:
    checkpoint_files.delete_unfinished(directory)
    for path in numbered(directory):
        found = condition(path, ours)
        if found == "deleted":
            checkpoint_files.delete(path)
        elif found == "damaged":
            aside = checkpoint_files.set_aside(path)
            warnings.warn(f"{path} is damaged ({DAMAGE}) and set aside as {aside.name}", stacklevel=2)
        elif found == "unlisted":
            write_text(path / SUMS, checksums(path))
            warnings.warn(f"{path} {UNLISTED}; the sums are written anew", stacklevel=2)


def resumable(state: TrainState) -> dict[str, Any]:
    """The arrays of a training state that a run needs to go on from it."""
    names = ("step", "params", "batch_stats", "opt_state", "key")
    return {name: getattr(state, name) for name in names}


def find(directory: Path) -> Path:
    """The newest sound checkpoint in a directory of checkpoints; or `directory` itself, if it is a checkpoint.

    Warns of newer ones that are damaged, and of one that is used though its sums are lost.

    Raises:
        UserError: there is none, or only damaged ones.
    """
    with explained(f"cannot use {directory} for checkpoints"):
        found = condition(directory)
        if found == "damaged":
            raise UserError(f"{directory} is damaged ({DAMAGE}): restore it from a copy, or use another checkpoint")
        checkpoints = [directory] if found in _USABLE else reversed(numbered(directory))
        damaged = any(directory.glob("damaged-*"))
        for path in checkpoints:
            found = condition(path)
            if found in _USABLE:
                if found == "unlisted":
                    warnings.warn(f"{path} {UNLISTED}", stacklevel=2)
                return path
            if found == "damaged":
                warnings.warn(f"{path} is damaged ({DAMAGE}) and passed over", stacklevel=2)
                damaged = True
        raise none_left(directory) if damaged else UserError(f"{directory} holds no finished checkpoint")


def _readers(alone: bool) -> ocp.options.MultiprocessingOptions:
    """Orbax's option for reading alone: by default it waits until all processes of a job read."""
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
        explained(f"cannot read {checkpoint}"),
        ocp.StandardCheckpointer(multiprocessing_options=_readers(alone)) as arrays,
    ):
        return arrays.restore(checkpoint.absolute() / "state", like), read_metadata(checkpoint, alone=alone)


def read_metadata(checkpoint: Path, *, alone: bool = True) -> Any:
    """The metadata of a sound checkpoint; `alone` as in `read`.

    Raises:
        UserError: it cannot be read.
    """
    handler, options = ocp.JsonCheckpointHandler(), _readers(alone)
    with explained(f"cannot read {checkpoint}"), ocp.Checkpointer(handler, multiprocessing_options=options) as json:
        return json.restore(checkpoint.absolute() / "metadata")


def read_arrays(checkpoint: Path, names: Any) -> Any:
    """Some arrays of a sound checkpoint, whatever their shapes: those at the leaves of the tree `names`.

    Raises:
        UserError: it cannot be read, or lacks some of them.
    """
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
    some = ocp.args.PyTreeRestore(item=names, restore_args=as_numpy, partial_restore=True)
    handler, options = ocp.PyTreeCheckpointHandler(), _readers(alone=True)
    with explained(f"cannot read {checkpoint}"), ocp.Checkpointer(handler, multiprocessing_options=options) as arrays:
        return arrays.restore(checkpoint.absolute() / "state", args=some)


def condition(checkpoint: Path, ours: Ours = lambda metadata: True) -> str:
    """As `checkpoint_files.condition`, but "unlisted" only if all of the checkpoint can be read, and else "damaged"."""
    found = checkpoint_files.condition(checkpoint, ours)
    return "damaged" if found == "unlisted" and not _can_be_read(checkpoint) else found


def _can_be_read(checkpoint: Path) -> bool:
    """Whether all arrays that a checkpoint says it has can be read."""
    handler, options = ocp.PyTreeCheckpointHandler(), _readers(alone=True)
    try:
        with (
            explained(f"cannot read {checkpoint}"),
            ocp.Checkpointer(handler, multiprocessing_options=options) as arrays,
        ):
            names = arrays.metadata(checkpoint.absolute() / "state").item_metadata
        read_arrays(checkpoint, names.tree)
        return True
    except (UserError, AttributeError):
        pass
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    gc.collect()  # or what Orbax left of its tasks would print a traceback each, whenever Python comes to it
    logging.getLogger("asyncio").setLevel(logging.NOTSET)
    return False


def none_left(directory: Path) -> UserError:
    """The error of a directory without a sound checkpoint. What else the run holds may be sound: nothing is deleted."""
    return UserError(
        f"{directory} has no sound checkpoint left: restore one of them from a copy, or train into a new --workdir"
    )
