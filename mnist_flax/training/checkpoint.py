"""Checkpoints through Orbax: `best` (variables to use) and `last` (complete state to resume from).

Each is a directory of numbered Orbax checkpoints. A checkpoint gets its number when it is finished, with the SHA-256
sums of its files beside them, and is sound as long as these are right: Orbax itself restores a flipped bit without any
warning. The newest two are kept: a run that was killed while it wrote one, or finds the newest damaged, uses the other.

Orbax's CheckpointManager has no part in this: it takes any numbered folder for its own, and deletes it whole.
"""

import errno
import os
import shutil
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mnist_flax.errors import UserError
from mnist_flax.files import write_text
from mnist_flax.step import TrainState
from mnist_flax.training import checkpoint_files
from mnist_flax.training.checkpoint_files import Ours, numbered
from mnist_flax.training.checkpoint_reading import DAMAGE, UNLISTED, condition, explained, read
from mnist_flax.training.mesh import wait_for_all
from mnist_flax.training.sums import SUMS, checksums

KEEP = 2
SLACK = 250_000  # bytes, more than a checkpoint's own records take


class Checkpoints:
    """A directory of checkpoints, numbered by step. Each has arrays (`state`) and a JSON object (`metadata`).

    This is for the run that owns the directory, and puts it in order: unfinished checkpoints are deleted, damaged ones
    are renamed to `damaged-STEP`, with a warning. Others use `find` and `read`, which change nothing. `ours` tells the
    run's checkpoints by their metadata; whatever else is in the directory stays as it is.
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
