"""The network as ONNX, for other people's tools: in float32 or int8, for images of bytes or of floats."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num, UInt8
from numpy.typing import DTypeLike

from mnist_flax.errors import require
from mnist_flax.files import SIGN
from mnist_flax.inference.classifier import Classifier
from mnist_flax.inference.integers import IntegerNetwork, folded
from mnist_flax.model import BLOCKS

# The oldest opset whose DequantizeLinear has a scale for each channel, and an IR version of its time: every tool of
# docs/deploy.md reads them.
OPSET, IR_VERSION = 13, 7
BYTES, FLOATS = "uint8", "float"
_PIXEL = 1 / 255  # what a grey level of 1 stands for
# Weights are uint8. As int8, times uint8 activations, ONNX Runtime adds their products by pairs in 16 bits on x86
# processors without VNNI, where they saturate: 99.48 % of MNIST's test set instead of 99.62 %.
# https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
_ZERO_WEIGHT = 128


class Variant(NamedTuple):
    """The kind of ONNX file to write.

    Attributes:
        takes: `BYTES`, uint8 (n, 28, 28) in 0..255; or `FLOATS`, float32 (n, 1, 28, 28) in 0..1.
        batch: the number of images; any number if it is None.
        integers: the network in integers, to be written instead of float32.
    """

    takes: str = BYTES
    batch: int | None = None
    integers: IntegerNetwork | None = None


PLAIN = Variant()


class _Layer(NamedTuple):
    """A convolution. In integers a weight of 1 stands for its channel's first scale, a bias of 1 for its second."""

    name: str
    weights: Num[np.ndarray, "features size size channels"]
    bias: Num[np.ndarray, " features"]
    scales: tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]] | None
    output_unit: float | None


class _Graph:
    """A graph that grows: a chain of nodes, each of which takes the output of the one before, and their constants."""

    def __init__(self, helper: ModuleType, start: str) -> None:
        self.helper, self.last = helper, start
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def add(self, operation: str, name: str, *inputs: str, **attributes: Any) -> None:
        self.nodes.append(self.helper.make_node(operation, [self.last, *inputs], [name], name=name, **attributes))
        self.last = name

    def constant(self, name: str, value: np.ndarray | float | int | list[int], dtype: DTypeLike = np.float32) -> str:
        self.constants[name] = np.asarray(value, dtype)
        return name

    def in_uint8(self, name: str, unit: float) -> tuple[str, str]:
        """Add the scale and the zero point, which is 0, of a uint8 tensor; returns their names."""
        return self.constant(f"{name}.scale", unit), self.constant("zero", 0, np.uint8)

    def quantize(self, name: str, unit: float | None) -> None:
        """Round the output of node `name` to multiples of `unit`, if that is given."""
        if unit is not None:
            self.add("QuantizeLinear", f"{name}.quantized", *self.in_uint8(name, unit))
            self.add("DequantizeLinear", f"{name}.dequantized", *self.in_uint8(name, unit))

    def parameter(self, name: str, value: np.ndarray, scale: np.ndarray | None, zero: int, dtype: type) -> str:
        """Add a weight or bias in float32, or in integers if it has a scale."""
        if scale is None:
            return self.constant(name, value)
        inputs = [
            self.constant(f"{name}.quantized", value + zero, dtype),
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.zero", np.full(len(scale), zero), dtype),
        ]
        self.nodes.append(self.helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=0))
        return name

    def convolve(self, layer: _Layer, name: str, padding: int = 0) -> None:
        weights, size = layer.weights.transpose(0, 3, 1, 2), layer.weights.shape[1:3]
        unit, bias_unit = layer.scales or (None, None)
        inputs = (
            self.parameter(f"{layer.name}.weight", weights, unit, _ZERO_WEIGHT, np.uint8),
            self.parameter(f"{layer.name}.bias", layer.bias, bias_unit, 0, np.int32),
        )
        self.add("Conv", name, *inputs, kernel_shape=size, pads=[padding] * 4)


