"""The records of a run for people and programs: a row for each epoch, model cards, the summary.

A run's history, a row for each epoch, is part of its `last` checkpoint. A resumed run writes `metrics.jsonl`, and
TensorBoard's events (`tensorboard.py`), from it, so that no row is missing or doubled, wherever the run was killed.
"""

import json
import platform
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from mnist_flax.errors import UserError
from mnist_flax.files import read_json, write_text
from mnist_flax.model import count_parameters, variable_shapes
from mnist_flax.state import EvalMetrics, TrainMetrics
from mnist_flax.training.contents import HISTORY, SUMMARY
from mnist_flax.training.mesh import describe
from mnist_flax.training.run import Run
from mnist_flax.training.selection import Row, best_epoch, statistics_of, stop_reason

_FIGURES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def write_history(run: Path, history: Sequence[Row]) -> None:
    """Write a run's `metrics.jsonl`, a line for each epoch."""
    write_text(run / HISTORY, "".join(json.dumps(row) + "\n" for row in history))


def read_history(run: Path) -> list[Row]:
    """The rows of a run's `metrics.jsonl`.

    Raises:
        UserError: there is none, it is damaged or empty.
    """
    path = run / HISTORY
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            _require_numbers(row, ("epoch", "learning_rate", "time", *_FIGURES))
    except OSError as error:
        raise UserError(f"{run} is not a run directory ({error.filename}: {error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error})") from error
    if not rows:
        raise UserError(f"{run} has not finished an epoch yet")
    return rows


def read_summary(run: Path) -> dict[str, Any] | None:
    """A run's `summary.json`; None if the run is not finished.

    Raises:
        UserError: the file is damaged.
    """
    path = run / SUMMARY
    summary = read_json(path)
    try:
        for result in [] if summary is None else summary.get("seeds", [summary]):
            _require_numbers(result, ("seed", "epochs_run", "best_epoch", "val_accuracy", "test_accuracy", "test_loss"))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error})") from error
    return summary


def _require_numbers(values: Any, names: Iterable[str]) -> None:
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    for name in names:
        if not isinstance(values.get(name), int | float) or isinstance(values[name], bool):
            raise ValueError(f"it has no number for {name}")


def epoch_row(
    run: Run, epoch: int, trained: TrainMetrics, validation: EvalMetrics, i: int, seconds: float, sharing: int
) -> Row:
    """The record of an epoch of replica `i`.

    Args:
        run: the run.
        epoch: counted from 1.
        trained: what the replica's steps add up to.
        validation: of all replicas on the validation split.
        i: the replica.
        seconds: that the epoch took.
        sharing: how many replicas trained in that time.
    """
    steps, images = run.steps_per_epoch, run.steps_per_epoch * run.config.batch_size
    return {
        "epoch": epoch,
        "step": epoch * steps,
        "train_loss": float(trained.loss) / steps,
        "train_accuracy": int(trained.correct) / images,
        "val_loss": float(validation.losses[i]),
        "val_accuracy": float(validation.accuracies[i]),
        "selection_split": run.dataset.selection_split,
        "val_images": len(run.dataset.validation.labels),
        "learning_rate": float(run.learning_rate(jnp.int32(epoch * steps - 1))),
        "grad_norm": float(trained.grad_norm) / steps,
        "images_per_second": sharing * run.images_per_epoch / seconds,
        "seconds": seconds,
        "time": time.time(),
    }


def model_card(run: Run, seed: int, row: Row) -> dict[str, Any]:
    """A model card: what someone who finds only a `best` checkpoint needs to know."""
    return {
        "dataset": run.dataset.name,
        "class_names": list(run.dataset.class_names),
        "normalization": run.options.normalization._asdict(),
        "seed": seed,
        # Without the directories: a network is passed on, and they concern nobody else.
        "config": {name: v for name, v in run.config.to_json().items() if name not in {"workdir", "data_dir"}},
        **{name: row[name] for name in ("epoch", "step", "val_accuracy", "val_loss", "selection_split")},
    }


def summary_of(
    run: Run, histories: Sequence[Sequence[Row]], cards: list[dict[str, Any]], test: EvalMetrics
) -> dict[str, Any]:
    """The result of a finished run (`summary.json`), from the cards of its best networks and their test metrics.

    A run of several seeds has means and an ensemble, and its `seeds` the figures of each.
    """
    results = [
        {
            "seed": int(seed),
            "epochs_run": len(history),
            "stopped_because": stop_reason(history, run.config),
            "best_epoch": card["epoch"],
            **({"lost_epoch": best_epoch(history)} if best_epoch(history) != card["epoch"] else {}),
            "val_accuracy": card["val_accuracy"],
            "test_accuracy": float(accuracy),
            "test_loss": float(loss),
        }
        for seed, history, card, accuracy, loss in zip(
            run.seeds, histories, cards, test.accuracies, test.losses, strict=True
        )
    ]
    together = {"ensemble": {"test_accuracy": test.ensemble_accuracy}, "seeds": results}
    seconds = sum(row["seconds"] for row in max(histories, key=len))
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets")
    return {
        "dataset": run.dataset.name,
        "dataset_note": run.dataset.note,
        "preset": run.config.preset,
        "initial_weights": run.config.initial_weights,
        "teacher": run.config.teacher,
        "num_params": count_parameters(variable_shapes()["params"]),
        "selection_split": run.dataset.selection_split,
        **({**statistics_of(results), **together} if len(results) > 1 else results[0]),
        "train_seconds": seconds,
        "images_per_second": sum(map(len, histories)) * run.images_per_epoch / seconds,
        "devices": describe(run.mesh),
        "kernels": run.kernels.name,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
    }
