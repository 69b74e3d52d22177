"""What an epoch leaves is written while the next one is trained."""

import ctypes
import errno
import functools
import gc
import re
import shutil
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import failing_writes

from mnist_flax import cli
from mnist_flax.config import Config
from mnist_flax.errors import UserError
from mnist_flax.ops import Choice
from mnist_flax.training.checkpoint import Checkpoints
from mnist_flax.training.mesh import make_mesh, to_host
from mnist_flax.training.programs import create_states, zero_metrics
from mnist_flax.training.records import read_history
from mnist_flax.training.run import Progress, Run
from mnist_flax.training.run_files import RunFiles

SEEDS = np.array([3, 4], np.uint32)
SAMPLES = np.arange(64 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(64, 28, 28)


def files(workdir, kernels="xla", num_devices=1):
    run = object.__new__(Run)
    config = Config(workdir=workdir, seed=3, num_seeds=2)
    vars(run).update(config=config, dataset=SimpleNamespace(digest="of the images"), teachers=None)
    vars(run).update(kernels=Choice(kernels), mesh=make_mesh(64, num_devices, len(SEEDS)))
    return RunFiles(run)


@functools.cache
def started():
    mesh = make_mesh(64, 1, len(SEEDS))
    state = create_states(SEEDS, mesh, Config(), total_steps=10)
    return Progress(state, zero_metrics(len(SEEDS), mesh), ((), ()))


@functools.partial(jax.jit, donate_argnums=0)
def advance(state):
    """Every number of a state changed, in the memory that it had."""
    key = jax.random.wrap_key_data(jax.random.key_data(state.key) + 1)
    arrays = jax.tree.map(lambda x: x + 1, (state.step, state.params, state.batch_stats, state.opt_state))
    names = ("step", "params", "batch_stats", "opt_state")
    return state.replace(key=key, **dict(zip(names, arrays, strict=True)))


def test_it_holds_what_the_epoch_left_whatever_training_does_meanwhile(tmp_path, monkeypatch):
    trained, saved = threading.Event(), []
    save = Checkpoints.save

    def save_later(checkpoints, step, *arguments):
        assert trained.wait(60)
        save(checkpoints, step, *arguments)
        saved.append((checkpoints.directory.relative_to(tmp_path).as_posix(), step))

    monkeypatch.setattr(Checkpoints, "save", save_later)
    row = {"epoch": 1, "step": 1, "val_accuracy": 0.5, "val_size": 119}
    state, twin = (advance(jax.tree.map(jnp.copy, started().state)) for _ in range(2))
    progress = started()._replace(state=state, histories=((row,), (row,)), step=1)
    with files(tmp_path) as written:
        written.save_epoch(progress, {1: {"step": 1}, 0: {"step": 1}}, [])
        longer = (row, {**row, "epoch": 2, "step": 2})  # while nothing is written yet
        progress = progress._replace(state=advance(progress.state), histories=(longer, longer), step=2)
        assert saved == []
        trained.set()
        written.save_last(progress)
        assert saved == [("seed-4/best", 1), ("seed-3/best", 1), ("last", 1), ("last", 2)]
        written.last.discard_after(1)
        found = written.restore(started())
        assert found is not None
        assert found.histories == ((row,), (row,))
        assert found.step == 1
        assert (jax.random.key_data(found.state.key) == jax.random.key_data(twin.key)).all()
        best, cards = written.restore_best(progress)
        assert cards == [{"step": 1}] * 2
        for leaves in zip(*map(jax.tree.leaves, (to_host(twin.variables), found.state.variables, best)), strict=True):
            np.testing.assert_array_equal(leaves[0], leaves[1])
            np.testing.assert_array_equal(leaves[0], leaves[2])
        written.save_last(found)
        assert len(saved) == 4  # it is there


@pytest.mark.parametrize("other", [{"kernels": "native"}, {"num_devices": 2}, {"version": "0.0.1"}])
def test_a_run_that_goes_on_with_other_devices_kernels_or_jax_is_told_that_its_bits_differ(
    tmp_path, monkeypatch, other
):
    with files(tmp_path) as written:
        written.save_last(started())
    with files(tmp_path) as written:  # any warning would be an error here
        assert written.restore(started()) is not None
    if "version" in other:
        monkeypatch.setattr(jax, "__version__", other.pop("version"))
    with files(tmp_path, **other) as written, pytest.warns(match="1 x cpu, xla kernels and JAX .* so far and goes on"):
        assert written.restore(started()) is not None


def row_of(epoch):
    return {"epoch": epoch, "step": epoch, "val_accuracy": 0.5, "val_size": 119}


def test_a_new_start_never_costs_a_run_what_it_has(tmp_path):
    """`last` is gone. What the first epoch left, as if killed before `last` was written, is had again; more is not."""
    with files(tmp_path) as written:
        assert not written.started_before
        written.best[0].save(1, started().state.variables, row_of(1))
    with files(tmp_path) as written:
        assert written.started_before
        assert written.restore(started()) is None
        assert written.best[0].latest_step() is None
        written.best[1].save(2, started().state.variables, row_of(2))
    with files(tmp_path) as written, pytest.raises(UserError, match=r"last holds no .*seed-4/best/2 is there, of"):
        written.restore(started())
    assert (tmp_path / "seed-4/best/2/SHA256SUMS").exists()
    (tmp_path / "seed-3/metrics.jsonl").write_text("{}")
    with files(tmp_path) as written, pytest.raises(UserError, match=r"seed-3/metrics.jsonl is there, .*--overwrite"):
        written.restore(started())


def test_a_damaged_state_to_go_on_from_is_kept_and_no_new_start_made(tmp_path):
    progress = started()._replace(histories=((row_of(1),), (row_of(1),)))
    with files(tmp_path) as written:
        written.open_records([(), ()], SAMPLES)
        written.save_epoch(progress, {0: row_of(1), 1: row_of(1)}, [])
    (tmp_path / "last/0/state/manifest.ocdbt").write_bytes(b"")
    (tmp_path / "seed-3/metrics.jsonl").write_text("{}")
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            written = files(tmp_path)
        with written, pytest.raises(UserError, match="last holds no checkpoint to resume from"):
            written.restore(started())
        assert [path.name for path in (tmp_path / "last").iterdir()] == ["damaged-0"]


def test_records_of_the_last_epoch_that_were_not_written_are_when_the_run_goes_on(tmp_path):
    """The run ended between `last` and `metrics.jsonl`; there may be no epoch left that would write it."""
    row = {"epoch": 1, "step": 1, "train_loss": 0.5, "val_loss": 0.5, "val_accuracy": 0.5, "train_accuracy": 0.5}
    row |= {"learning_rate": 0.5, "grad_norm": 0.5, "images_per_second": 0.5, "time": 0.5, "val_size": 119}
    with files(tmp_path) as written:
        written.best[0].save(1, started().state.variables, row)
        written.best[1].save(1, started().state.variables, row)
        state = advance(jax.tree.map(jnp.copy, started().state))
        written.save_last(started()._replace(state=state, histories=((row,), (row,)), step=1))
    with files(tmp_path) as written:
        progress = written.restore(started())
        written.open_records(progress.histories, SAMPLES)
    for seed in ("seed-3", "seed-4"):
        assert read_history(tmp_path / seed) == [row]


def test_what_goes_wrong_is_raised_by_whatever_comes_next(tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("cannot write: the disk is full")

    monkeypatch.setattr(Checkpoints, "save", fail)
    for then in (
        lambda written: written.save_epoch(started(), {}, []),
        lambda written: written.save_last(started()),
        lambda written: written.restore_best(started()),
        lambda written: None,
    ):
        written = files(tmp_path)
        written.save_epoch(started(), {}, [])
        with pytest.raises(UserError, match="the disk is full"), written:
            then(written)


def write_a_run(workdir, completed):
    """What is left to write of two epochs in which nothing is trained; each is added to `completed` once it is."""
    names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "grad_norm")
    row = dict.fromkeys((*names, "images_per_second", "time", "val_size"), 0.5)
    rows = [{**row, "epoch": epoch, "step": epoch} for epoch in (1, 2)]
    with files(workdir) as written:
        progress = written.restore(started()) or started()
        state, done = jax.tree.map(jnp.copy, progress.state), len(progress.histories[0])
        written.open_records(progress.histories, SAMPLES)
        for epoch in range(done + 1, 3):
            state = advance(state)
            progress = progress._replace(state=state, histories=(rows[:epoch], rows[:epoch]), step=epoch)
            written.save_epoch(progress, {1: rows[epoch - 1], 0: rows[epoch - 1]}, [0, 1])
            written.save_last(progress)
            completed.append(epoch)
        results = [{"seed": seed, "val_accuracy": 0.5, "test_accuracy": 0.5, "test_loss": 0.5} for seed in (3, 4)]
        written.write_summary({"seeds": results}, {})


def write_runs_that_fail(directory):
    """In a process whose calls can be made to fail: at calls of every kind, with all that follow or alone.

    What fails alone may be done without, such as the sync of a folder.
    """
    library = ctypes.CDLL(None)
    with failing_writes.failing(library, directory / "whole", 0, 0, 0):
        write_a_run(directory / "whole", [])
        num_calls = library.num_calls()
    assert num_calls > 200
    for i, error in enumerate((errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EDQUOT)):
        workdir, completed, status = directory / str(i), [], 0
        first = 1 + i * num_calls // 4
        last = first if i % 2 else failing_writes.EVER
        with failing_writes.failing(library, workdir, first, last, error):
            try:
                cli.command(lambda _, at=workdir, completed=completed: write_a_run(at, completed))([])
            except SystemExit as end:
                status = end.code
        assert status == 2 or (last == first and completed == [1, 2])
        gc.collect()  # what destructors say is said now
        saved, left = max(completed, default=0), []
        write_a_run(workdir, left)
        # The epoch that was cut short may be saved, as it is if only its records could not be written.
        assert left in ([*range(saved + 1, 3)], [*range(saved + 2, 3)])


def test_whatever_cannot_be_written_it_is_said_in_one_sentence_and_what_was_saved_stays(tmp_path):
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("needs Linux and a C compiler, to make calls fail")
    program = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from pathlib import Path
import test_run_files
test_run_files.write_runs_that_fail(Path({str(tmp_path)!r}))
"""
    said = failing_writes.run(program).splitlines()
    assert len(said) >= 2  # of the four, those that nothing more can be written to
    reasons = "No space left on device|Input/output error|Stale file handle|Disk quota exceeded"
    for line in said:
        assert re.fullmatch(rf"error: cannot (use|write|delete) .+: ({reasons})", line)
