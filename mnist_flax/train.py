"""`python -m mnist_flax.train`: train, select, stop early, checkpoint, resume, test once.

This file is the command: it loads the data, claims the run directory, and hands both to `trainer.py`, which holds the
loop. Heavy imports wait until the options are known to be good, so that `--help` and mistakes are answered at once.
"""

import dataclasses
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mnist_flax.config import Config, parse, refuse_changes
from mnist_flax.errors import UserError, command

DEFAULTS: dict[str, Any] = {"epochs": 10, "patience": 5}
# 1,319 training images take more epochs, and 119 validation images tell them apart less often.
DEFAULTS_FOR: dict[str, dict[str, Any]] = {"digits": {"epochs": 60, "patience": 20}}
OWN_FILES = (
    *("config.json", "metrics.jsonl", "summary.json", "best", "last", "hparams", "report"),
    *("events.out.tfevents.*", "seed-[0-9]*"),
)


class Interruption:
    """Which signal, if any, has asked the run to stop at the next opportunity."""

    signal: int | None = None


@command
def main() -> None:
    """The command line."""
    config = parse()
    with _signals() as interruption:
        train(config, interruption)


@contextmanager
def _signals() -> Iterator[Interruption]:
    """SIGTERM and Ctrl-C are noted for the loop to act on; a second Ctrl-C acts at once."""
    interruption = Interruption()

    def note(number: int, frame: Any) -> None:
        interruption.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping as soon as the steps under way are done; Ctrl-C to stop at once", file=sys.stderr)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(config: Config, interruption: Interruption | None = None) -> dict[str, Any]:
    """Train as `config` says, or go on from where its run directory stopped; returns the run's summary.

    Raises:
        UserError: something is wrong that the user can put right; nothing is lost.
        SystemExit: a signal asked the run to stop; it has saved and said how to go on.
    """
    _require_writable(config.workdir)
    import jax

    from mnist_flax import data
    from mnist_flax.mesh import make_mesh, use_compilation_cache
    from mnist_flax.trainer import Trainer

    if not config.no_compilation_cache:
        use_compilation_cache()
    if config.distributed:
        jax.distributed.initialize()
    dataset = data.load(config.dataset, config.data_dir, config.val_size)
    num_train = len(dataset.train.labels)
    if config.batch_size > num_train:
        raise UserError(f"--batch-size {config.batch_size} is more than the {num_train} training images there are")
    defaults = DEFAULTS_FOR.get(dataset.name, DEFAULTS)
    config = dataclasses.replace(
        config,
        dataset=dataset.name,
        epochs=defaults["epochs"] if config.epochs is None else config.epochs,
        patience=defaults["patience"] if config.patience is None else config.patience,
        val_size=0 if dataset.selection_split == "test" else len(dataset.validation.labels),
    )
    mesh = make_mesh(config.batch_size, config.num_devices, config.num_seeds)
    if jax.process_index() == 0:
        if config.overwrite:
            _delete_run(config.workdir)
        finished = _claim(config)
        if finished is not None:
            print(
                f"{config.workdir} holds a finished run: test accuracy {finished['test_accuracy']:.2%} on "
                f"{finished['dataset']} after {finished['epochs_run']} epochs. Nothing was done; choose another "
                "--workdir, or pass --overwrite to train again."
            )
            return finished
    summary = Trainer(config, dataset, mesh, interruption or Interruption()).run()
    if jax.process_index() == 0 and not config.no_report:
        from mnist_flax.report import report

        print(f"Pictures: {report([config.workdir], config.workdir / 'report', config.data_dir)}")
    return summary


def _require_writable(workdir: Path) -> None:
    probe = workdir / f".writable{os.getpid()}"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written ({error.strerror}); choose another") from error


def _delete_run(workdir: Path) -> None:
    """Delete what a run writes, and nothing else that may lie there."""
    for path in [path for pattern in OWN_FILES for path in workdir.glob(pattern)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _claim(config: Config) -> dict[str, Any] | None:
    """Record the configuration in a new run directory, or check it against an old one's; a finished run's summary."""
    from mnist_flax.logs import write_json

    stored = _read_json(config.workdir / "config.json")
    if stored is None:
        write_json(config.workdir / "config.json", config.to_json())
        return None
    refuse_changes(stored, config)
    return _read_json(config.workdir / "summary.json")


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or pass --overwrite to start afresh") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (not a JSON object); restore it, or pass --overwrite to start afresh")
    return value


if __name__ == "__main__":
    main()
