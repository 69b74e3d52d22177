import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from mnist_flax.config import Config
from mnist_flax.presets import resolve
from mnist_flax.training.selection import best_epoch, best_kept_epoch, interval_of_mean, stop_reason


def history(*accuracies, num_images=10_000, split="validation"):
    return [{"val_accuracy": x, "val_images": num_images, "selection_split": split} for x in accuracies]


def test_best_epoch_is_the_last_that_is_within_one_standard_error_of_the_highest():
    assert best_epoch(history(0.1, 0.9, 0.8, 0.8971, 0.8969)) == 4  # the error is 0.003
    assert best_epoch(history(0.1, 0.9, 0.8, 0.8971, 0.8969, num_images=2_500)) == 5  # twice as large
    assert best_epoch(history(0.9, 1.0, 0.9999)) == 2


def test_best_epoch_never_goes_back_to_one_whose_checkpoint_is_not_kept():
    rng = np.random.RandomState(0)
    for _ in range(100):
        rows = history(*rng.uniform(0.97, 1, 20).round(3), num_images=1000)
        best = [best_epoch(rows[:n]) for n in range(1, 21)]
        assert all(now in (before, n) for n, (before, now) in enumerate(itertools.pairwise(best), 2))


def test_best_epoch_on_the_test_set_and_of_earlier_versions_is_the_first_of_the_highest():
    assert best_epoch(history(0.1, 0.9, 0.8, 0.9, split="test")) == 2
    assert best_epoch([{"val_accuracy": accuracy} for accuracy in (0.1, 0.9, 0.8, 0.9)]) == 2


def test_few_held_out_images_do_not_tell_which_epoch_is_best():
    rows = history(0.1, 0.9, 0.8, num_images=99)
    assert best_epoch(rows) == best_kept_epoch(rows) == 3
    rows[2]["checkpoint_lost"] = True
    assert best_kept_epoch(rows) == 2
    rows[2]["val_images"] = 100
    assert best_epoch(rows) == 2  # by 100 images the error is 0.03


def test_stops_after_patience_epochs_without_improvement():
    config = resolve(Config(epochs=20, patience=3), "mnist", 55_000, 5_000)
    assert stop_reason(history(), config) is None
    assert stop_reason(history(0.5, 0.9, 0.8, 0.9), config) is None
    assert "for 3 epochs" in stop_reason(history(0.5, 0.9, 0.8, 0.9, 0.7), config)
    assert stop_reason(history(0.5, 0.9, 0.8, 0.9, 0.91), config) is None
    never = dataclasses.replace(config, patience=0)
    assert stop_reason(history(*[0.9] * 19), never) is None


def test_stops_at_the_target_or_the_last_epoch():
    config = resolve(Config(epochs=3, target_accuracy=0.994), "mnist", 55_000, 5_000)
    assert stop_reason(history(0.99, 0.9939), config) is None
    assert "target of 99.40%" in stop_reason(history(0.99, 9940 / 10000), config)
    assert stop_reason(history(0.1, 0.2, 0.3), config) == "all epochs done"


def test_an_epoch_whose_checkpoint_is_lost_is_not_the_best_that_is_kept():
    rows = history(0.1, 0.9, 0.8, 0.85)
    for row in rows[1:3]:
        row["checkpoint_lost"] = True
    assert best_epoch(rows) == 2
    assert best_kept_epoch(rows) == 4
    assert best_kept_epoch(rows[:3]) == 1


def test_the_interval_of_a_mean_is_students_cut_at_0_and_1_and_left_out_where_it_says_nothing():
    rng = np.random.RandomState(0)
    for n, bounds in itertools.product((2, 3, 4, 20), ((0, 1), (0, 0.1), (0.4, 0.6), (0.9, 1))):
        accuracies = rng.uniform(*bounds, n).tolist()
        found = interval_of_mean(accuracies)
        expected = np.clip(stats.t.interval(0.95, n - 1, np.mean(accuracies), stats.sem(accuracies)), 0, 1)
        if n == 2 or expected.tolist() == [0, 1]:
            assert found is None
        else:
            assert found == pytest.approx(expected)
    assert interval_of_mean([1.0] * 3) == (1, 1)
