import pytest

from mnist_flax.config import Config
from mnist_flax.errors import UserError
from mnist_flax.model import BLOCKS
from mnist_flax.presets import resolve
from mnist_flax.summary import layers
from mnist_flax.training import devices
from mnist_flax.training.mesh import make_mesh


@pytest.mark.parametrize(
    ("changes", "num_train", "message"),
    [
        (
            {"batch_size": 10**6},
            1319,
            "--batch-size 1,000,000 is more than the 1,319 training images of digits; it may be",
        ),
        ({"batch_size": 65}, 5, "it may be 64 at most"),
        ({"epochs": 10**9}, 1319, "--epochs 1,000,000,000 of 21 steps .* they may be 102,261,126 at most"),
        ({}, 5, None),
        ({"batch_size": 1319, "epochs": 2**31 - 1}, 1319, None),
    ],
)
def test_more_than_there_is_or_can_be_counted(changes, num_train, message):
    config = Config(**{"epochs": 60, **changes})
    if message is None:
        assert resolve(config, "digits", num_train, 0).batch_size == config.batch_size
    else:
        with pytest.raises(UserError, match=message):
            resolve(config, "digits", num_train, 0)


@pytest.mark.parametrize(
    ("batch_size", "num_replicas", "platform", "message"),
    [
        (64, 1, "cpu", None),
        (4096, 20, "cpu", None),  # in turns
        (
            55_000,
            1,
            "cpu",
            "--batch-size 55,000 needs at least 7.5 GB of memory a device, which has 4.0; 4,096 would fit",
        ),
        (4096, 20, "gpu", "--batch-size 4,096 needs at least 11.2 GB .*; 256 would fit"),
        (64, 10_000, "cpu", "--num-seeds 10,000 needs at least 16.4 GB .*; 609 would fit"),
    ],
)
def test_what_plainly_does_not_fit(monkeypatch, batch_size, num_replicas, platform, message):
    mesh = make_mesh(batch_size, 1, 1)
    monkeypatch.setattr(devices, "memory", lambda mesh: 4 * 10**9)
    monkeypatch.setattr(devices, "platform_of", lambda mesh: platform)
    if message is None:
        devices.require_memory(mesh, batch_size, num_replicas, 55_000)
    else:
        with pytest.raises(UserError, match=message):
            devices.require_memory(mesh, batch_size, num_replicas, 55_000)


def test_the_estimate_is_of_the_network():
    sizes = [layer.shape for layer in layers() if layer.name in {f"{block}.relu" for block in BLOCKS}]
    exact = 4 * sum(h * w * c for h, w, c in sizes)
    assert 0.99 * exact < devices.IMAGE_BYTES <= exact


def test_this_machine_has_memory():
    mesh = make_mesh(64, 1)
    assert 10**8 < devices.memory(mesh) < 10**14
