"""The checkpoints and records of a run, and the only object that writes them."""

import warnings
from collections.abc import Mapping, Sequence
from concurrent import futures
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from mnist_flax.errors import UserError
from mnist_flax.files import write_json
from mnist_flax.state import TrainMetrics
from mnist_flax.training.checkpoint import Checkpoints, none_left, resumable
from mnist_flax.training.checkpoint_files import explained
from mnist_flax.training.contents import HISTORY, SUMMARY, Recorded, directories_of, directories_of_checkpoints
from mnist_flax.training.mesh import to_host
from mnist_flax.training.records import write_history
from mnist_flax.training.run import Progress, Run, take_replica
from mnist_flax.training.selection import Row, best_epoch
from mnist_flax.training.signals import in_thread
from mnist_flax.training.tensorboard import TensorBoard


class RunFiles(AbstractContextManager[Any]):
    """A run's `last` checkpoint, and of each seed its `best` checkpoint, `metrics.jsonl` and TensorBoard events.

    A run of several seeds keeps each seed's files in a directory of its own. All processes of a job write checkpoints;
    the main process alone writes the rest.

    What an epoch leaves is written in a thread while the next one is trained: a checkpoint takes 0.06 s to write, and a
    run of 20 seeds writes 21 after 3 s of training on an H100. What comes next waits for it and raises its error. A job
    of several processes has no thread: they exchange messages in one order.
    """

    def __init__(self, run: Run) -> None:
        self.is_main = jax.process_index() == 0
        self.workdir = run.config.workdir
        # What `last` says of the run, beside how far it has come.
        self.origin = {"data": run.digest, "computed_by": run.computed_by, "config": run.config.to_json()}
        self.directories = directories_of(run.config)
        self.started_before = any((path / "best").exists() for path in self.directories)
        own = directories_of_checkpoints(Recorded(run.config, {})).items()
        self.last, *self.best = (Checkpoints(directory, ours) for directory, ours in own)
        self.boards: list[TensorBoard] = []
        self._writing = futures.Future[None]()
        self._writing.set_result(None)  # nothing

    def restore(self, progress: Progress) -> Progress | None:
        """The progress that the newest `last` checkpoint holds, placed like `progress`; None if there is none.

        Raises:
            UserError: the run's networks or images are not what they were, or to start anew would cost it what it has.
        """
        restored = self.last.restore(like={"state": resumable(progress.state), "totals": progress.metrics})
        if restored is not None:
            arrays, metadata = restored  # what runs of earlier versions do not have counts as the same
            _compare(self.workdir, {**self.origin, **metadata}, self.origin)
            state = progress.state.replace(**arrays["state"])
            so_far = tuple(map(tuple, metadata["histories"])), metadata["epoch_seconds"], int(to_host(state.step).max())
            progress = Progress(state, TrainMetrics(*arrays["totals"]), *so_far)
        else:
            _require_nothing_lost(self.last, self.directories, self.best)
        progress = _go_on_from(progress, self.last, self.best)
        return progress if restored is not None else None

    def open_records(self, histories: Sequence[Sequence[Row]], augmented: UInt8[np.ndarray, "n h w"]) -> None:
        """Start the records anew from the histories: the last epoch's may be missing; with images as augmented."""
        if self.is_main:
            with _recording(self.workdir):
                _write_histories(self.directories, histories)
                self.boards = [TensorBoard(*files) for files in zip(self.directories, histories, strict=True)]
                self.boards[0].add_grid("augmented", augmented, columns=8)

    def save_epoch(self, progress: Progress, cards: Mapping[int, dict[str, Any]], finished: Sequence[int]) -> None:
        """Write what the replicas `finished` leave after another epoch, in a thread if that may be.

        First come new best networks (`cards`), then `last`: a run killed between repeats the epoch. Records are last.
        """
        self._writing.result()
        if jax.process_count() > 1:
            self._write_epoch(progress, cards, finished)
        else:
            self._writing = in_thread(partial(self._write_epoch, _on_host(progress), cards, finished))

    def _write_epoch(self, progress: Progress, cards: Mapping[int, dict[str, Any]], finished: Sequence[int]) -> None:
        variables = to_host(progress.state.variables)
        for i, card in cards.items():
            self.best[i].save(card["step"], take_replica(variables, i), card)
        self._write_last(progress)
        if self.is_main:
            with _recording(self.workdir):
                for i in finished:
                    write_history(self.directories[i], progress.histories[i])
                    self.boards[i].add_epoch(progress.histories[i][-1])

    def save_last(self, progress: Progress) -> None:
        """Write all that the run needs to go on from here, unless that is done."""
        self._writing.result()
        if self.last.latest_step() != progress.step:
            self._write_last(progress)

    def _write_last(self, progress: Progress) -> None:
        state = {"state": resumable(progress.state), "totals": progress.metrics}
        so_far = {"histories": progress.histories, "epoch_seconds": progress.epoch_seconds}
        self.last.save(progress.step, state, {**so_far, **self.origin})

    def restore_best(self, progress: Progress) -> tuple[Any, list[dict[str, Any]]]:
        """The variables of every replica's best epoch, with a leading axis of replicas, and their cards.

        Raises:
            UserError: a checkpoint is not there any more.
        """
        self._writing.result()
        like = take_replica(to_host(progress.state.variables), 0)
        variables, cards = [], []
        for best in self.best:
            restored = best.restore(like=like)
            if restored is None:
                raise none_left(best.directory)
            variables.append(restored[0])
            cards.append(restored[1])
        return jax.tree.map(lambda *leaves: np.stack(leaves), *variables), cards

    def write_summary(self, summary: dict[str, Any], config: dict[str, Any]) -> None:
        """Write `summary.json`, and its figures into TensorBoard."""
        if self.is_main:
            with _recording(self.workdir):
                for board, result in zip(self.boards, summary.get("seeds", [summary]), strict=True):
                    shown = {name: result[name] for name in ("val_accuracy", "test_accuracy", "test_loss")}
                    board.add_result({**config, "seed": result["seed"]}, shown)
                write_json(self.workdir / SUMMARY, summary)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Flush and release what is open; what is being written is finished first.

        Raises:
            UserError: that failed, and nothing did before: a failed write can fail again when its file is closed.
        """
        failed = isinstance(error, Exception)
        with suppress(UserError) if failed else nullcontext(), _recording(self.workdir), ExitStack() as open_files:
            for board in self.boards:
                open_files.callback(board.close)
            self._writing.result()


def _recording(workdir: Path) -> AbstractContextManager[None]:
    return explained(f"cannot write to {workdir}")


def _write_histories(directories: Sequence[Path], histories: Sequence[Sequence[Row]]) -> None:
    for directory, history in zip(directories, histories, strict=True):
        if history:
            write_history(directory, history)


def _require_nothing_lost(last: Checkpoints, directories: Sequence[Path], bests: Sequence[Checkpoints]) -> None:
    """Refuse to start again where the run had come further than its first epoch, of which it may have only `best`.

    Raises:
        UserError: naming what would be lost.
    """
    for directory, best in zip(directories, bests, strict=True):
        rows = directory / HISTORY
        for found in [rows] if rows.exists() else best.of_later_epochs():
            raise UserError(
                f"{last.directory} holds no checkpoint to resume from, but {found} is there, of a run that had come "
                f"further: put {last.directory} back from a copy, choose another --workdir, or start again with "
                "--overwrite, which deletes that run"
            )


def _compare(workdir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with other data than before, and warn of what else changes a run's bits.

    Raises:
        UserError: the data, or the teachers, are others.
    """
    if before["data"] != now["data"]:
        what = "on other images, or with another teacher," if now["config"]["teacher"] else "on other images"
        raise UserError(
            f"{workdir} holds a run {what} than there are now: put back those of its start, or choose another --workdir"
        )
    if jax.process_index() == 0 and before["computed_by"] != now["computed_by"]:
        warnings.warn(
            f"this run was trained with {before['computed_by']} so far and goes on with {now['computed_by']}: these "
            "round differently, so it will not end with the same bits as an uninterrupted run",
            stacklevel=3,
        )


