import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import fresh_variables, logits_of, state_dict, to_float64

from mnist_flax.augment import Augmentation
from mnist_flax.data import Examples, Normalization
from mnist_flax.inference import interop
from mnist_flax.model import MNISTNet
from mnist_flax.ops import choose
from mnist_flax.optim import make_optimizer
from mnist_flax.presets import PRESETS
from mnist_flax.step import DATA, Batch, StepOptions, TrainState, plan_epoch, train_step
from mnist_flax.training import programs
from mnist_flax.training.mesh import FAST_COMPILE, make_mesh, to_host
from mnist_flax.training.programs import create_states, evaluation_program, training_program, zero_metrics

NORMALIZATION = Normalization(0.1307, 0.3081)
rng = np.random.RandomState(0)
EXAMPLES = Examples(
    rng.randint(0, 256, (100, 28, 28)).astype(np.uint8),
    rng.randint(0, 10, 100).astype(np.int32),
)


def new_state(variables, total_steps=12, max_lr=0.01, axis_name=DATA, kernels="xla"):
    tx = make_optimizer("adam", total_steps, max_lr, clip_norm=1.0)
    return TrainState.create(variables, jax.random.key(7), MNISTNet(axis_name, kernels).apply, tx)


def follow_golden_trajectory(arrays, dtype, kernels):
    """The reference's twelve steps from its initial weights; loss and gradient norm of each, and the final state."""
    variables = jax.tree.map(lambda value: jnp.asarray(value, dtype), interop.from_pytorch(state_dict(arrays, "init/")))
    state = new_state(variables, axis_name=None, kernels=kernels)
    step = jax.jit(functools.partial(train_step, label_smoothing=0.1))
    history = []
    for images, labels in zip(arrays["images"], arrays["labels"], strict=True):
        batch = Batch(jnp.asarray(NORMALIZATION(images), dtype), jnp.asarray(labels))
        state, metrics = step(state, batch)
        history.append({name: np.asarray(value) for name, value in metrics.items()})
    return {name: np.stack([row[name] for row in history]) for name in history[0]}, state


def test_golden_trajectory_in_float64(golden):
    """PyTorch's and our arithmetic are the same function: in float64 all twelve steps agree to rounding."""
    expected = golden("trajectory64")
    with jax.enable_x64(True):
        metrics, state = follow_golden_trajectory(golden("trajectory"), jnp.float64, "xla")
        final = interop.to_pytorch(state.variables)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-8)
    np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=1e-6)
    np.testing.assert_array_equal(metrics["correct"], golden("trajectory")["correct"])
    # The bias before a BatchNorm has no effect and a gradient of pure rounding noise, which Adam normalises: it and
    # the running mean that absorbs it wander by up to the sum of the learning rates, in PyTorch as here.
    wandering = {"channel_reduce.0.bias", "channel_reduce.1.running_mean"}
    for name, value in state_dict(expected, "final/").items():
        atol = 2 * golden("trajectory")["lr"].sum() if name in wandering else 1e-7
        np.testing.assert_allclose(final[name], value, rtol=0, atol=atol, err_msg=name)


def test_golden_trajectory_in_float32(golden):
    """In float32, and by the CPU's own kernels where there are any, they agree as far as float32 determines them.

    A rounding error flips a ReLU, Adam divides by the gradient's magnitude, and the errors grow some fivefold a step:
    PyTorch's own float32 run (the golden one) is off its float64 run by 1e-6, 2e-6 and 5e-4 in the gradient norm of
    the first three steps, by up to 9 % later (loss: 1e-8, 5e-8, 2e-7, then up to 2e-3), and by up to 0.016 in final
    weights (0.035 in a running variance). We allow about three times that.
    """
    arrays = golden("trajectory")
    metrics, state = follow_golden_trajectory(arrays, jnp.float32, choose("auto", "cpu").name)
    np.testing.assert_allclose(metrics["loss"][:3], arrays["loss"][:3], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], arrays["loss"], rtol=6e-3)
    np.testing.assert_allclose(metrics["grad_norm"][:2], arrays["grad_norm"][:2], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"][2], arrays["grad_norm"][2], rtol=1.5e-3)
    np.testing.assert_allclose(metrics["grad_norm"], arrays["grad_norm"], rtol=0.27)
    np.testing.assert_array_equal(metrics["correct"][:3], arrays["correct"][:3])
    ours = interop.to_pytorch(state.variables)
    for name, value in state_dict(arrays, "final/").items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=0.1 if "running" in name else 0.05, err_msg=name)


