"""Weights exchanged with the PyTorch original, by its state dict's names and layouts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike

from mnist_flax.errors import UserError, require
from mnist_flax.model import BLOCKS, variable_shapes

# (PyTorch name inside the layer, Flax collection, Flax path inside the layer)
_BLOCK_ENTRIES = (
    ("0.weight", "params", ("conv", "kernel")),
    ("0.bias", "params", ("conv", "bias")),
    ("1.weight", "params", ("norm", "scale")),
    ("1.bias", "params", ("norm", "bias")),
    ("1.running_mean", "batch_stats", ("norm", "mean")),
    ("1.running_var", "batch_stats", ("norm", "var")),
)
_FINAL_ENTRIES = (("weight", "params", ("kernel",)), ("bias", "params", ("bias",)))


def _names() -> dict[str, tuple[str, ...]]:
    """Every PyTorch name of the network with its Flax path, collection first."""
    names = {}
    for layer, entries in [*((block, _BLOCK_ENTRIES) for block in BLOCKS), ("final_conv", _FINAL_ENTRIES)]:
        for torch_name, collection, path in entries:
            if torch_name == "0.bias" and layer != "channel_reduce":
                continue  # BatchNorm makes a bias redundant; the reference keeps one in the 1×1 squeeze only
            names[f"{layer}.{torch_name}"] = (collection, layer, *path)
    return names


def from_pytorch(state_dict: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Flax variables `{"params", "batch_stats"}` from the original's state dict (tensors or arrays; OIHW kernels).

    `num_batches_tracked` counters are ignored.

    Raises:
        ValueError: an entry is missing, unknown or of the wrong shape; the message names it.
    """
    names = _names()
    given = {name for name in state_dict if not name.endswith("num_batches_tracked")}
    if given != set(names):
        missing, unknown = (_first(sorted(odd)) for odd in (set(names) - given, given - set(names)))
        raise ValueError(f"this state dict is not the reference network's: missing {missing}, unknown {unknown}")
    expected_shapes = _expected_shapes()
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, path in names.items():
        value = np.array(state_dict[name], dtype=np.float32)
        if value.ndim == 4:
            value = value.transpose(2, 3, 1, 0)  # OIHW -> HWIO
        if value.shape != expected_shapes[path]:
            raise ValueError(f"{name}: shape {value.shape} in Flax's layout, expected {expected_shapes[path]}")
        node = variables
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return variables


def _first(names: list[str]) -> str:
    return f"{names[:3]}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def to_pytorch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The original's state dict, as NumPy arrays with OIHW kernels, from Flax variables. Inverse of `from_pytorch`."""
    state_dict = {}
    for name, path in _names().items():
        value: Any = variables
        for key in path:
            value = value[key]
        value = np.asarray(value)
        state_dict[name] = np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if value.ndim == 4 else value
    return state_dict


def _expected_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(variable_shapes())
    return {tuple(entry.key for entry in path): leaf.shape for path, leaf in leaves}


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """A PyTorch state dict from a .pth or .pt file (weights only: no code in it is run) or a safetensors file.

    Raises:
        UserError: it cannot be read as such.
    """
    if path.suffix in {".pth", ".pt"}:
        torch = require("torch", f"to read {path.name}")
        try:
            loaded = torch.load(path, weights_only=True, map_location="cpu")
            state_dict = loaded.get("model_state_dict", loaded)  # what the original's full checkpoints call it
            return {name: value.numpy() for name, value in state_dict.items()}
        except Exception as error:  # PyTorch's unpickler raises what the file makes it raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path} cannot be read as a PyTorch state dict ({reason})") from error
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file ({error})") from error
