"""TensorBoard events of a run, by tensorboardX's parts, without its `SummaryWriter`."""

import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mnist_flax.files import SIGN
from mnist_flax.training.contents import EVENTS_SUFFIX, events_in
from mnist_flax.training.selection import Row

_SCALARS = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/val": "val_accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "images_per_second": "images_per_second",
}


def _tensorboardx() -> Any:
    """tensorboardX, imported as if PyTorch were not installed.

    If PyTorch is installed, tensorboardX imports it to recognise its tensors. We have none, and it takes a second.
    """
    if hidden := "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment] - so that importing it is an ImportError
    try:
        import tensorboardX
        import tensorboardX.event_file_writer
    finally:
        if hidden:
            del sys.modules["torch"]
    return tensorboardX


class _Events:
    """A file of TensorBoard events that says that we wrote it, by name and by a message that TensorBoard ignores.

    Events are written at once, not by tensorboardX's `SummaryWriter`: if a write fails, its thread ends with a
    traceback, and whoever writes the next event waits for it for ever.
    """

    def __init__(self, directory: Path) -> None:
        self._tensorboardx = _tensorboardx()
        self.summary = self._tensorboardx.summary
        directory.mkdir(exist_ok=True)
        self._file = self._tensorboardx.event_file_writer.EventsWriter(str(directory / "events"), EVENTS_SUFFIX)
        self._write(log_message={"message": SIGN})

    def add(self, summary: Any, wall_time: float | None = None, step: int = 0) -> None:
        self._write(summary=summary, step=step, wall_time=wall_time)

    def _write(self, wall_time: float | None = None, **event: Any) -> None:
        self._file.write_event(self._tensorboardx.proto.event_pb2.Event(wall_time=wall_time or time.time(), **event))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard events of one run. Opening it replaces the events of an interrupted run by those of its history."""

    def __init__(self, directory: Path, history: Sequence[Row]) -> None:
        self._results = directory / "hparams"
        for events in (*events_in(directory), *events_in(self._results)):
            events.unlink()
        self._events = _Events(directory)
        for row in history:
            self.add_epoch(row)

    def add_epoch(self, row: Row) -> None:
        """Write the scalars of one epoch."""
        for tag, name in _SCALARS.items():
            self._events.add(self._events.summary.scalar(tag, row[name]), row["time"], row["epoch"])
        self._events.flush()

    def add_grid(self, tag: str, images: UInt8[np.ndarray, "n h w"], columns: int) -> None:
        """Write one picture of all images, `columns` to a row."""
        n, height, width = images.shape
        grid = images.reshape(n // columns, columns, height, width).transpose(0, 2, 1, 3)
        self._events.add(self._events.summary.image(tag, grid.reshape(-1, columns * width), dataformats="HW"))

    def add_result(self, options: dict[str, Any], result: dict[str, float]) -> None:
        """Write the hyper-parameters with the final figures (TensorBoard's HPARAMS tab)."""
        shown = {
            name: value if isinstance(value, bool | int | float) else str(value) for name, value in options.items()
        }
        figures = {f"result/{name}": value for name, value in result.items()}
        with contextlib.closing(_Events(self._results)) as events:
            scalars = (events.summary.scalar(tag, value) for tag, value in figures.items())
            for part in (*events.summary.hparams(shown, figures), *scalars):
                events.add(part)

    def close(self) -> None:
        """Flush and close."""
        self._events.close()
