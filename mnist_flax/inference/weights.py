"""A trained network on disk: a safetensors file with its card in the header, or the best checkpoint of a run."""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from mnist_flax.errors import UserError
from mnist_flax.files import write_bytes
from mnist_flax.inference import novelty
from mnist_flax.inference.card import check
from mnist_flax.model import NUM_CLASSES, variable_shapes
from mnist_flax.training.run_directory import NETWORK

_CARD = "card"  # the header's one entry, as JSON
_REFERENCE = "reference"


def save(
    path: Path, variables: dict[str, Any], card: dict[str, Any], reference: novelty.Reference | None = None
) -> None:
    """Write `{"params", "batch_stats"}`, their card, and the reference of the out-of-distribution score, if any.

    Tensors are named like "params/block1/conv/kernel" and "reference/means".
    """
    from safetensors.numpy import save as to_bytes

    # safetensors writes an array's memory as it lies, whatever its strides.
    tree = {**variables, **({_REFERENCE: reference._asdict()} if reference else {})}
    contiguous = jax.tree.map(np.ascontiguousarray, jax.device_get(tree))
    tensors: Any = traverse_util.flatten_dict(contiguous, sep="/")
    write_bytes(path, to_bytes(tensors, metadata={_CARD: json.dumps(card)}))


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any], novelty.Reference | None]:
    """Variables, card and reference of a file that `save` wrote.

    Raises:
        UserError: it is not such a file, or not this network's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            tensors: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dictionary
            card = json.loads((file.metadata() or {}).get(_CARD, "null"))
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file ({error})") from error
    expected: Any = traverse_util.flatten_dict(variable_shapes(), sep="/")
    shapes, expected_shapes = ({name: x.shape for name, x in tree.items()} for tree in (tensors, expected))
    if any(name.startswith(_REFERENCE) for name in shapes):
        sides = {"means": (NUM_CLASSES, novelty.NUM_FEATURES), "whitening": (novelty.NUM_FEATURES,) * 2}
        expected_shapes |= {f"{_REFERENCE}/{name}": shape for name, shape in sides.items()}
    if shapes != expected_shapes:
        wrong = sorted(set(shapes.items()) ^ set(expected_shapes.items()))
        raise UserError(f"{path} does not hold this network ({wrong[0]})")
    if any(x.dtype != np.float32 for x in tensors.values()):
        raise UserError(f"{path} does not hold this network (its numbers are not float32)")
    card = check(card, path)
    variables = traverse_util.unflatten_dict(tensors, sep="/")
    reference: Any = variables.pop(_REFERENCE, None)
    return variables, card, reference and novelty.Reference(**reference)


def load_run(directory: Path) -> tuple[dict[str, Any], dict[str, Any], novelty.Reference | None]:
    """Variables, card and reference of a run's best checkpoint.

    `directory` is a run directory or its `best` directory. Of a run of several seeds it is the network with the highest
    validation accuracy (then the lowest validation loss).

    Raises:
        UserError: there is no checkpoint, or it does not fit the network.
    """
    candidates = [best for best in (directory / "best", *directory.glob("seed-*/best")) if best.is_dir()]
    if not candidates and directory.name != "best":
        raise UserError(f"{directory} holds no checkpoint ({directory / 'best'} does not exist)")
    found = [(*_load_checkpoint(best), best) for best in candidates or [directory]]
    variables, card, best = max(found, key=lambda loaded: (loaded[1]["val_accuracy"], -loaded[1]["val_loss"]))
    return _calibrated(variables, card, best.parent / NETWORK)


def _load_checkpoint(best: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from mnist_flax.training.checkpoint import Checkpoints  # with Orbax, which takes a second to import

    checkpoints = Checkpoints(best, read_only=True)
    try:
        restored = checkpoints.restore(like=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variable_shapes()))
    finally:
        checkpoints.close()
    if restored is None:
        raise UserError(f"{best} holds no finished checkpoint")
    return restored[0], check(restored[1], best, required=("val_accuracy", "val_loss"))


def _calibrated(
    variables: dict[str, Any], card: dict[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Any], novelty.Reference | None]:
    """A checkpoint with the temperature and reference in `path`, if they were fitted for these very variables."""
    if not path.exists():
        return variables, card, None
    try:
        fitted, fitted_card, reference = load(path)
    except UserError as error:
        warnings.warn(f"{error}; the network is used without its temperature and reference", stacklevel=2)
        return variables, card, None
    if not jax.tree.all(jax.tree.map(np.array_equal, fitted, variables)):
        return variables, card, None
    return variables, {**fitted_card, **card}, reference
