"""A trained network on disk: a safetensors file with its card in the header, or a checkpoint of a run."""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from mnist_flax.errors import UserError
from mnist_flax.files import write_bytes
from mnist_flax.inference import torch_files
from mnist_flax.inference.card import MAXIMA, Card, check
from mnist_flax.inference.ood import NUM_FEATURES, MahalanobisStatistics
from mnist_flax.model import NUM_CLASSES, variable_shapes
from mnist_flax.training.contents import NETWORK, seed_directories

_CARD = "card"  # the header's one entry, as JSON
_REFERENCE = "reference"
_FIGURES = ("epoch", "val_accuracy", "val_loss")  # that a run has of an epoch


class Trained(NamedTuple):
    """A trained network as a file holds it.

    Attributes:
        variables: `{"params", "batch_stats"}`.
        card: what is known about it.
        reference: the statistics of its out-of-distribution score, if any.
    """

    variables: dict[str, Any]
    card: Card
    reference: MahalanobisStatistics | None = None


def save(path: Path, variables: dict[str, Any], card: Card, reference: MahalanobisStatistics | None = None) -> None:
    """Write a network's variables, its card, and the statistics of its out-of-distribution score, if any.

    Tensors are named like "params/block1/conv/kernel" and "reference/means".
    """
    from safetensors.numpy import save as to_bytes

    # safetensors writes an array's memory as it lies, whatever its strides.
    tree = {**variables, **({_REFERENCE: reference._asdict()} if reference else {})}
    contiguous = jax.tree.map(np.ascontiguousarray, jax.device_get(tree))
    tensors: Any = traverse_util.flatten_dict(contiguous, sep="/")
    write_bytes(path, to_bytes(tensors, metadata={_CARD: json.dumps(card)}))


def load(path: Path) -> Trained:
    """Read a file that `save` wrote.

    Raises:
        UserError: it is not such a file, or not this network's.
    """
    from safetensors import SafetensorError, safe_open

    try:
        torch_files.refuse_pytorch(path)
        with safe_open(path, framework="numpy") as file:
            if any(name.endswith("final_conv.weight") for name in file.keys()):  # noqa: SIM118 - it is not a dictionary
                raise UserError(torch_files.needs_import(path))
            tensors: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            card = json.loads((file.metadata() or {}).get(_CARD, "null"))
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a safetensors file ({error})") from error
    expected: Any = traverse_util.flatten_dict(variable_shapes(), sep="/")
    shapes, expected_shapes = ({name: x.shape for name, x in tree.items()} for tree in (tensors, expected))
    if any(name.startswith(_REFERENCE) for name in shapes):
        names = card.get("class_names") if isinstance(card, dict) else None
        num_classes = len(names) if isinstance(names, list) else NUM_CLASSES
        sides = {"means": (num_classes, NUM_FEATURES), "whitening": (NUM_FEATURES,) * 2}
        expected_shapes |= {f"{_REFERENCE}/{name}": shape for name, shape in sides.items()}
    if shapes != expected_shapes:
        wrong = sorted(set(shapes.items()) ^ set(expected_shapes.items()))
        raise UserError(f"{path} does not hold this network ({wrong[0]})")
    if any(x.dtype != np.float32 for x in tensors.values()):
        raise UserError(f"{path} does not hold this network (its numbers are not float32)")
    card = check(card, path)
    variables = traverse_util.unflatten_dict(tensors, sep="/")
    reference: Any = variables.pop(_REFERENCE, None)
    return Trained(variables, card, reference and MahalanobisStatistics(**reference))


def load_run(directory: Path) -> Trained:
    """Read a network that a run trained, from its checkpoints.

    `directory` is one of these:

    - a run directory, or a `seed-N` in it: the best network. Of several seeds it is the one with the highest validation
      accuracy (then the lowest validation loss);
    - `best`, or a checkpoint in it such as `best/42`: the newest one there, or that very one;
    - `last`, or a checkpoint in it: the run's best network as the run left it, with what it learned after its best
      epoch. Its card has no temperature, and no accuracy if that is from within an epoch.

    Raises:
        UserError: there is no checkpoint, it is damaged, or it does not fit the network.
    """
    bests = [run / "best" for run in (directory, *seed_directories(directory)) if (run / "best").is_dir()]
    try:
        found = [(*_load_checkpoint(best), best) for best in bests or [directory]]
    except UserError as error:
        raise UserError(f"{error}{'; or name the directory of another seed' if len(bests) > 1 else ''}") from error
    variables, card, best = max(
        found, key=lambda loaded: (loaded[1].get("val_accuracy", 0), -loaded[1].get("val_loss", 0))
    )
    above = list(best.absolute().parents)[:2]  # of `best` the run directory is the first, of `best/42` the second
    return _calibrated(variables, card, next((run / NETWORK for run in above if (run / NETWORK).exists()), None))


def _load_checkpoint(directory: Path) -> tuple[dict[str, Any], Card]:
    """Variables and card of a checkpoint, or of the newest in a directory of checkpoints."""
    from mnist_flax.training.checkpoint import (  # with Orbax, which takes a second to import
        find,
        read,
        read_metadata,
    )

    checkpoint = find(directory)
    metadata = read_metadata(checkpoint)
    if isinstance(metadata, dict) and "histories" in metadata:
        return _load_training_state(checkpoint, metadata["histories"])
    variables, card = read(checkpoint, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), variable_shapes()))
    return variables, check(card, checkpoint, required=("val_accuracy", "val_loss"))


def _load_training_state(checkpoint: Path, histories: Any) -> tuple[dict[str, Any], Card]:
    """Variables and card of a checkpoint in `last`: the card of the run's best network, with its own figures."""
    from mnist_flax.training.checkpoint import read_arrays

    try:
        _, best, _ = load_run(checkpoint.absolute().parents[1])
    except UserError as error:
        raise UserError(f"{checkpoint} can be read only beside the run's best checkpoint: {error}") from error
    shapes = variable_shapes()
    state = read_arrays(checkpoint, {"state": {**shapes, "step": 0}})["state"]
    try:
        replica = best["seed"] - best["config"]["seed"]
        step, variables = jax.tree.map(lambda x: x[replica], (state.pop("step"), state))
        figures = {row["step"]: {name: row[name] for name in _FIGURES} for row in histories[replica]}.get(step, {})
    except (LookupError, TypeError) as error:
        raise UserError(f"{checkpoint} and the run's best checkpoint do not belong together") from error
    ours, expected = (jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (variables, shapes))
    if ours != expected:
        raise UserError(f"{checkpoint} does not hold this network")
    card = {name: value for name, value in best.items() if name not in {*_FIGURES, "temperature", MAXIMA}}
    return variables, check({**card, "step": int(step), **figures}, checkpoint)


def _calibrated(variables: dict[str, Any], card: Card, path: Path | None) -> Trained:
    """A checkpoint with the temperature and statistics in `path`, if they were fitted for these very variables."""
    if path is None:
        return Trained(variables, card)
    try:
        fitted, fitted_card, reference = load(path)
    except UserError as error:
        warnings.warn(
            f"{error}; the network is used without its temperature and reference; to have them anew, delete that file "
            "and run the command again that trained it",
            stacklevel=2,
        )
        return Trained(variables, card)
    if not jax.tree.all(jax.tree.map(np.array_equal, fitted, variables)):
        return Trained(variables, card)
    return Trained(variables, {**fitted_card, **card}, reference)