@pytest.fixture(scope="module")
def one_step():
    """A state, a batch of eight images, and the compiled step."""
    state = new_state(fresh_variables(0), axis_name=None)
    batch = Batch(jnp.asarray(NORMALIZATION(EXAMPLES.images[:8])), jnp.asarray(EXAMPLES.labels[:8]))
    return state, batch, jax.jit(functools.partial(train_step, label_smoothing=0.1))


def test_step_is_pure(one_step):
    state, batch, step = one_step
    (first, first_metrics), (second, second_metrics) = step(state, batch), step(state, batch)
    jax.tree.map(np.testing.assert_array_equal, (first.params, first_metrics), (second.params, second_metrics))
    assert int(first.step) == 1
    assert int(state.step) == 0


def test_loss_is_smoothed_cross_entropy(one_step):
    state, batch, step = one_step
    _, metrics = step(state, batch)
    apply = jax.jit(functools.partial(state.apply_fn, train=True, mutable=["batch_stats"]))
    logits, _ = apply(state.variables, batch.images)
    log_probabilities = np.asarray(jax.nn.log_softmax(logits), np.float64)
    expected = -(0.9 * log_probabilities[np.arange(8), batch.labels] + 0.1 * log_probabilities.mean(1)).mean()
    assert float(metrics["loss"]) == pytest.approx(expected, rel=1e-5)


@functools.cache
def programs_for(num_devices, num_seeds):
    """What need not be compiled anew for every test."""
    mesh = make_mesh(24, num_devices, num_seeds)
    training = training_program(mesh, StepOptions(24, NORMALIZATION, Augmentation(), 0.1, total_steps=12), EXAMPLES)
    return mesh, training, make_optimizer("adam", 12, 0.01, clip_norm=1.0)


def run(num_devices, chunks, seeds=(0,), momentum=0.0):
    """Train in batches of 24 on `num_devices` for the given chunks of steps, as the trainer does, in float64.

    In float32 a sum's order matters: Adam magnifies where a gradient is nearly zero, some fivefold a step.
    """

    with jax.enable_x64(True):
        mesh, training, tx = programs_for(num_devices, len(seeds))
        state = create_states(np.array(seeds, np.uint32), mesh, PRESETS["reference"], total_steps=12)
        state = to_float64(state).replace(tx=tx)
        moved = jax.tree.map(lambda x: x + momentum, state.opt_state.momentum)
        state = state.replace(opt_state=state.opt_state._replace(momentum=moved))
        totals, plan = to_float64(zero_metrics(len(seeds), mesh)), training.plan(state)
        for chunk in chunks:
            state, totals = training(state, totals, plan, np.broadcast_to(np.int32(chunk), len(seeds)))
        return to_host((state.variables, totals, state.step))


def of_one(tree, i=0):
    """What belongs to replica `i`, as a tree of its own."""
    return jax.tree.map(lambda x: x[i], tree)


@pytest.fixture(scope="module")
def one_device():
    return run(1, [4])


def assert_close(ours, expected):
    # The bias before a BatchNorm has a gradient of pure rounding noise (see the golden trajectory).
    for tree in (ours, expected):
        del tree[0]["params"]["channel_reduce"]["conv"]["bias"]
        del tree[0]["batch_stats"]["channel_reduce"]["norm"]["mean"]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-7), ours, expected)


def test_eight_devices_give_the_numbers_of_one(one_device):
    assert_close(of_one(run(8, [4])), of_one(one_device))


