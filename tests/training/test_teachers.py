"""Training towards the mean answer of trained networks."""

import contextlib
import functools
import io
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import fresh_variables, to_float64
from runs import DIGITS, rows
from scipy.special import softmax

from mnist_flax import data
from mnist_flax.augment import Augmentation, Distortions
from mnist_flax.config import Config
from mnist_flax.data import Examples, Normalization
from mnist_flax.errors import UserError
from mnist_flax.inference import weights
from mnist_flax.inference.transfer import teachers
from mnist_flax.model import MNISTNet
from mnist_flax.optim import make_optimizer
from mnist_flax.step import Batch, EpochPlan, StepOptions, take_batch, train_step
from mnist_flax.train import parse, train
from mnist_flax.training import debugging
from mnist_flax.training.mesh import make_mesh, to_host
from mnist_flax.training.programs import create_states, training_program, zero_metrics
from mnist_flax.training.run import take_replica
from mnist_flax.training.signals import Interruption

NORMALIZATION = Normalization(0.1307, 0.3081)
rng = np.random.default_rng(0)
EXAMPLES = Examples(rng.integers(0, 256, (40, 28, 28), np.uint8), rng.integers(0, 10, 40, np.int32))
OPTIONS = StepOptions(12, NORMALIZATION, Augmentation(), 0.1, total_steps=12, fade=1.0)  # 4 steps an epoch
TX = make_optimizer("adam", 12, 0.01, clip_norm=1.0)
TEACHERS = fresh_variables(3, 4)
SEEDS = (5, 0, 8)  # three replicas on two devices: each device has half of the batch, and trains them in turns


def initial(mesh):
    """The replicas' states before the first step, in float64: in float32 Adam magnifies the order of sums."""
    config = Config(teacher="runs/best", seed=5, optimizer="adam")
    state = create_states(np.array(SEEDS, np.uint32), mesh, config, total_steps=12)
    return to_float64(state).replace(tx=TX)


@functools.cache
def program():
    mesh = make_mesh(12, 2, len(SEEDS))
    assert mesh.devices.shape == (1, 2)
    return mesh, training_program(mesh, OPTIONS, EXAMPLES, teachers=to_float64(TEACHERS))


def run(epochs):
    """Variables and totals after calls of so many steps, an epoch each call, as the trainer makes them."""
    with jax.enable_x64(True):
        mesh, training = program()
        state, totals = initial(mesh), to_float64(zero_metrics(len(SEEDS), mesh))
        for num_steps in epochs:
            state, totals = training(state, totals, training.plan(state), np.int32(num_steps))
        return to_host((state.variables, totals))


@pytest.fixture(scope="module")
def taught():
    return run([[4, 4, 4], [2, 2, 2]])


def test_the_targets_are_the_mean_answers_on_the_very_images_of_the_step(taught):
    """Step by step on one device: each teacher's answer on the batch that `take_batch` makes, averaged by NumPy."""
    with jax.enable_x64(True):
        mesh, training = program()
        state = jax.tree.map(lambda x: jnp.asarray(x[1]), to_host(initial(mesh)))
        plan, other = (take_replica(to_host(training.plan(initial(mesh))), i) for i in (1, 0))
        jax.tree.map(np.testing.assert_array_equal, plan, other)  # replicas differ in their initial weights alone
        each = [jax.tree.map(lambda x, i=i: x[i], to_float64(TEACHERS)) for i in range(2)]
        batch = jax.jit(functools.partial(take_batch, options=OPTIONS))
        answer, advance = jax.jit(MNISTNet().apply), jax.jit(functools.partial(train_step, label_smoothing=0.1))
        state, losses = state.replace(apply_fn=MNISTNet().apply), []
        for step in range(4):
            images, labels, _ = batch(plan, state.step, examples=jax.tree.map(jnp.asarray, EXAMPLES))
            targets = np.mean([softmax(answer(teacher, images), axis=-1) for teacher in each], axis=0)
            state, metrics = advance(state, Batch(images, labels, jnp.asarray(targets)))
            losses.append(float(metrics["loss"]))
            assert state.step == step + 1
    _, totals = run([[4, 4, 4]])
    assert totals.loss[1] == pytest.approx(sum(losses), rel=1e-7)
    assert len(set(taught[1].loss.tolist())) == len(SEEDS)


