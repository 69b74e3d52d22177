"""Decisions of a run as pure functions of its history: which epoch is best, when to stop; and statistics over seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from mnist_flax.config import ResolvedConfig

Row = dict[str, Any]  # the record of one epoch, a line of metrics.jsonl


# Fewer held-out images do not tell epochs apart: 46 images of `digits` took the shipped network from 93.7 to 95.5 % by
# the last epoch, and to 93.8 % by the first epoch in which the most of 4 held-out images were right (means of 5 draws).
FEWEST = 100


def best_epoch(history: Sequence[Row]) -> int:
    """The last epoch whose validation accuracy is within one standard error of the highest, counted from 1.

    The highest of many is the luckiest, and as the learning rate falls a later epoch is better than an earlier one of
    the same accuracy.

    Of few held-out images it is the last epoch, and of the test set itself the first of the highest: so the original
    selects. Breiman et al., 1984, Classification and Regression Trees, section 3.4.3.
    """
    return _best(history, range(len(history)))


def best_kept_epoch(history: Sequence[Row]) -> int:
    """The same among the epochs whose checkpoints are not lost; `RunFiles.restore` marks those that are."""
    return _best(history, [i for i, row in enumerate(history) if not row.get("checkpoint_lost")] or [0])


def _best(history: Sequence[Row], epochs: Sequence[int]) -> int:
    num_images = history[-1].get("val_images")
    if num_images is None or history[-1]["selection_split"] == "test":  # rows of earlier versions have no number
        return 1 + _highest(history, epochs)
    if num_images < FEWEST:
        return 1 + epochs[-1]
    highest = history[_highest(history, epochs)]["val_accuracy"]
    error = math.sqrt(highest * (1 - highest) / num_images)
    return 1 + max(i for i in epochs if history[i]["val_accuracy"] >= highest - error)


def _highest(history: Sequence[Row], epochs: Sequence[int]) -> int:
    """The first epoch, counted from 0, with the highest validation accuracy."""
    return max(epochs, key=lambda i: (history[i]["val_accuracy"], -i))


def stop_reason(history: Sequence[Row], config: ResolvedConfig) -> str | None:
    """Why training is over after the epochs of `history`, or None if it is not."""
    if not history:
        return None
    if config.target_accuracy is not None and history[-1]["val_accuracy"] >= config.target_accuracy:
        return f"validation accuracy reached the target of {config.target_accuracy:.2%}"
    if len(history) >= config.epochs:
        return "all epochs done"
    if config.patience and len(history) - 1 - _highest(history, range(len(history))) >= config.patience:
        return f"no better validation accuracy for {config.patience} epochs"
    return None


def still_training(histories: Sequence[Sequence[Row]], config: ResolvedConfig) -> Bool[np.ndarray, " replicas"]:
    """Which replicas have not come to their end."""
    return np.array([stop_reason(history, config) is None for history in histories])


def margin_of_mean(std: float, n: int) -> float:
    """Half the 95 % interval of the mean of `n` numbers (Student's t), from their standard deviation."""
    from scipy import special  # scipy.stats has a plainer name for it, and takes 0.6 s to import

    return float(special.stdtrit(n - 1, 0.975)) * std / math.sqrt(n)


def interval_of_mean(accuracies: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of accuracies in 0..1, cut at 0 and 1; None if it says nothing.

    That is so of two accuracies, whose interval is 13 times as wide as they are apart, and of one from 0 to 1.
    """
    if len(accuracies) < 3:
        return None
    mean, margin = float(np.mean(accuracies)), margin_of_mean(float(np.std(accuracies, ddof=1)), len(accuracies))
    low, high = max(mean - margin, 0.0), min(mean + margin, 1.0)
    return None if (low, high) == (0, 1) else (low, high)


def statistics_of(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds; standard deviation of the test accuracy, and `interval_of_mean`."""
    n = len(results)
    mean: dict[str, Any] = {
        name: math.fsum(result[name] for result in results) / n
        for name in ("val_accuracy", "test_accuracy", "test_loss")
    }
    accuracies = [result["test_accuracy"] for result in results]
    return {
        "num_seeds": n,
        "epochs_run": max(result["epochs_run"] for result in results),
        **mean,
        "test_accuracy_std": float(np.std(accuracies, ddof=1)),
        "test_accuracy_ci95": interval_of_mean(accuracies),
    }
