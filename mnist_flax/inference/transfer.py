"""Trained weights as the start of another run, or as its teachers."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_flax.data import Dataset
from mnist_flax.errors import UserError
from mnist_flax.inference import classifier
from mnist_flax.model import NUM_CLASSES
from mnist_flax.training.contents import seed_directories

SHIPPED = "pretrained"


def initial_variables(source: str, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The variables of a trained network, its outputs in the order that a data set's classes need.

    A class that the network knows by the same name keeps its output; the others get those that are left.

    Args:
        source: "pretrained" for the shipped network, or what `classifier.load` takes.
        class_names: of the data set.

    Raises:
        UserError: there is no such network, or it cannot be read.
    """
    network = classifier.load(None if source == SHIPPED else source)
    known, params = network.class_names, network.variables["params"]
    shared = {name: known.index(name) for name in class_names if name in known}
    left = iter(sorted(set(range(NUM_CLASSES)) - set(shared.values())))
    order = [shared[name] if name in shared else next(left) for name in class_names] + [*left]
    outputs = {name: values[..., order] for name, values in params["final_conv"].items()}
    return {**network.variables, "params": {**params, "final_conv": outputs}}


def teachers(source: str, dataset: Dataset) -> dict[str, Any]:
    """The variables of trained networks, with a leading axis of networks.

    Args:
        source: as for `initial_variables`; of a run of several seeds, all of them.
        dataset: what they are to teach. Its normalisation tells whether they were trained on the same images.

    Raises:
        UserError: there is no such network, it cannot be read, or it was trained on other images: it may have learnt
            from those that this run holds out.
    """
    paths = [None] if source == SHIPPED else seed_directories(Path(source)) or [source]
    networks = [classifier.load(path) for path in paths]
    for network in networks:
        if not network.was_trained_on(dataset):
            raise UserError(
                f"--teacher {source} was trained on {network.card['dataset']}, but not on the very images of this run: "
                "name a run with the same --dataset and --val-size"
            )
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(network.variables for network in networks))
