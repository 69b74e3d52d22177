import numpy as np
import pytest
from conftest import state_dict

from mnist_flax.inference import interop


def test_round_trip(golden):
    given = state_dict(golden("trajectory"), "final/")
    returned = interop.to_pytorch(interop.from_pytorch(given))
    assert set(returned) == set(given)
    for name, value in given.items():
        np.testing.assert_array_equal(returned[name], value, err_msg=name)


def test_batch_counters_are_ignored(golden):
    given = state_dict(golden("trajectory"), "init/")
    interop.from_pytorch({**given, "block1.1.num_batches_tracked": np.array(3)})


def test_mistakes_are_named(golden):
    given = state_dict(golden("trajectory"), "init/")
    with pytest.raises(ValueError, match=r"missing \['final_conv.bias'\]"):
        interop.from_pytorch({name: value for name, value in given.items() if name != "final_conv.bias"})
    with pytest.raises(ValueError, match=r"unknown \['fc.weight'\]"):
        interop.from_pytorch({**given, "fc.weight": np.zeros((10, 16))})
    with pytest.raises(ValueError, match=r"block2.0.weight: shape"):
        interop.from_pytorch({**given, "block2.0.weight": np.zeros((12, 9, 3, 3))})
