"""What a run writes for people and programs: JSON files, TensorBoard events, the progress bar.

Everything here is derived from the run's history (a row per epoch), which travels in the `last` checkpoint: a resumed
run writes the files anew from it, so that no row is ever missing or doubled, wherever the run was killed.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

Row = dict[str, Any]

_SCALARS = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "accuracy/train": "train_accuracy",
    "accuracy/val": "val_accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "images_per_second": "images_per_second",
}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object, indented, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_history(path: Path, history: list[Row]) -> None:
    """`metrics.jsonl`: a row per epoch."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in history))


def _summary_writer_class() -> Any:
    """The `SummaryWriter` of tensorboardX, imported as if PyTorch were not installed.

    Where it is, tensorboardX imports it to recognise its tensors. There are none here, and it takes a second.
    """
    if hidden := "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment] - so that importing it is an ImportError
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter


class TensorBoard:
    """TensorBoard events of one run; opening replaces those an interrupted run left, from its history."""

    def __init__(self, directory: Path, history: list[Row]) -> None:
        for events in directory.glob("**/events.out.tfevents.*"):
            events.unlink()
        self._writer = _summary_writer_class()(str(directory))
        for row in history:
            self.add_epoch(row)

    def add_epoch(self, row: Row) -> None:
        """The scalars of one epoch."""
        for tag, name in _SCALARS.items():
            self._writer.add_scalar(tag, row[name], row["epoch"], walltime=row["time"])
        self._writer.flush()

    def add_grid(self, tag: str, images: UInt8[np.ndarray, "n h w"], columns: int) -> None:
        """Images side by side, `columns` to a row."""
        n, height, width = images.shape
        grid = images.reshape(n // columns, columns, height, width).transpose(0, 2, 1, 3)
        self._writer.add_image(tag, grid.reshape(-1, columns * width), dataformats="HW")

    def add_result(self, options: dict[str, Any], result: dict[str, float]) -> None:
        """Hyper-parameters with the final figures (TensorBoard's HPARAMS tab)."""
        shown = {
            name: value if isinstance(value, bool | int | float) else str(value) for name, value in options.items()
        }
        self._writer.add_hparams(shown, {f"result/{name}": value for name, value in result.items()}, name="hparams")

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Progress:
    """A tqdm bar over all images of the run on a terminal; nothing elsewhere."""

    def __init__(self, total_images: int, done_images: int, show: bool) -> None:
        from tqdm import tqdm

        self._show = show
        hidden = not (show and sys.stderr.isatty())
        self._bar = tqdm(total=total_images, initial=done_images, unit=" images", unit_scale=True, disable=hidden)

    def advance(self, epoch: int, epochs: int, images: int, loss: float, accuracy: float) -> None:
        """After `images` more, with the epoch's loss and accuracy so far."""
        self._bar.set_description(f"Epoch {epoch}/{epochs}", refresh=False)
        self._bar.set_postfix_str(f"loss {loss:.4f}, accuracy {accuracy:.2%}", refresh=False)
        self._bar.update(images)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._show:
            self._bar.clear()
            print(line, flush=True)
            self._bar.refresh()

    def close(self) -> None:
        """Leave the terminal clean."""
        self._bar.leave = False
        self._bar.close()
