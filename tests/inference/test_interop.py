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
    with pytest.raises(ValueError, match=r"block2.0.weight: shape \(12, 9, 3, 3\), expected \(12, 8, 3, 3\)"):
        interop.from_pytorch({**given, "block2.0.weight": np.zeros((12, 9, 3, 3))})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("block1.1.weight", [np.nan] * 8, "some of its numbers are NaN or infinite"),
        ("final_conv.bias", [1.0] * 9 + [np.inf], "some of its numbers are NaN or infinite"),
        ("final_conv.bias", [1e300] * 10, "some of its numbers are NaN or infinite"),
        ("block1.1.running_var", [1.0] * 7 + [-1e-3], "a variance is negative"),
        ("block1.1.bias", [1] * 8, "numbers of type int64, expected floating-point numbers"),
        ("block1.1.bias", [1j] * 8, "numbers of type complex128, expected floating-point numbers"),
        ("block1.1.bias", ["1"] * 8, "numbers of type <U1, expected floating-point numbers"),
    ],
)
def test_numbers_that_no_trained_network_has_are_refused(golden, name, value, message):
    given = state_dict(golden("trajectory"), "init/")
    with pytest.raises(ValueError, match=f"^{name}: {message}$"):
        interop.from_pytorch({**given, name: np.array(value)})