def test_a_replica_is_taught_while_another_has_stopped(taught):
    """The others are an epoch behind then, where order and distortions were others."""
    alone = run([[0, 4, 0], [0, 2, 0]])
    for ours, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(taught), strict=True):
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_debug_nans_repeats_a_step_with_its_teachers(monkeypatch):
    """The very step; what it computes, one operation at a time, would take half a minute."""
    repeated = []
    monkeypatch.setattr(debugging, "take_batch", lambda *_, **__: Batch(jnp.zeros((12, 28, 28, 1)), jnp.zeros(12)))
    monkeypatch.setattr(debugging, "mean_probabilities", lambda teachers, images, **_: (teachers, images.shape))
    monkeypatch.setattr(debugging, "train_step", lambda state, batch, **_: repeated.append(batch.targets))
    state = to_host(create_states(np.array([5], np.uint32), make_mesh(12, 1), Config(), 12))
    plan = EpochPlan(jnp.arange(48) % 40, Distortions(((jnp.zeros(48),) * 3,) * 2, None, None))
    for given in (None, "teachers"):
        debugging.nonfinite_operation(state, plan, EXAMPLES, OPTIONS, given)
    assert repeated == [None, ("teachers", (12, 28, 28, 1))]


def config(workdir, *options):
    """A short run that holds nothing out: a third of the time is calibration otherwise."""
    arguments = [*DIGITS, "--epochs", 1, "--num-seeds", 2, "--num-devices", 1, "--no-report", "--workdir", workdir]
    return parse([str(argument) for argument in (*arguments, "--val-size", 0, *options)])


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", None, 0)


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """A file of weights, and a run that it taught."""
    runs, said = tmp_path_factory.mktemp("runs"), io.StringIO()
    card = {"dataset": "digits", "class_names": list(digits.class_names), "config": Config().to_json()}
    card |= {"normalization": digits.normalization._asdict()}
    weights.save(runs / "teacher.safetensors", fresh_variables(1), card)
    with contextlib.redirect_stdout(said):
        summary = train(config(runs / "student", "--teacher", runs / "teacher.safetensors"))
    assert f"Training towards the mean answer of teachers: 1, {runs}/teacher.safetensors" in said.getvalue()
    return runs / "teacher.safetensors", runs / "student", summary


def test_a_run_says_who_taught_it(finished):
    teacher, student, summary = finished
    recorded = json.loads((student / "config.json").read_text())
    _, card, _ = weights.load_run(student)
    assert summary["teacher"] == recorded["teacher"] == card["config"]["teacher"] == str(teacher)


def test_all_networks_of_a_run_teach(finished, digits):
    _, student, _ = finished
    each = [weights.load_run(student / seed)[0] for seed in ("seed-0", "seed-1")]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    jax.tree.map(np.testing.assert_array_equal, teachers(str(student), digits), expected)


def test_resumed_it_ends_with_the_same_bits_and_the_same_teacher(finished, tmp_path):
    teacher, student, _ = finished
    own = tmp_path / "teacher.safetensors"
    own.write_bytes(teacher.read_bytes())
    options, stop = config(tmp_path / "run", "--teacher", own), Interruption()
    stop.signal = signal.SIGTERM
    with pytest.raises(SystemExit):  # after 16 of 21 steps
        train(options, stop)
    variables, card, _ = weights.load(own)
    weights.save(own, jax.tree.map(lambda x: -x, variables), card)
    with pytest.raises(UserError, match="run on other images, or with another teacher, than there are now"):
        train(options)
    own.write_bytes(teacher.read_bytes())
    train(options)
    for seed in ("seed-0", "seed-1"):
        assert rows(tmp_path / "run" / seed) == rows(student / seed)
        ours, theirs = (weights.load_run(run / seed)[0] for run in (tmp_path / "run", student))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    own.unlink()
    assert train(options)["teacher"] == str(own)  # nothing was left to do


def test_teachers_that_cannot_teach(finished, tmp_path):
    _, student, _ = finished
    with pytest.raises(UserError, match="but not on the very images of this run: name a run with the same --dataset"):
        train(config(tmp_path / "run", "--teacher", student, "--val-size", 200))
    with pytest.raises(UserError, match="is in the new run's own directory"):
        train(config(student, "--teacher", student / "seed-0", "--overwrite"))
    with pytest.raises(UserError, match="nowhere does not exist; name a run directory"):
        train(config(tmp_path / "run", "--teacher", tmp_path / "nowhere"))
    assert list(tmp_path.glob("run/*")) == []
    assert weights.load_run(student)
