"""Trained weights as the start of another run."""

from typing import Any

from mnist_flax.inference import classifier
from mnist_flax.model import NUM_CLASSES

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
