"""Checkpoints through Orbax: `best` (variables to use) and `last` (complete state to resume from).

Each is a directory of numbered Orbax checkpoints. A checkpoint is finished when the SHA-256 sums of its files are
written beside them, and sound as long as the sums are right: Orbax itself restores a flipped bit without any warning.
The newest two are kept: a run that was killed while it wrote one, or finds the newest damaged, uses the other.
"""

import errno
import hashlib
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mnist_flax.errors import UserError
from mnist_flax.files import write_text
from mnist_flax.step import TrainState
from mnist_flax.training.mesh import wait_for_all

KEEP = 2
SLACK = 250_000  # bytes, more than a checkpoint's own records take
_KNOWN = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG
SUMS = "SHA256SUMS"  # as `sha256sum --check` reads it


class Checkpoints:
    """A directory of checkpoints, numbered by step. Each has arrays (`state`) and a JSON object (`metadata`).

    The run that owns the directory puts it in order when it opens it: unfinished checkpoints are deleted, damaged ones
    are renamed to `damaged-STEP`. Others open it `read_only` and change nothing. Damage is reported by a warning.
    """

    def __init__(self, directory: Path, read_only: bool = False) -> None:
        self.directory = directory
        with _explained(f"cannot use {directory} for checkpoints"):
            if not read_only:
                if jax.process_index() == 0:
                    _put_in_order(directory)
                wait_for_all(f"{directory} is in order")
            # The main process has verified what is left; the others need not read it again.
            finished = [int(path.name) for path in _numbered(directory)]
            self._sound, self._damaged = _inspect(directory) if read_only else (finished, [])
            self._manager = None if read_only else ocp.CheckpointManager(directory.absolute())
        # By default Orbax waits until all processes of a job read; who reads only may be alone, as the report is.
        alone = {"primary_host": jax.process_index(), "active_processes": {jax.process_index()}} if read_only else {}
        self._readers = ocp.options.MultiprocessingOptions(**alone)

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Write a checkpoint; returns when it is complete on disk."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata))
        path = self.directory / str(step)
        assert self._manager is not None
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
        if step is None:
            if self._damaged or any(self.directory.glob("damaged-*")):
                raise UserError(f"{self.directory} holds only damaged checkpoints; train again, with --overwrite")
            return None
        path = self.directory.absolute() / str(step)
        with (
            _explained(f"cannot read {self.directory / str(step)}"),
            ocp.StandardCheckpointer(multiprocessing_options=self._readers) as arrays,
            ocp.Checkpointer(ocp.JsonCheckpointHandler(), multiprocessing_options=self._readers) as json,
        ):
            return arrays.restore(path / "state", like), json.restore(path / "metadata")

    def latest_step(self) -> int | None:
        """Number of the newest sound checkpoint."""
        return max(self._sound, default=None)

    def discard_after(self, step: int) -> None:
        """Delete checkpoints newer than `step`: an interrupted run saved them and is about to repeat that work."""
        for newer in [found for found in self._sound if found > step]:
            self._discard(newer)

    def _discard(self, step: int) -> None:
        """Delete a checkpoint, its sums first: if that is interrupted, the rest looks unfinished, not damaged."""
        assert self._manager is not None
        with _explained(f"cannot delete {self.directory / str(step)}"):
            if jax.process_index() == 0:
                (self.directory / str(step) / SUMS).unlink(missing_ok=True)
            self._manager.delete(step)
        self._sound.remove(step)

    def close(self) -> None:
        """Release Orbax's threads."""
        if self._manager is not None:
            self._manager.close()


def _numbered(directory: Path) -> list[Path]:
    return sorted((path for path in directory.glob("*") if path.name.isdecimal()), key=lambda path: int(path.name))


def checksums(checkpoint: Path) -> str:
    """The content of a checkpoint's `SHA256SUMS`: a line `digest  path` for each file."""
    files = sorted(path for path in checkpoint.rglob("[!.]*") if path.is_file() and path.name != SUMS)
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(checkpoint).as_posix()}\n"
        for path in files
    )


def _is_sound(checkpoint: Path) -> bool:
    return (checkpoint / SUMS).read_bytes() == checksums(checkpoint).encode()


def _put_in_order(directory: Path) -> None:
    for path in [*directory.glob("*.orbax-checkpoint-tmp*"), *_numbered(directory)]:
        if not (path / SUMS).exists():
            shutil.rmtree(path)
        elif not _is_sound(path):
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            _warn(path, f"set aside as {aside.name}")


def _inspect(directory: Path) -> tuple[list[int], list[int]]:
    """Numbers of the finished checkpoints: those that are sound, in order, and those that are not."""
    finished = [path for path in _numbered(directory) if (path / SUMS).exists()]
    damaged = [path for path in finished if not _is_sound(path)]
    for path in damaged:
        _warn(path, "passed over")
    return [int(path.name) for path in finished if path not in damaged], [int(path.name) for path in damaged]


def _warn(checkpoint: Path, what_now: str) -> None:
    warnings.warn(f"{checkpoint} is damaged (its files are not those that were saved) and {what_now}", stacklevel=2)


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
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        known = next((text for text in map(os.strerror, _KNOWN) if text in reason), None)
        raise UserError(f"{what}: {known or reason[:300]}") from error
    finally:
        logger.setLevel(level)


def resumable(state: TrainState) -> dict[str, Any]:
    """The arrays of a training state that a run needs to go on from it."""
    names = ("step", "params", "batch_stats", "opt_state", "key")
    return {name: getattr(state, name) for name in names}
