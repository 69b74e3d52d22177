"""The network as ONNX, for other people's tools: in float32 or int8, for images of bytes or of floats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Num, UInt8

from mnist_flax.errors import require
from mnist_flax.files import SIGN
from mnist_flax.inference.classifier import Classifier
from mnist_flax.inference.integers import PADDED, POOLED, IntegerNetwork, folded

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
    """Which ONNX file.

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
    constants: dict[str, np.ndarray] = {}
    nodes, previous = [], "images"

    def add(operation: str, name: str, *inputs: str, **attributes: Any) -> None:
        nonlocal previous
        nodes.append(helper.make_node(operation, [previous, *inputs], [name], name=name, **attributes))
        previous = name

    def constant(name: str, value: Any, dtype: Any = np.float32) -> str:
        constants[name] = np.asarray(value, dtype)
        return name

    def in_uint8(name: str, unit: float) -> tuple[str, str]:
        """What stands for an integer's real number: the scale, and the zero point, which is 0."""
        return constant(f"{name}.scale", unit), constant("zero", 0, np.uint8)

    def quantize(name: str, unit: float) -> None:
        add("QuantizeLinear", f"{name}.quantized", *in_uint8(name, unit))
        add("DequantizeLinear", f"{name}.dequantized", *in_uint8(name, unit))

    def parameter(name: str, value: np.ndarray, scale: np.ndarray | None, zero: int, dtype: type) -> str:
        if scale is None:
            return constant(name, value)
        parts = {"quantized": value + zero, "zero": np.full(len(scale), zero)}
        inputs = [constant(f"{name}.{part}", array, dtype) for part, array in parts.items()]
        inputs.insert(1, constant(f"{name}.scale", scale))
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name=name, axis=0))
        return name

    def convolve(layer: _Layer, name: str) -> None:
        weights, size = layer.weights.transpose(0, 3, 1, 2), layer.weights.shape[1:3]
        unit, bias_unit = layer.scales or (None, None)
        inputs = (
            parameter(f"{layer.name}.weight", weights, unit, _ZERO_WEIGHT, np.uint8),
            parameter(f"{layer.name}.bias", layer.bias, bias_unit, 0, np.int32),
        )
        add("Conv", name, *inputs, kernel_shape=size, pads=[int(layer.name in PADDED)] * 4)

    if variant.takes == BYTES:
        add("Unsqueeze", "channels", constant("channel_axis", [1], np.int64))
        if variant.integers is None:
            add("Cast", "floats", to=kinds.FLOAT)
            add("Mul", "scaled", constant("pixel", _PIXEL))
        else:
            add("DequantizeLinear", "images.dequantized", *in_uint8("images", _PIXEL))
    elif variant.integers is not None:
        quantize("images", _PIXEL)
    *blocks, final = _layers(network, variant.integers)
    for layer in blocks:
        convolve(layer, f"{layer.name}.conv")
        add("Relu", layer.name)
        if layer.output_unit is not None:
            quantize(layer.name, layer.output_unit)
        if layer.name == POOLED:
            add("MaxPool", "maxpool", kernel_shape=[2, 2], strides=[2, 2])
            if layer.output_unit is not None:
                quantize("maxpool", layer.output_unit)
    add("GlobalAveragePool", "gap")
    convolve(final, final.name)
    add("Flatten", output if temperature is None else "logits")
    if temperature is not None:
        add("Div", "calibrated_logits", constant("temperature", temperature))
        add("Softmax", output, axis=-1)

    number = variant.batch or "n"
    kind, shape, meaning = {
        BYTES: (kinds.UINT8, [number, 28, 28], "grey levels, light on dark"),
        FLOATS: (kinds.FLOAT, [number, 1, 28, 28], "grey levels / 255, light on dark"),
    }[variant.takes]
    graph = helper.make_graph(
        nodes,
        "mnist_flax",
        [helper.make_tensor_value_info("images", kind, shape, doc_string=meaning)],
        [helper.make_tensor_value_info(output, kinds.FLOAT, [number, len(network.class_names)])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name=SIGN)
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
    """What ONNX Runtime makes of images by a file, as a function; the last batch of a fixed number is filled up."""
    runtime = require("onnxruntime", "to check ONNX")
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: UInt8[np.ndarray, "n 28 28"]) -> Float[np.ndarray, "n classes"]:
        size = variant.batch or len(images)
        padded = np.pad(images, ((0, -len(images) % size), (0, 0), (0, 0)))
        taken = padded if variant.takes == BYTES else (padded[:, None] / 255).astype(np.float32)
        batches = (taken[start : start + size] for start in range(0, len(taken), size))
        return np.concatenate([session.run(None, {"images": batch})[0] for batch in batches])[: len(images)]

    return run
