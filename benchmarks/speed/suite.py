"""What is measured, and against what. Imports nothing heavy."""

import importlib.util
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple


class Work(NamedTuple):
    """Something to time: `run()` starts `amount` units of it, `wait(what it returned)` returns when all are done."""

    run: Callable[[], Any]
    amount: float = 1.0
    wait: Callable[[Any], Any] = lambda result: None


class Benchmark(NamedTuple):
    """Implementations of the same thing, ours first.

    Attributes:
        unit: of the table's figures.
        scale: units in a second per unit of `Work`; None where the figures are rates (the larger the better).
        peers: name: "module.function", which returns the `Work` to time by row of the table; it is passed the name.
    """

    title: str
    unit: str
    scale: float | None
    peers: dict[str, str]


# By our CPU kernels, or by XLA's operations alone; the first is the second where there are none.
OURS = ("ours", "ours-xla")

SUITE = {
    "step": Benchmark(
        "one optimizer step of 128 images",
        "ms",
        1e3,
        {**dict.fromkeys(OURS, "ours.step"), "flax-plain": "plain_flax.step"}
        | dict.fromkeys(("torch", "torch-channels-last", "torch-compiled"), "torch_peers.step"),
    ),
    "epoch": Benchmark(
        "an epoch of 60,000 augmented images, batch 124 (scaled up from some of its steps)",
        "s",
        1.0,
        {**dict.fromkeys(OURS, "ours.epoch"), "torch-pil": "torch_peers.epoch"},
    ),
    "augment": Benchmark(
        "augmentation of 124 images",
        "µs/image",
        1e6,
        {"ours": "ours.augmentation", "map-coordinates": "plain_flax.augmentation", "pillow": "pil.augmentation"},
    ),
    "evaluate": Benchmark(
        "evaluation of 10,000 images",
        "ms",
        1e3,
        {
            **dict.fromkeys(OURS, "ours.evaluation"),
            "flax-plain": "plain_flax.evaluation",
            "torch-channels-last": "torch_peers.evaluation",
        },
    ),
    "startup": Benchmark(
        "a command, until its first step is compiled or to its end", "s", 1.0, {"ours": "commands.startup"}
    ),
    "layers": Benchmark(
        "convolutions of 64 images on one core (or accelerator) beside a matrix product and a whole training step",
        "GFLOP/s",
        None,
        dict.fromkeys(OURS, "ours.layers"),
    ),
    "scaling": Benchmark("training steps, augmentation included", "images/s", None, {"ours": "ours.scaling"}),
}


def why_skipped(peer: str) -> str | None:
    """What this peer lacks here, if anything."""
    needed = ["torch"] * peer.startswith("torch") + ["g++"] * (peer == "torch-compiled")
    missing = [name for name in needed if not (importlib.util.find_spec(name) or shutil.which(name))]
    return f"{missing[0]} is not installed" if missing else None