@pytest.mark.parametrize(("num_devices", "seeds"), [(1, (5, 0)), (4, (5, 0, 3, 8)), (6, (5, 0, 3))])
def test_a_seed_among_others_trains_as_it_does_alone(num_devices, seeds, one_device):
    """One after the other on one device, each on a device of its own, each on a pair of devices."""
    together = run(num_devices, [4], seeds=seeds)
    assert_close(of_one(together, 1), of_one(one_device))
    kernels = together[0]["params"]["block1"]["conv"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_a_replica_can_stand_still_while_another_trains_on(one_device):
    untrained, trained = run(1, [], seeds=(5, 0)), run(1, [[0, 4]], seeds=(5, 0))
    jax.tree.map(np.testing.assert_array_equal, of_one(trained), of_one(untrained))
    assert_close(of_one(trained, 1), of_one(one_device))


def test_chunks_do_not_change_a_bit(one_device):
    jax.tree.map(np.testing.assert_array_equal, run(1, [1, 2, 1]), one_device)


def test_loop_stops_at_the_step_that_is_not_finite():
    """The first step's loss is finite; its momentum then takes the weights out of range."""
    _, totals, step = run(1, [3, 1], momentum=1e300)
    assert not totals.finite.any()
    assert step.tolist() == [2]


def test_augmentation_fades_to_nothing():
    options = StepOptions(24, NORMALIZATION, Augmentation(), 0.1, total_steps=101, fade=0.5)
    strengths = [float(options.strength(jnp.int32(step))) for step in (0, 49, 75, 100)]
    assert strengths == [1.0, 1.0, pytest.approx(25 / 50.5), 0.0]
    always = dataclasses.replace(options, fade=0.0)
    assert float(always.strength(jnp.int32(100))) == 1.0


def plans(batch_size, *steps, fade=1.0):
    """The plans of epochs of 100 examples, made in these steps of a run of five epochs."""
    total_steps = 5 * -(-100 // batch_size)
    options = StepOptions(batch_size, NORMALIZATION, Augmentation(), 0.1, total_steps, fade)
    plan = jax.jit(functools.partial(plan_epoch, num_examples=100, options=options), compiler_options=FAST_COMPILE)
    return [plan(jax.random.key(7), step // -(-100 // batch_size)) for step in steps], options


def test_epochs_have_different_orders_that_are_permutations():
    (first, same, second), _ = plans(25, 0, 3, 4)
    assert sorted(first.order.tolist()) == list(range(100))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    assert (first.order != second.order).any()


def test_in_a_plan_distortions_are_as_strong_as_their_step_s():
    """Every image is rotated by its own angle, times what is left of the augmentation in its step."""
    angle = lambda transforms: np.arctan2(transforms[0][1], transforms[0][0])  # noqa: E731
    (first, second), options = plans(25, 0, 6)
    (strong, _), _ = plans(25, 0, 6, fade=0.0)
    whole, fading = angle(strong.distortions.transforms), angle(first.distortions.transforms)
    assert len(set(whole)) == 100
    strengths = np.repeat([float(options.strength(jnp.int32(step))) for step in range(4)], 25)
    assert (np.diff(strengths[::25]) < 0).all()
    np.testing.assert_allclose(fading, strengths * whole, atol=1e-5)
    assert (np.abs(angle(second.distortions.transforms)) < np.deg2rad(18) * options.strength(jnp.int32(4))).all()


@pytest.mark.parametrize(("batch_size", "length"), [(30, 120), (128, 128), (256, 256)])
def test_an_epochs_last_batch_is_filled_up_from_its_start(batch_size, length):
    (plan,), _ = plans(batch_size, 0)
    order = plan.order
    assert {x.shape for x in jax.tree.leaves(plan)} == {(length,)}
    np.testing.assert_array_equal(order[100:], np.resize(order[:100], length)[100:])


@pytest.mark.parametrize(
    ("num_devices", "batch_size", "part_size"),
    [(1, 100, None), (1, 30, None), (8, 30, None), (3, 7, None), (1, 30, 70), (3, 7, 150)],
)
def test_evaluation_counts_every_example_once(num_devices, batch_size, part_size, monkeypatch):
    monkeypatch.setattr(programs, "EVALUATION_BATCH", batch_size)
    variables = fresh_variables(3)
    evaluate = evaluation_program(make_mesh(24, num_devices), NORMALIZATION, part_size=part_size)
    parts = evaluate.batches(EXAMPLES)
    assert [int((part.labels >= 0).sum()) for part in parts] == ([70, 30] if part_size == 70 else [100])
    assert len({part.images.shape for part in parts}) == 1
    figures = evaluate(jax.tree.map(lambda x: x[None], variables), parts)
    logits = logits_of(variables, NORMALIZATION(EXAMPLES.images))
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, EXAMPLES.labels).mean()
    hits = int((logits.argmax(-1) == EXAMPLES.labels).sum())
    assert figures.accuracies.tolist() == [hits / 100]
    assert figures.ensemble_accuracy == hits / 100
    assert figures.losses.tolist() == [pytest.approx(float(expected), rel=1e-5)]


@pytest.mark.parametrize("num_devices", [1, 3, 6])
def test_evaluation_of_several_replicas_and_their_ensemble(num_devices):
    variables = fresh_variables(3, 4, 5)
    evaluate = evaluation_program(make_mesh(24, num_devices, 3), NORMALIZATION)
    figures = evaluate(variables, evaluate.batches(EXAMPLES))
    images = NORMALIZATION(EXAMPLES.images)
    logits = np.stack([logits_of(of_one(variables, i), images) for i in range(3)])
    assert figures.accuracies.tolist() == ((logits.argmax(-1) == EXAMPLES.labels).sum(-1) / 100).tolist()
    assert len(set(figures.losses)) == 3
    together = jax.nn.softmax(logits).mean(0).argmax(-1)
    assert figures.ensemble_accuracy == (together == EXAMPLES.labels).sum() / 100
