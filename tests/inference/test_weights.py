"""Every way to name a trained network on disk."""

import shutil

import jax
import numpy as np
import pytest

import mnist_flax
from mnist_flax import report
from mnist_flax.errors import UserError
from mnist_flax.inference import weights
from mnist_flax.inference.card import MAXIMA
from mnist_flax.inference.classifier import PRETRAINED
from mnist_flax.training.checkpoint import Checkpoints
from mnist_flax.training.checkpoint_files import SUMS, checksums

ACCURACIES = {5: {21: 0.7, 42: 0.9}, 6: {21: 0.95, 42: 0.8}}  # of two seeds after two epochs
BEST = {5: 42, 6: 21}


def variables_at(seed, step):
    """Variables that show which they are."""
    variables, _, _ = weights.load(PRETRAINED)
    return jax.tree.map(lambda x: np.full(x.shape, seed + step / 100, np.float32), variables)


def row(seed, step):
    return {"epoch": step // 21, "step": step, "val_accuracy": ACCURACIES[seed][step], "val_loss": 1.0}


def save(directory, step, state, metadata):
    Checkpoints(directory).save(step, state, metadata)


@pytest.fixture(scope="module")
def run(tmp_path_factory, card):
    """The checkpoints of a run of two seeds that was stopped in its third epoch."""
    directory = tmp_path_factory.mktemp("a run")
    for seed, accuracies in ACCURACIES.items():
        for step in [step for step in accuracies if step <= BEST[seed]]:
            of_seed = {"seed": seed, "config": {**card["config"], "seed": 5, "num_seeds": 2}}
            of_seed |= {"temperature": 0.5, MAXIMA: [1.0] * 8}
            save(directory / f"seed-{seed}/best", step, variables_at(seed, step), card | of_seed | row(seed, step))
    for step in (42, 50):
        states = [{"step": np.int32(step), **variables_at(seed, step), "opt_state": np.zeros(3)} for seed in (5, 6)]
        histories = [[row(seed, 21), row(seed, 42)] for seed in (5, 6)]
        state = jax.tree.map(lambda *x: np.stack(x), *states)
        save(directory / "last", step, {"state": state, "totals": np.zeros(2)}, {"histories": histories})
    return directory


NAMES = {
    ".": (6, 21),
    "seed-5": (5, 42),
    "seed-5/best": (5, 42),
    "seed-5/best/21": (5, 21),
    "seed-6/best/21": (6, 21),
    "last": (6, 50),
    "last/42": (6, 42),
}


@pytest.mark.parametrize("name", NAMES)
def test_every_directory_of_a_run_leads_to_a_network(run, name):
    seed, step = NAMES[name]
    network = mnist_flax.load(run / name)
    for ours, expected in zip(
        jax.tree.leaves(network.variables), jax.tree.leaves(variables_at(seed, step)), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)
    assert (network.card["seed"], network.card["step"]) == (seed, step)
    assert network.class_names == tuple("0123456789")
    assert network.card.get("val_accuracy") == ACCURACIES[seed].get(step)
    assert network.card.get("epoch") == (step // 21 if step in (21, 42) else None)
    # Fitted to the best network only.
    assert network.temperature == (1.0 if name.startswith("last") else 0.5)
    assert (MAXIMA in network.card) != name.startswith("last")
    assert network.predict(np.zeros((1, 28, 28), np.uint8))[1].shape == (1, 10)


def test_from_within(run, monkeypatch):
    monkeypatch.chdir(run / "last/42")
    assert mnist_flax.load(".").card["step"] == 42
    monkeypatch.chdir(run / "last")
    assert mnist_flax.load("42").card["step"] == 42
    assert mnist_flax.load(".").card["step"] == 50
    assert mnist_flax.load("../seed-5/best").card["step"] == 42


def test_with_what_others_add(run, tmp_path):
    copy = tmp_path / "best"  # a run may be called what its checkpoints are
    shutil.copytree(run, copy)
    for directory in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
        (directory / "desktop.ini").touch()
    shutil.copytree(copy / "seed-5", copy / "seed-7 (conflicted copy)")
    assert mnist_flax.load(copy).card["seed"] == 6
    assert mnist_flax.load(copy / "last").card["step"] == 50


def test_damage_in_one_seed_does_not_concern_another(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "seed-6/best/21/metadata/metadata").write_text("{}")
    with pytest.warns(match="21 is damaged"), pytest.raises(UserError) as raised:
        mnist_flax.load(copy)
    assert str(raised.value) == (
        f"{copy}/seed-6/best has no sound checkpoint left: restore one of them from a copy, or train into a new "
        "--workdir; or name the directory of another seed"
    )
    assert mnist_flax.load(copy / "seed-5").card["step"] == 42
    with pytest.raises(UserError, match=r"21 is damaged .*: restore it from a copy, or use another checkpoint"):
        mnist_flax.load(copy / "seed-6/best/21")


def test_a_training_state_alone_has_no_card(run, tmp_path):
    shutil.copytree(run / "last", tmp_path / "last")
    with pytest.raises(
        UserError, match=r"last/50 can be read only beside the run's best checkpoint: .* holds no finished"
    ):
        mnist_flax.load(tmp_path / "last")


@pytest.mark.parametrize(
    "text",
    ["null", "3", '{"histories": 3}', '{"histories": []}', '{"histories": [[], [3]]}', '{"histories": [[], [{}]]}'],
)
def test_another_runs_training_state_is_refused(run, tmp_path, text):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "last/50/metadata/metadata").write_text(text)
    (copy / "last/50" / SUMS).write_text(checksums(copy / "last/50"))
    with pytest.raises(UserError, match=r"do not belong together|cannot read|card without"):
        mnist_flax.load(copy / "last/50")


@pytest.mark.parametrize("name", ["", "best", "best/42", "last", "last/42", "best/latest"])
def test_a_report_is_of_the_run_whichever_directory_is_named(monkeypatch, capsys, name):
    named = []
    monkeypatch.setattr("mnist_flax.views.report.write_report", lambda runs, *_: named.extend(runs) or "page")
    report.main([f"runs/one/{name}"])
    assert [str(path) for path in named] == ["runs/one/best/latest" if name == "best/latest" else "runs/one"]
