"""The network in integers, as a chip without floating point computes it: int8 weights, uint8 activations, int32 sums.

A block's outputs have one scale: the largest that training images give becomes 255. The weights of each output channel
have one: the largest becomes 127. BatchNorm and the images' normalisation are folded into weights and bias.
Jacob et al., 2018, arXiv:1712.05877.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int64, Num, UInt8

from mnist_flax import data
from mnist_flax.data import Dataset, Examples
from mnist_flax.data.examples import split_off
from mnist_flax.errors import UserError
from mnist_flax.inference import interop
from mnist_flax.inference.card import MAXIMA
from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import BLOCKS, IMAGE_SHAPE

# Of the training images. With so many, and with twice as many, all labels of MNIST's test set are as in float32.
MEASURED_ON = 1000
_BATCH = 50  # images whose activations stay in a processor's caches
# A sum of products is at most 144 · 127 · 255, below 2^23, and below 2^24 with such a bias. So far float32 holds every
# integer, and its matrix products, which are the fast ones, are exact.
_LARGEST_BIAS = 2**23

Load = Callable[[str, Path | None, int | None], Dataset]


class Layer(NamedTuple):
    """A convolution and ReLU: an output is (sum + bias) · scale / 2^32, rounded half up and clipped to 0..255."""

    name: str
    weights: Int64[np.ndarray, "features size size channels"]
    bias: Int64[np.ndarray, " features"]
    scale: Int64[np.ndarray, " features"]
    padding: int
    pooled: bool  # the maximum of each 2×2 outputs is kept
    width_in: int  # of its input, which is as high as wide
    unit: float  # what an output of 1 stands for

    @property
    def width(self) -> int:
        """Width of its output before pooling."""
        return self.width_in + 2 * self.padding - self.weights.shape[1] + 1


class IntegerNetwork(NamedTuple):
    """A network in integers: its blocks, and the final layer, for the last block's outputs summed over the image.

    A logit is an integer. Times `unit` it is about that of the network in float32.
    """

    layers: tuple[Layer, ...]
    weights: Int64[np.ndarray, "classes channels"]
    bias: Int64[np.ndarray, " classes"]
    unit: float

    def logits(self, images: UInt8[np.ndarray, "n 28 28"]) -> Int64[np.ndarray, "n classes"]:
        """The logits of images in 0..255, bit for bit those of the C program that `c_source` writes."""
        features = [np.zeros((0, self.weights.shape[1]), np.int64), *map(self._features, _batches(images))]
        return np.concatenate(features) @ self.weights.T + self.bias

    def _features(self, x: Float32[np.ndarray, "n 28 28 1"]) -> Int64[np.ndarray, "n channels"]:
        for layer in self.layers:
            sums = np.maximum(_convolve(x, layer.weights, layer.bias, layer.padding), 0).astype(np.int64)
            scaled = (sums * layer.scale + 2**31) >> 32
            x = _pool(np.minimum(scaled, 255).astype(np.float32), layer.pooled)
        return x.sum((1, 2)).astype(np.int64)


def named_alike(network: Classifier, in_integers: IntegerNetwork) -> dict[str, int]:
    """Count real digits ("images"), and those that get the same label in integers ("named_as_in_float32")."""
    images = data.load("digits", None, 0).test.images
    same = in_integers.logits(images).argmax(-1) == network.predict(images)[0]
    return {"images": len(images), "named_as_in_float32": int(same.sum())}


def from_network(network: Classifier, data_dir: Path | None = None, load: Load = data.load) -> IntegerNetwork:
    """The network in integers.

    Args:
        network: if its card has no activation maxima, they are measured on its own data set.
        data_dir: TFDS data directory, for that.
        load: `reading.folder.load`, which this layer may not import, if the data set may be a folder.

    Raises:
        UserError: there are no maxima, and the data set cannot be loaded; or a weight is NaN or infinite.
    """
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(network.variables)):
        raise UserError("the network cannot be converted to integers: some of its weights are NaN or infinite")
    if MAXIMA in network.card:
        return quantize(network, network.card[MAXIMA])
    name = network.card["dataset"]
    try:
        train = load(name, data_dir, network.card["config"]["val_size"]).train
    except UserError as error:
        raise UserError(
            f"integers need the largest activation of each block; this network's card has no {MAXIMA}, and {name}'s "
            f"training images, on which to measure them, cannot be loaded ({error}); --data-dir says where they are"
        ) from error
    return quantize(network, maxima(network, train))


def maxima(network: Classifier, train: Examples) -> list[float]:
    """The largest output of each block on `MEASURED_ON` of the training images: always the same ones."""
    _, chosen = split_off(train, min(MEASURED_ON, len(train.labels)))
    blocks, found = folded(network), []
    for x in _batches(chosen.images):
        found.append([])
        for name, kernel, bias in blocks:
            x = _pool(np.maximum(_convolve(x, kernel, bias, BLOCKS[name].padding), 0), BLOCKS[name].pooled)
            found[-1].append(x.max())
    return np.max(found, axis=0).tolist()


def quantize(network: Classifier, largest: list[float]) -> IntegerNetwork:
    """The network in integers, for the largest output of each block."""
    layers: list[Layer] = []
    width_in, unit = IMAGE_SHAPE[0], 1.0  # what an input of 1 stands for
    for (name, kernel, bias), maximum in zip(folded(network), largest, strict=True):
        units = _units(kernel.reshape(len(bias), -1), bias[:, None] / unit, _LARGEST_BIAS)
        # Outputs need not be finer than half a unit of the sums, and a scale above a half would not fit in 32 bits.
        output_unit = max(maximum / 255, 2 * unit * units.max())
        scale = _rounded(units * unit / output_unit * 2**32)
        weights, bias = _rounded(kernel / units[:, None, None, None]), _rounded(bias / (units * unit))
        unit = float(output_unit)
        block = BLOCKS[name]
        layers.append(Layer(name, weights, bias, scale, block.padding, block.pooled, width_in, unit))
        width_in = layers[-1].width >> layers[-1].pooled
    unit /= 100  # the mean over 10×10 outputs
    final = {name: np.asarray(value, np.float64) for name, value in network.variables["params"]["final_conv"].items()}
    used = slice(len(network.class_names))
    kernel, bias = final["kernel"][0, 0].T[used], final["bias"][used]
    (of_all,) = _units(kernel.reshape(1, -1), bias[None] / unit, 2**30)  # one, because logits are compared
    weights, bias = _rounded(kernel / of_all), _rounded(bias / (of_all * unit))
    return IntegerNetwork(tuple(layers), weights, bias, float(of_all * unit))


def _units(
    kernel: Float[np.ndarray, "rows n"], bias: Float[np.ndarray, "rows m"], largest_bias: int
) -> Float[np.ndarray, " rows"]:
    """The real value of a weight of 1, by row: the least at which no weight exceeds 127 and no bias the largest."""
    units = np.maximum(np.abs(kernel).max(1) / 127, np.abs(bias).max(1) / largest_bias)
    return np.where(units > 0, units, units.max() or 1.0)  # a row may be all zeros


def _rounded(x: Float[np.ndarray, "..."]) -> Int64[np.ndarray, "..."]:
    return np.rint(x).astype(np.int64)


def folded(network: Classifier) -> list[tuple[str, Float[np.ndarray, "o h w i"], Float[np.ndarray, " o"]]]:
    """Each block with BatchNorm folded in: its name, kernel and bias; the first takes pixels in 0..255."""
    state_dict, (mean, std) = interop.to_pytorch(network.variables), network.normalization
    blocks = []
    for name in BLOCKS:
        kernel, bias = (array.astype(np.float64) for array in interop.fold_batch_norm(state_dict, name))
        if not blocks:  # the first is not padded: each of its outputs sees as much of the ground as the others
            kernel, bias = kernel / (255 * std), bias - mean / std * kernel.sum((1, 2, 3))
        blocks.append((name, kernel.transpose(0, 2, 3, 1), bias))
    return blocks


def _batches(images: UInt8[np.ndarray, "n 28 28"]) -> Iterator[Float32[np.ndarray, "m 28 28 1"]]:
    for start in range(0, len(images), _BATCH):
        yield images[start : start + _BATCH, ..., None].astype(np.float32)


def _convolve(
    x: Float32[np.ndarray, "n h w i"],
    kernel: Num[np.ndarray, "o size size i"],
    bias: Num[np.ndarray, " o"],
    padding: int,
) -> Float32[np.ndarray, "n h2 w2 o"]:
    """A convolution in float32."""
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1:3], axis=(1, 2))
    rows = windows.transpose(0, 1, 2, 4, 5, 3).reshape(*windows.shape[:3], -1)
    return rows @ kernel.reshape(len(kernel), -1).T.astype(np.float32) + bias.astype(np.float32)


def _pool(x: Float32[np.ndarray, "n h w c"], pooled: bool) -> Float32[np.ndarray, "n h2 w2 c"]:
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4)) if pooled else x
