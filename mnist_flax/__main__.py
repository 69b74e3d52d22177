"""`mnist-flax COMMAND`, or `python -m mnist_flax COMMAND`: runs a command; without one, lists them."""

import importlib
from collections.abc import Sequence
from typing import Any

from mnist_flax.cli import VersionAction, command
from mnist_flax.errors import UserError

COMMANDS = {
    "train": "train a network, or several seeds at once, or resume a run",
    "evaluate": "measure a trained network: accuracy, loss, calibration, precision and recall",
    "predict": "read the digits in image files",
    "demo": "serve a page to draw digits on, which shows what the network sees",
    "report": "write a report of runs: curves, mistakes, calibration, filters, activations",
    "export": "write a network as safetensors, PyTorch state dict, StableHLO, ONNX, C or HTML",
    "import-weights": "convert weights of the PyTorch original",
    "summary": "print the network's layers",
}


def module_of(name: str) -> Any:
    """The module of a command, which has `parse` and `main`.

    Raises:
        UserError: there is no such command.
    """
    if name.replace("_", "-") not in COMMANDS:
        raise UserError(f"there is no command {name!r}; choose from {', '.join(COMMANDS)}")
    return importlib.import_module(f"mnist_flax.{name.replace('-', '_')}")


def overview() -> str:
    """Which commands there are."""
    rows = [f"  mnist-flax {name:<16}{purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            "A 12,534-parameter MNIST classifier in JAX. Commands (each has --help):\n",
            *rows,
            "\n`python -m mnist_flax.train` is the same as `mnist-flax train`, and so on. --version prints versions.",
        ]
    )


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        VersionAction(["--version"], "version")()
    else:
        module_of(name).main(rest)


if __name__ == "__main__":
    main()
