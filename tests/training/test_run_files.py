"""What an epoch leaves is written while the next one is trained."""

import functools
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_flax.config import Config
from mnist_flax.errors import UserError
from mnist_flax.kernels import Choice
from mnist_flax.training.checkpoint import Checkpoints
from mnist_flax.training.mesh import make_mesh, to_host
from mnist_flax.training.programs import create_states, zero_totals
from mnist_flax.training.run import Progress, Run
from mnist_flax.training.run_files import RunFiles

SEEDS = np.array([3, 4], np.uint32)


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
    return Progress(state, zero_totals(len(SEEDS), mesh), [[], []], 0.0)


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
    progress = started()._replace(state=state, histories=[[row], [row]])
    with files(tmp_path) as written:
        written.save_epoch(progress, {1: {"step": 1}, 0: {"step": 1}}, [])
        progress = progress._replace(state=advance(progress.state))  # while nothing is written yet
        progress.histories[0].append({**row, "epoch": 2, "step": 2})
        assert saved == []
        trained.set()
        written.save_last(progress)
        assert saved == [("seed-4/best", 1), ("seed-3/best", 1), ("last", 1), ("last", 2)]
        written.last.discard_after(1)
        found = written.restore(started())
        assert found is not None
        assert found.histories == [[row], [row]]
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


def test_what_goes_wrong_is_raised_by_whatever_comes_next(tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("cannot write: the disk is full")

    monkeypatch.setattr(Checkpoints, "save", fail)
    for then in (
        lambda written: written.save_epoch(started(), {}, []),
        lambda written: written.save_last(started()),
        lambda written: written.restore_best(started()),
    ):
        with files(tmp_path) as written:
            written.save_epoch(started(), {}, [])
            with pytest.raises(UserError, match="the disk is full"):
                then(written)
