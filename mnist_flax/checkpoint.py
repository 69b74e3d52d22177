"""Checkpoints through Orbax: `best` (variables to use) and `last` (complete state to resume from).

Each is a directory of numbered Orbax checkpoints, written under a temporary name and renamed when complete, so that a
killed run leaves the previous one intact. Two are kept.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mnist_flax.errors import UserError
from mnist_flax.step import TrainState


class Checkpoints:
    """One directory of checkpoints: arrays (`state`) with a JSON object (`metadata`) each, numbered by step."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        options = ocp.CheckpointManagerOptions(max_to_keep=2)
        with _explained(f"cannot use {directory} for checkpoints"):
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, step: int, state: Any, metadata: dict[str, Any]) -> None:
        """Write a checkpoint; returns when it is complete on disk."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata))
        with _explained(f"cannot write a checkpoint to {self.directory}"):
            self._manager.save(step, args=items, force=True)
            self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint as `(state, metadata)`, arrays placed like those of `like`; None if there is none."""
        step = self._manager.latest_step()
        if step is None:
            return None
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), metadata=ocp.args.JsonRestore())
        with _explained(f"cannot read {self.directory / str(step)}"):
            restored = self._manager.restore(step, args=items)
        return restored["state"], restored["metadata"]

    def latest_step(self) -> int | None:
        """Number of the newest finished checkpoint."""
        return self._manager.latest_step()

    def discard_after(self, step: int) -> None:
        """Delete checkpoints newer than `step`: an interrupted run saved them and is about to redo that work."""
        for newer in [found for found in self._manager.all_steps() if found > step]:
            self._manager.delete(newer)

    def close(self) -> None:
        """Release Orbax's threads."""
        self._manager.close()


class _explained:  # noqa: N801 - a context manager
    """Orbax and TensorStore report a full disk or a damaged file by many types; say it in one sentence."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception):
            reason = " ".join(str(error).split())
            raise UserError(f"{self.what}: {reason[:300] or type(error).__name__}") from error


def resumable(state: TrainState) -> dict[str, Any]:
    """The arrays of a training state, all that is needed to go on from it."""
    names = ("step", "params", "batch_stats", "opt_state", "key")
    return {name: getattr(state, name) for name in names}


def load_variables(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model variables and metadata (config, normalisation, accuracy ...) of a run's best checkpoint.

    `directory` is a run directory or its `best` directory. Of a run of several seeds it is the network with the highest
    validation accuracy (then the lowest validation loss).

    Raises:
        UserError: there is no checkpoint, or it does not fit the network.
    """
    candidates = [best for best in (directory / "best", *directory.glob("seed-*/best")) if best.is_dir()]
    if not candidates and directory.name != "best":
        raise UserError(f"{directory} holds no checkpoint ({directory / 'best'} does not exist)")
    found = [_load(best) for best in candidates or [directory]]
    return max(found, key=lambda loaded: (loaded[1]["val_accuracy"], -loaded[1]["val_loss"]))


def _load(best: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from mnist_flax.model import init_variables

    checkpoints = Checkpoints(best)
    try:
        # Only the shapes are wanted: to compile the initialisation takes 12 s.
        shapes = jax.eval_shape(init_variables, jax.random.key(0))
        restored = checkpoints.restore(like=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"{best} holds no finished checkpoint")
    return restored