def write(path: Path, network: Classifier, output: str, temperature: float | None, variant: Variant) -> None:
    """Write `network` to `path`.

    The input is called "images". BatchNorm and the images' normalisation are folded into the convolutions.

    Args:
        path: where to.
        network: what to write.
        output: the output's name.
        temperature: the output is the softmax of the logits divided by it; None for the logits.
        variant: which file.
    """
    onnx = require("onnx", "to write ONNX")
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = _Graph(helper, "images")
    if variant.takes == BYTES:
        graph.add("Unsqueeze", "channels", graph.constant("channel_axis", [1], np.int64))
        if variant.integers is None:
            graph.add("Cast", "floats", to=kinds.FLOAT)
            graph.add("Mul", "scaled", graph.constant("pixel", _PIXEL))
        else:
            graph.add("DequantizeLinear", "images.dequantized", *graph.in_uint8("images", _PIXEL))
    elif variant.integers is not None:
        graph.quantize("images", _PIXEL)
    *blocks, final = _layers(network, variant.integers)
    for layer in blocks:
        graph.convolve(layer, f"{layer.name}.conv", BLOCKS[layer.name].padding)
        graph.add("Relu", layer.name)
        graph.quantize(layer.name, layer.output_unit)
        if BLOCKS[layer.name].pooled:
            graph.add("MaxPool", "maxpool", kernel_shape=[2, 2], strides=[2, 2])
            graph.quantize("maxpool", layer.output_unit)
    graph.add("GlobalAveragePool", "gap")
    graph.convolve(final, final.name)
    graph.add("Flatten", output if temperature is None else "logits")
    if temperature is not None:
        graph.add("Div", "calibrated_logits", graph.constant("temperature", temperature))
        graph.add("Softmax", output, axis=-1)

    number = variant.batch or "n"
    kind, shape, meaning = {
        BYTES: (kinds.UINT8, [number, 28, 28], "grey levels, light on dark"),
        FLOATS: (kinds.FLOAT, [number, 1, 28, 28], "grey levels / 255, light on dark"),
    }[variant.takes]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "mnist_flax",
            [helper.make_tensor_value_info("images", kind, shape, doc_string=meaning)],
            [helper.make_tensor_value_info(output, kinds.FLOAT, [number, len(network.class_names)])],
            [onnx.numpy_helper.from_array(np.ascontiguousarray(x), name) for name, x in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name=SIGN,
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _layers(network: Classifier, integers: IntegerNetwork | None) -> list[_Layer]:
    """All convolutions, the first for inputs in 0..1."""
    if integers is None:
        first, *others = [_Layer(*block, None, None) for block in folded(network)]
        final, used = network.variables["params"]["final_conv"], slice(len(network.class_names))
        kernel, bias = np.asarray(final["kernel"])[..., used], np.asarray(final["bias"])[used]
        last = _Layer("final_conv", kernel.transpose(3, 0, 1, 2), bias, None, None)
        return [first._replace(weights=first.weights / _PIXEL), *others, last]
    layers, unit = [], _PIXEL
    for layer in integers.layers:
        of_bias = layer.scale / 2**32 * layer.unit
        layers.append(_Layer(layer.name, layer.weights, layer.bias, (of_bias / unit, of_bias), layer.unit))
        unit = layer.unit
    of_bias = np.full(len(integers.bias), integers.unit)
    weights = integers.weights[:, None, None]
    # Integers are summed over 10×10 outputs, of which this is the mean.
    return [*layers, _Layer("final_conv", weights, integers.bias, (of_bias / (unit / 100), of_bias), None)]


def reader(path: Path, variant: Variant) -> Callable[[UInt8[np.ndarray, "n 28 28"]], Float[np.ndarray, "n classes"]]:
    """A function that runs a file on images by ONNX Runtime; the last batch of a fixed number is padded."""
    runtime = require("onnxruntime", "to check ONNX")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: UInt8[np.ndarray, "n 28 28"]) -> Float[np.ndarray, "n classes"]:
        size = variant.batch or len(images)
        padded = np.pad(images, ((0, -len(images) % size), (0, 0), (0, 0)))
        taken = padded if variant.takes == BYTES else (padded[:, None] / 255).astype(np.float32)
        batches = (taken[start : start + size] for start in range(0, len(taken), size))
        return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])[: len(images)]

    return run
