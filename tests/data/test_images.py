import jax.numpy as jnp
import numpy as np
import pytest

import mnist_flax
from mnist_flax import data
from mnist_flax.errors import UserError

DIGITS = data.load("digits", None, 0).test.images[:5].astype(np.float64)
INK = 255.0 * (DIGITS > 127)
# What people do to grey levels, and what the result has to be read as; None: it has to be refused.
SCALES = {
    "grey levels": (DIGITS, DIGITS),
    "0 to 1": (DIGITS / 255, DIGITS),
    "black": (0 * DIGITS, 0 * DIGITS),
    "0 or 1": (INK / 255, INK),
    "scaled twice": (DIGITS / 255**2, None),
    "0 to 2": (DIGITS / 127.5, None),
    "-1 to 1": (DIGITS / 127.5 - 1, None),
    "standardised": ((DIGITS / 255 - 0.1307) / 0.3081, None),
    "16 bits": (DIGITS * 257, None),
    "not a number": (np.where(DIGITS, DIGITS / 255, np.nan), None),
    "infinite": (np.where(DIGITS, DIGITS / 255, np.inf), None),
}
NUMBERS = ["?", *"bBhHiIlLefdg", jnp.bfloat16]
NO_NUMBERS = ["D", "O", "U9", "S9", "m8[s]", "V8"]
SEVERAL = {
    "(n, 28, 28)": lambda x: x,
    "(n, 28, 28, 1)": lambda x: x[..., None],
    "(n, 1, 28, 28)": lambda x: x[:, None],
    "(n, 784)": lambda x: x.reshape(len(x), 784),
}
ONE = {name.replace("n, ", ""): lambda x, several=several: several(x)[0] for name, several in SEVERAL.items()}
NO_IMAGES = {
    "(3920,)": lambda x: x.ravel(),
    "(140, 28)": lambda x: x.reshape(-1, 28),
    "(28, 28, 5)": lambda x: x.transpose(1, 2, 0),
    "(5, 32, 32)": lambda x: np.pad(x, ((0, 0), (2, 2), (2, 2))),
    "(5, 14, 28)": lambda x: x[:, ::2],
    "(5, 28, 28, 3)": lambda x: np.stack([x] * 3, -1),
    "(5, 3, 28, 28)": lambda x: np.stack([x] * 3, 1),
    "(5, 784, 1)": lambda x: x.reshape(5, 784, 1),
    "(1, 5, 28, 28)": lambda x: x[None],
    "(1, 5, 28, 28, 1)": lambda x: x[None, ..., None],
    "()": lambda x: x[0, 14, 14],
}


def in_type(images, dtype):
    """The same numbers in another type, or None if that cannot hold them."""
    with np.errstate(all="ignore"):
        cast = images.astype(dtype)
        return cast if np.allclose(cast.astype(float), images, rtol=0.01, equal_nan=True) else None


def assert_refused(images):
    with pytest.raises(UserError) as refused:
        mnist_flax.as_images(images)
    sentence = str(refused.value)
    assert f"images of shape {images.shape} and type {images.dtype}" in sentence.replace("float32", str(images.dtype))
    assert "\n" not in sentence
    if images.dtype.kind in "biuf":
        assert f"values from {images.min():.6g} to {images.max():.6g}: " in sentence


@pytest.mark.parametrize("scale", SCALES)
def test_images_are_read_as_what_they_are_or_refused(scale):
    """Whatever their type and shape."""
    scaled, meaning = SCALES[scale]
    tried = 0
    for dtype in NUMBERS:
        images = in_type(scaled, dtype)
        if images is None:
            continue
        dark = scale == "0 or 1" and images.dtype.kind in "iu"  # as grey levels these would be black
        for layout in [*ONE.values(), *SEVERAL.values()]:
            if meaning is None or dark:
                assert_refused(layout(images))
            else:
                batch = mnist_flax.as_images(layout(images))
                expected = meaning if layout in SEVERAL.values() else meaning[:1]
                assert (batch.dtype, batch.shape) == (np.uint8, expected.shape)
                np.testing.assert_allclose(batch, expected, atol=1 if dtype == jnp.bfloat16 else 0)
            tried += 1
        for layout in NO_IMAGES.values():
            assert_refused(layout(images))
            tried += 1
    assert tried >= 19


@pytest.mark.parametrize("dtype", NO_NUMBERS)
def test_what_is_not_numbers_is_refused(dtype):
    assert_refused(np.zeros((2, 28, 28), np.uint8).astype(dtype))


def test_a_batch_may_be_empty():
    """Nothing is answered, so nothing wrongly."""
    for layout in SEVERAL.values():
        for dtype in NUMBERS:
            assert mnist_flax.as_images(layout(DIGITS[:0].astype(dtype))).shape == (0, 28, 28)
    with pytest.raises(UserError, match=r"shape \(0,\) and type float64: expected images of 28×28 pixels"):
        mnist_flax.as_images([])


class Tensor:
    """What PyTorch's tensors have that NumPy asks for."""

    def __init__(self, array, device="cpu"):
        self.array, self.device = array, device

    def __array__(self, dtype=None, copy=None):
        if self.device != "cpu":
            raise TypeError("can't convert cuda:0 device type tensor to numpy.\nUse Tensor.cpu() first")
        return self.array


@pytest.mark.parametrize("container", [jnp.asarray, np.ndarray.tolist, list, Tensor, np.asfortranarray])
def test_images_may_be_in_anything_that_numpy_reads(container):
    np.testing.assert_array_equal(mnist_flax.as_images(container(DIGITS.astype(np.float32) / 255)), DIGITS)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (Tensor(DIGITS, "cuda"), "images of type Tensor are not one array of numbers (can't convert cuda:0 device"),
        ([DIGITS[0], DIGITS[0, :3]], "images of type list are not one array of numbers (setting an array element"),
        ("photo.jpg", "images of shape () and type <U9: expected whole numbers within 0..255"),
    ],
)
def test_what_is_no_array_is_refused_in_a_sentence(images, sentence):
    with pytest.raises(UserError) as refused:
        mnist_flax.as_images(images)
    assert str(refused.value).startswith(sentence)
    assert "\n" not in str(refused.value)
