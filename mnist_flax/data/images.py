"""Converts images of any array type to what the networks take: uint8 of shape (n, 28, 28)."""

import numpy as np
from jaxtyping import Shaped, UInt8
from numpy.typing import ArrayLike

from mnist_flax.data.geometry import SIDE
from mnist_flax.errors import UserError

_SHAPES = "(28, 28) or (784,) for one image, (n, 28, 28), (n, 28, 28, 1), (n, 1, 28, 28) or (n, 784) for several"
_VALUES = "whole numbers within 0..255, floats within 0..1, or booleans, before any standardisation"


def as_images(images: ArrayLike) -> UInt8[np.ndarray, "n 28 28"]:
    """Images as uint8 of shape (n, 28, 28): 0 is paper, 255 is ink.

    What could mean two things is refused, so that no network answers a question that was not asked.

    Args:
        images: whatever NumPy makes an array of: its own arrays, JAX's, tensors of PyTorch on the CPU, lists. One image
            or several: (28, 28), (28, 28, 1), (784,), (n, 28, 28), (n, 28, 28, 1), (n, 1, 28, 28) or (n, 784). Booleans
            are ink or none, floats within 0..1 are shares of 255, other numbers are whole and within 0..255.

    Returns:
        A batch, of one image also if it came without the axis of images.

    Raises:
        UserError: they are something else. The message names shape, type and range, and what is expected.
    """
    array = _array(images)
    match array.shape:
        case (28, 28) | (28, 28, 1) | (784,):
            num_images = 1
        case (num_images, 28, 28) | (num_images, 28, 28, 1) | (num_images, 1, 28, 28) | (num_images, 784):
            pass
        case _:
            raise _refusal(array, f"expected images of 28×28 pixels, as {_SHAPES} (`mnist-flax predict` reads others)")
    pixels = _pixels(array)
    if pixels.max(initial=0) <= 1 and array.any():
        raise _refusal(array, "as grey levels within 0..255 these are all black; pass booleans, or multiply by 255")
    return pixels.reshape(num_images, SIDE, SIDE)


def _array(images: ArrayLike) -> Shaped[np.ndarray, "..."]:
    try:
        array = np.asarray(images)
    except (TypeError, ValueError, RuntimeError) as error:  # a ragged list, a tensor on a GPU or with a gradient
        reason = str(error).partition("\n")[0]
        raise UserError(f"images of type {type(images).__name__} are not one array of numbers ({reason})") from error
    if array.dtype.kind in "buif":
        return array
    if not np.can_cast(array.dtype, np.float32):
        raise _refusal(array, f"expected {_VALUES}")
    return array.astype(np.float32)  # bfloat16 is not one of NumPy's own types


def _pixels(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """The same numbers as grey levels."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    low, high = array.min(initial=0), array.max(initial=0)  # of NaN, NaN
    is_float = array.dtype.kind == "f"
    if low >= 0 and high <= 1 and is_float:
        return np.rint(array * np.float32(255)).astype(np.uint8)
    if low >= 0 and high <= 255 and not (is_float and (array % 1).any()):
        return array.astype(np.uint8)
    raise _refusal(array, f"expected {_VALUES}")


def _refusal(array: Shaped[np.ndarray, "..."], reason: str) -> UserError:
    numbers = array.size and array.dtype.kind in "buif"
    values = f", with values from {array.min():.6g} to {array.max():.6g}" if numbers else ""
    return UserError(f"images of shape {array.shape} and type {array.dtype}{values}: {reason}")
