import re

import jax
import numpy as np
import pytest

import mnist_flax
from mnist_flax import data
from mnist_flax.config import Config
from mnist_flax.training.mesh import FAST_COMPILE, make_mesh
from mnist_flax.training.programs import shapes_of_states, step_options, training_program


@pytest.mark.parametrize("num_devices", [2, 8])
def test_what_devices_send_each_other_in_a_step(num_devices):
    """Gradients, loss and hits, and for each BatchNorm two sums a channel forward and two backward: 52,000 bytes.

    The 12 biases before a BatchNorm have no gradient.
    """
    dataset, config = data.load("digits", None, 119), Config()
    mesh = make_mesh(config.batch_size, num_devices)
    training = training_program(mesh, step_options(config, dataset.normalization, 100), dataset.train)
    lowered = training.trace(shapes_of_states(1, mesh, config, 100)).lower()
    program = lowered.compile(FAST_COMPILE).as_text()
    sent = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program)
    shapes = [dimensions for results in sent for _, dimensions in re.findall(r"(f32|s32)\[([\d,]*)\]", results)]
    numbers = sum(int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes)
    statistics = mnist_flax.load().variables["batch_stats"]
    channels = sum(leaf.size for leaf in jax.tree.leaves(statistics)) // 2
    assert numbers == 12_534 - 12 + 2 + 4 * channels == 12_988
    assert not re.search(r" (all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(", program)


def test_a_program_that_has_used_jax_before_trains_on_the_devices_there_are(monkeypatch):
    num_devices = len(jax.devices())
    monkeypatch.delenv("XLA_FLAGS")  # as if nobody had forced their number
    assert make_mesh(8 * num_devices).size == num_devices


@pytest.mark.parametrize(("num_devices", "expected"), [(None, {}), (3, {"jax_num_cpu_devices": 3})])
def test_a_cpu_is_one_device_unless_more_are_asked_for(num_devices, expected, monkeypatch):
    asked = {}
    monkeypatch.delenv("XLA_FLAGS")
    monkeypatch.setattr("jax.config.update", asked.__setitem__)
    make_mesh(96, num_devices)
    assert asked == expected
