"""Weights exchanged with the PyTorch original, by its state dict's names and layouts."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
# Counters that PyTorch's BatchNorm and AveragedModel keep among the weights.
_COUNTERS = ("num_batches_tracked", "n_averaged")


def names() -> dict[str, tuple[str, ...]]:
    """Every PyTorch name of the network with its Flax path, collection first."""
    paths = {}
    for layer, entries in [*((block, _BLOCK_ENTRIES) for block in BLOCKS), ("final_conv", _FINAL_ENTRIES)]:
        for torch_name, collection, path in entries:
            if torch_name == "0.bias" and not BLOCKS[layer].use_bias:
                continue
            paths[f"{layer}.{torch_name}"] = (collection, layer, *path)
    return paths


def from_pytorch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Flax variables `{"params", "batch_stats"}` from the original's state dict (tensors or arrays; OIHW kernels).

    Numbers of any floating-point type become float32. Counters such as `num_batches_tracked` are ignored.

    Raises:
        ValueError: an entry is missing, unknown, of the wrong shape, or its numbers cannot be a trained network's; the
            message names it.
    """
    paths = names()
    given = {name for name in state_dict if not _is_counter(name)}
    if given != set(paths):
        missing, unknown = (_first(odd) for odd in (set(paths) - given, given - set(paths)))
        raise ValueError(f"this state dict is not the reference network's: missing {missing}, unknown {unknown}")
    expected_shapes = _expected_shapes()
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, path in paths.items():
        value = _array(name, state_dict[name], expected_shapes[path])
        node = variables
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value  # OIHW -> HWIO
    return variables


def _is_counter(name: object) -> bool:
    return str(name).rpartition(".")[-1] in _COUNTERS


def _first(names: Collection[object]) -> str:
    shown = sorted(map(str, names))[:3]
    return f"{shown}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def _array(name: str, value: Any, flax_shape: tuple[int, ...]) -> np.ndarray:
    """An entry of a state dict as float32, in PyTorch's layout."""
    expected = tuple(flax_shape[i] for i in (3, 2, 0, 1)) if len(flax_shape) == 4 else flax_shape
    shape = tuple(getattr(value, "shape", ()))
    if shape != expected:  # before it is copied: a tensor of stride 0 takes no space in a file, whatever its shape
        raise ValueError(f"{name}: shape {shape}, expected {expected}")
    try:
        if hasattr(value, "is_floating_point"):  # a tensor, perhaps one that NumPy cannot hold, or on another device
            value = value.detach().cpu().double().numpy() if value.is_floating_point() else value.cpu().numpy()
        elif jnp.issubdtype(value.dtype, jnp.floating):
            value = np.asarray(value).astype(np.float64)
    except (TypeError, RuntimeError) as error:  # sparse, quantized or without content
        raise ValueError(f"{name}: not a plain tensor") from error
    if value.dtype != np.float64:
        raise ValueError(f"{name}: numbers of type {value.dtype}, expected floating-point numbers")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: some of its numbers are NaN or infinite")
    if name.endswith("running_var") and (value < 0).any():
        raise ValueError(f"{name}: a variance is negative")
    return value


def to_pytorch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The original's state dict, as NumPy arrays with OIHW kernels, from Flax variables. Inverse of `from_pytorch`."""
    state_dict = {}
    for name, path in names().items():
        value: Any = variables
        for key in path:
            value = value[key]
        value = np.asarray(value)
        state_dict[name] = np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if value.ndim == 4 else value
    return state_dict


def fold_batch_norm(state_dict: Mapping[str, np.ndarray], block: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of the one convolution that equals a block's convolution and BatchNorm."""
    weight, shift, mean, variance = (
        state_dict[f"{block}.1.{name}"].astype(np.float64) for name in ("weight", "bias", "running_mean", "running_var")
    )
    factor = weight / np.sqrt(variance + 1e-5)
    kernel = state_dict[f"{block}.0.weight"] * factor[:, None, None, None]
    bias = (state_dict.get(f"{block}.0.bias", 0.0) - mean) * factor + shift
    return kernel.astype(np.float32), bias.astype(np.float32)


def _expected_shapes() -> dict[tuple[str, ...], tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(variable_shapes())
    return {tuple(entry.key for entry in path): leaf.shape for path, leaf in leaves}
