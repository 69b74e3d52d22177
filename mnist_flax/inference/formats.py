"""A trained network as a file for other programs: each format is written, read back and checked against Flax."""

import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mnist_flax import data
from mnist_flax.errors import UserError, require
from mnist_flax.files import SIGN, require_ours, unused
from mnist_flax.inference import interop, state_dicts, weights
from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import BLOCKS
from mnist_flax.training.devices import usual_modes

# Logits are float32 of the order of 10: another order of summation changes them by about 1e-5.
LARGEST_DIFFERENCE = 1e-3

LOGITS, PROBABILITIES = "logits", "probabilities"  # what a file can return

Outputs = Float[np.ndarray, "n classes"]
Run = Callable[[UInt8[np.ndarray, "n 28 28"]], Outputs]


def _compiled(network: Classifier, kind: str) -> Any:
    import jax

    def outputs(images: jax.Array) -> jax.Array:
        logits: Any = network.model.apply(network.variables, network.normalization(images))
        return jax.nn.softmax(logits / network.temperature) if kind == PROBABILITIES else logits

    outputs.__name__ = SIGN  # which StableHLO keeps
    return jax.jit(outputs)


def outputs_of(network: Classifier, kind: str) -> Run:
    """The Flax model as a function from images to logits or probabilities."""
    compiled = _compiled(network, kind)
    return lambda images: np.asarray(compiled(images))


@usual_modes()
def export(network: Classifier, file_format: str, path: Path, kind: str = LOGITS) -> float:
    """Write `network` to `path`, read it back, and return the largest difference of an output on real images.

    Args:
        network: what to write.
        file_format: one of `FORMATS`.
        path: where to.
        kind: what the file returns, `LOGITS` or `PROBABILITIES`. Files that hold weights return nothing.

    Raises:
        UserError: it cannot be written, the written file does not agree, or `path` is a file that is not ours; then
            that is left as it was.
    """
    require_ours(path)
    images = data.load("digits", None, 0).test.images
    temporary = unused(path)
    try:
        run = FORMATS[file_format](network, temporary, kind)
        expected = network.predict(images)[1] if kind == PROBABILITIES else outputs_of(network, kind)(images)
        batches = images[:1], images[1:]
        difference = max(
            float(np.abs(run(batch) - part).max()) for batch, part in zip(batches, np.split(expected, [1]), strict=True)
        )
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"the {file_format} file gives {kind} that differ by {difference:.2g} from the network's, so it was "
                "not kept; please report this"
            )
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error
    except ValueError as error:  # what it read back is refused
        raise UserError(f"the network cannot be written as {file_format}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def _write_safetensors(network: Classifier, path: Path, kind: str) -> Run:
    weights.save(path, network.variables, network.card, network.reference)
    return outputs_of(Classifier(*weights.load(path)), kind)


def _write_pytorch(network: Classifier, path: Path, kind: str) -> Run:
    """The original's state dict: as safetensors if the name ends so, otherwise by `torch.save`."""
    counts = {f"{block}.1.num_batches_tracked": np.int64(network.card.get("step", 0)) for block in BLOCKS}
    state_dict = {**interop.to_pytorch(network.variables), **counts}
    if path.suffix.lower() == ".safetensors":
        from safetensors.numpy import save

        contiguous = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
        path.write_bytes(save(contiguous, metadata={SIGN: "for PyTorch"}))
    else:
        torch = require("torch", "to write what torch.load reads (a name that ends in .safetensors needs no PyTorch)")
        file = io.BytesIO()  # given a path, it has errors of its own
        tensors = OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in state_dict.items())
        vars(tensors)["_metadata"] = {SIGN: {}}  # by modules' names: no module has this one
        torch.save(tensors, file)
        path.write_bytes(file.getvalue())
    return outputs_of(Classifier(interop.from_pytorch(state_dicts.read(path)), network.card), kind)


def _write_stablehlo(network: Classifier, path: Path, kind: str) -> Run:
    """`jax.export`, for any batch size and for CPU, CUDA and TPU: `jax.export.deserialize(bytes).call(images)`."""
    import jax
    import jax.numpy as jnp
    from jax import export as jax_export

    images = jax.ShapeDtypeStruct(jax_export.symbolic_shape("n, 28, 28"), jnp.uint8)
    exported = jax_export.export(_compiled(network, kind), platforms=("cpu", "cuda", "tpu"))(images)
    path.write_bytes(exported.serialize())
    loaded = jax_export.deserialize(bytearray(path.read_bytes()))
    return lambda images: np.asarray(loaded.call(images))


def _write_onnx(network: Classifier, path: Path, kind: str) -> Run:
    """Opset 17, BatchNorm folded into the convolutions; input "images", uint8 (n, 28, 28), output named by `kind`."""
    onnx, runtime = require("onnx", "to write ONNX"), require("onnxruntime", "to check ONNX")
    helper, kinds = onnx.helper, onnx.TensorProto
    state_dict, mean, std = interop.to_pytorch(network.variables), *network.normalization
    constants: dict[str, Any] = {
        "scale": np.float32(1 / (255 * std)),
        "offset": np.float32(-mean / std),
        "channel_axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=kinds.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["normalized"]),
        helper.make_node("Unsqueeze", ["normalized", "channel_axis"], ["input"]),
    ]
    previous = "input"

    def add(operation: str, output: str, *inputs: str, **attributes: Any) -> None:
        nonlocal previous
        nodes.append(helper.make_node(operation, [previous, *inputs], [output], **attributes))
        previous = output

    for block in BLOCKS:
        kernel, bias = interop.fold_batch_norm(state_dict, block)
        constants |= {f"{block}.weight": kernel, f"{block}.bias": bias}
        pads = [1] * 4 if block in {"block5", "block6", "block7"} else [0] * 4
        add("Conv", f"{block}.conv", f"{block}.weight", f"{block}.bias", pads=pads)
        add("Relu", block)
        if block == "block4":
            add("MaxPool", "maxpool", kernel_shape=[2, 2], strides=[2, 2])
    used = slice(len(network.class_names))
    constants |= {f"final_conv.{part}": state_dict[f"final_conv.{part}"][used] for part in ("weight", "bias")}
    add("GlobalAveragePool", "gap")
    add("Conv", "final_conv", "final_conv.weight", "final_conv.bias")
    add("Flatten", LOGITS)
    if kind == PROBABILITIES:
        constants["temperature"] = np.float32(network.temperature)
        add("Div", "calibrated_logits", "temperature")
        add("Softmax", PROBABILITIES, axis=-1)
    graph = helper.make_graph(
        nodes,
        "mnist_flax",
        [helper.make_tensor_value_info("images", kinds.UINT8, ["n", 28, 28])],
        [helper.make_tensor_value_info(kind, kinds.FLOAT, ["n", len(network.class_names)])],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    # An IR version that runtimes of the opset's time read, not the newest the package knows.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name=SIGN)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    session = runtime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: session.run([kind], {"images": images})[0]


FORMATS: dict[str, Callable[[Classifier, Path, str], Run]] = {
    "safetensors": _write_safetensors,
    "pytorch": _write_pytorch,
    "stablehlo": _write_stablehlo,
    "onnx": _write_onnx,
}
