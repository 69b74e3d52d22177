"""A trained network as a file for other programs: each format is written, read back and checked against Flax."""

import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
from jaxtyping import Float, UInt8

from mnist_flax import data
from mnist_flax.errors import UserError, require
from mnist_flax.files import SIGN, require_ours, unused
from mnist_flax.inference import interop, onnx_files, state_dicts, weights
from mnist_flax.inference.classifier import Classifier
from mnist_flax.inference.onnx_files import PLAIN, Variant
from mnist_flax.model import BLOCKS
from mnist_flax.training.devices import usual_modes

# Logits are float32 of the order of 10: another order of summation changes them by about 1e-5.
LARGEST_DIFFERENCE = 1e-3
# An activation that is rounded the other way is another by one in 255, and moves logits by about a hundredth.
LARGEST_INT8_DIFFERENCE = 0.1

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


def _expected(network: Classifier, kind: str, images: UInt8[np.ndarray, "n 28 28"], variant: Variant) -> Outputs:
    if variant.integers is None:
        return network.predict(images)[1] if kind == PROBABILITIES else outputs_of(network, kind)(images)
    logits = variant.integers.logits(images) * variant.integers.unit
    return scipy.special.softmax(logits / network.temperature, axis=-1) if kind == PROBABILITIES else logits


@usual_modes()
def export(network: Classifier, file_format: str, path: Path, kind: str = LOGITS, variant: Variant = PLAIN) -> float:
    """Write `network` to `path`, read it back, and return the largest difference of an output on real images.

    Args:
        network: what to write.
        file_format: one of `FORMATS`.
        path: where to.
        kind: what the file returns, `LOGITS` or `PROBABILITIES`. Files that hold weights return nothing.
        variant: which ONNX file; an int8 one is compared with the network in integers.

    Raises:
        UserError: it cannot be written, the written file does not agree, or `path` is a file that is not ours; then
            that is left as it was.
    """
    require_ours(path)
    images = data.load("digits", None, 0).test.images
    temporary = unused(path)
    try:
        options = {"variant": variant} if file_format == "onnx" else {}
        run = FORMATS[file_format](network, temporary, kind, **options)
        expected = _expected(network, kind, images, variant)
        batches = images[:1], images[1:]
        difference = max(
            float(np.abs(run(batch) - part).max()) for batch, part in zip(batches, np.split(expected, [1]), strict=True)
        )
        if not difference <= (LARGEST_DIFFERENCE if variant.integers is None else LARGEST_INT8_DIFFERENCE):
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
    moments = network.normalization._asdict()  # the input is (pixels / 255 - mean) / std
    if path.suffix.lower() == ".safetensors":
        from safetensors.numpy import save

        contiguous = {name: np.ascontiguousarray(value) for name, value in state_dict.items()}
        path.write_bytes(
            save(contiguous, metadata={SIGN: "for PyTorch", **{name: str(value) for name, value in moments.items()}})
        )
    else:
        torch = require("torch", "to write what torch.load reads (a name that ends in .safetensors needs no PyTorch)")
        file = io.BytesIO()  # given a path, it has errors of its own
        tensors = OrderedDict((name, torch.from_numpy(np.array(value))) for name, value in state_dict.items())
        vars(tensors)["_metadata"] = {SIGN: moments}  # by modules' names: no module has this one
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


def _write_onnx(network: Classifier, path: Path, kind: str, variant: Variant = PLAIN) -> Run:
    onnx_files.write(path, network, kind, network.temperature if kind == PROBABILITIES else None, variant)
    return onnx_files.reader(path, variant)


FORMATS: dict[str, Callable[..., Run]] = {
    "safetensors": _write_safetensors,
    "pytorch": _write_pytorch,
    "stablehlo": _write_stablehlo,
    "onnx": _write_onnx,
}