def _go_on_from(progress: Progress, last: Checkpoints, bests: Sequence[Checkpoints]) -> Progress:
    """Make room for the checkpoints that are to come: a run killed between its saves repeats its newest `best`'s epoch.

    Raises:
        UserError: a network is lost, or what this run did not write is in the way.
    """
    histories = []
    for best, history in zip(bests, progress.histories, strict=True):
        best.discard_after(progress.step)
        histories.append(_mark_lost(history, best))
    last.discard_after(progress.step)
    return progress._replace(histories=tuple(histories))


def _on_host(progress: Progress) -> Progress:
    """A copy that stays as it is: training takes the memory of the state for the next."""
    state, metrics = to_host((progress.state, progress.metrics))
    return progress._replace(state=state, metrics=metrics)


def _mark_lost(history: Sequence[Row], best: Checkpoints) -> Sequence[Row]:
    """The history with the epochs marked whose checkpoints are lost.

    Those are the epochs after the newest sound `best` checkpoint, if that is not the best epoch's.

    Raises:
        UserError: there is no sound checkpoint left.
    """
    if not history:
        return history
    kept = best.latest_step()
    if kept is None:
        raise none_left(best.directory)
    if history[best_epoch(history) - 1]["step"] == kept:
        return history
    return tuple({**row, "checkpoint_lost": True} if row["step"] > kept else row for row in history)
