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
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from mnist_flax.config import Config, parse, refuse_changes
from mnist_flax.errors import UserError, command

DEFAULTS: dict[str, Any] = {"epochs": 10, "patience": 5}
# 1,319 training images take more epochs, and 119 validation images tell them apart less often.
DEFAULTS_FOR: dict[str, dict[str, Any]] = {"digits": {"epochs": 60, "patience": 20}}
# After so long without a sign of life a process of a job is taken for dead, and the others end.
HEARTBEAT_SECONDS = 30
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
    with _signals() as interruption, _leaving_the_job_at_once() if config.distributed else nullcontext():
        train(config, interruption)


@contextmanager
def _signals() -> Iterator[Interruption]:
    """SIGTERM and Ctrl-C are noted for the loop to act on; a second Ctrl-C acts at once."""
    interruption = Interruption()

    def note(number: int, frame: Any) -> None:
        interruption.signal = number
        signal.signal(signal.SIGINT, leave)
        print("\nstopping as soon as the steps under way are done; Ctrl-C to stop at once", file=sys.stderr)

    def leave(number: int, frame: Any) -> None:
        # Not by an exception: Orbax's threads, cut off in the middle of a save, would print tracebacks.
        print("error: interrupted", file=sys.stderr, flush=True)
        os._exit(128 + number)

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
    from mnist_flax.mesh import make_mesh, use_compilation_cache, wait_for_all
    from mnist_flax.trainer import Trainer

    if not config.no_compilation_cache:
        use_compilation_cache()
    if config.distributed:
        _join()
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
    is_main = jax.process_index() == 0
    with _claimed(config) if is_main else nullcontext():
        wait_for_all("the run directory is claimed")
        finished = _read_json(config.workdir / "summary.json")
        if finished is None:
            finished = Trainer(config, dataset, mesh, interruption or Interruption()).run()
            if is_main and not config.no_report:
                from mnist_flax.views.report import report

                print(f"Pictures: {report([config.workdir], config.workdir / 'report', config.data_dir)}")
        elif is_main:
            print(
                f"{config.workdir} holds a finished run: test accuracy {finished['test_accuracy']:.2%} on "
                f"{finished['dataset']} after {finished['epochs_run']} epochs. Nothing was done; choose another "
                "--workdir, or pass --overwrite to train again."
            )
    return finished


def _join() -> None:
    """Join the other processes of the job that JAX finds this one to be part of."""
    import jax

    # It would answer SIGTERM in place of our own handler, and Ctrl-C not at all.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "--distributed found no job to join: start one process for each host, or GPU, under Slurm, Open MPI, "
            f"Kubernetes or on a TPU pod ({' '.join(str(error).split())[:200]})"
        ) from error


@contextmanager
def _leaving_the_job_at_once() -> Iterator[None]:
    """Where one process of several fails or is killed, all of them end: none can go on, or wait, without the others.

    They must not say goodbye to each other, as they would at a normal exit, since that waits for every one of them.
    """
    import jax

    try:
        yield
        return
    except (UserError, OSError) as error:
        message, status = str(error), 2
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        message, status = f"another process of the job has ended ({reason}); start the job again to go on", 1
    except Exception:  # noqa: BLE001 - a mistake of ours: the others must not wait for this process either
        message, status = traceback.format_exc(), 1
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


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


@contextmanager
def _claimed(config: Config) -> Iterator[None]:
    """Keep the run directory to this process, and make it, or find it, that of `config`.

    The system releases the lock however the process ends.
    """
    from filelock import FileLock, Timeout

    from mnist_flax.logs import write_json

    workdir = config.workdir
    try:
        lock = FileLock(workdir / ".lock", timeout=0).acquire()
    except Timeout as error:
        raise UserError(f"{workdir} is in use by another process; wait for it, or choose another --workdir") from error
    with lock:
        if config.overwrite:
            _delete_run(workdir)
        stored = _read_json(workdir / "config.json")
        if stored is None:
            write_json(workdir / "config.json", config.to_json())
        else:
            refuse_changes(stored, config)
        yield


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
