"""The demo's page: its files, and what it shows of a network and of an image."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mnist_flax.inference.classifier import Classifier
from mnist_flax.model import BLOCKS
from mnist_flax.reading import answers, image
from mnist_flax.reading.reader import read

PAGE = Path(__file__).with_name("demo")
FILES = {path.relative_to(PAGE).as_posix(): path for path in sorted(PAGE.rglob("*.*"))}
MAX_PIXELS = 25_000_000  # of one picture


def look(network: Classifier, data: bytes, shown: int = 0) -> dict[str, Any]:
    """All that the page shows of one image file: the answer, the network's input and the outputs of its blocks.

    Keys: those of `answers.describe`, but boxes are shares of the picture's width and height; `hint`, what would help
    if no digit is named; `pixels`, 28×28 bytes, `maps`, a list of blocks, and `novelty`, the out-of-distribution score:
    None if there is no ink, the score also if the network has no reference for it. If there are several digits, these
    and `probabilities` are of one.

    Args:
        network: what is asked.
        data: the file.
        shown: which one that is; the first, if there are not so many.

    Raises:
        UserError: the file is no image, damaged or too large.
    """
    picture = image.decode(data, MAX_PIXELS)
    page = read(network, picture)
    seen = {**answers.describe(network, page), "hint": answers.hint(page, picture)}
    seen |= {"pixels": None, "maps": None, "novelty": None}
    height, width = (picture.scale * side for side in picture.alpha.shape)
    for digit in seen["digits"]:
        digit["box"] = [min(1.0, edge / side) for edge, side in zip(digit["box"], 2 * (width, height), strict=True)]
    chosen = shown if shown < len(page.digits) else 0
    if page.digits:
        seen["probabilities"] = answers.by_class(network, page.digits[chosen].probabilities)
    if page.best is not None:
        pixels = answers.inputs(page)[chosen]
        outputs = network.activations(pixels[None])
        seen["pixels"] = _base64(pixels)
        if network.reference is not None:
            seen["novelty"] = (page.digits[chosen] if page.digits else page.best).novelty
        seen["maps"] = [{"name": name, **quantised(outputs[name][0])} for name in BLOCKS]
    return seen


def quantised(values: Float[np.ndarray, "h w c"]) -> dict[str, Any]:
    """Outputs of a ReLU as bytes, channel after channel; 255 is the largest value of all channels."""
    height, width, channels = values.shape
    scaled = np.rint(values * (255 / max(float(values.max()), 1e-6))).astype(np.uint8)
    return {"height": height, "width": width, "channels": channels, "values": _base64(scaled.transpose(2, 0, 1))}


def _base64(array: UInt8[np.ndarray, "..."]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def describe(network: Classifier) -> str:
    """How good a network is, as far as its card says."""
    if "val_accuracy" not in network.card:
        return "its accuracy was never measured"
    card = network.card
    return f"{card.get('selection_split', 'validation')} accuracy {card['val_accuracy']:.2%} on {card['dataset']}"


def model(network: Classifier, name: str) -> dict[str, Any]:
    """What the page needs to know of the network, which it calls `name`. Looks at the examples, if it knows digits."""
    # Each example is named by its label and its place in MNIST's test set.
    digits = {file: path.stem.partition("-")[0] for file, path in FILES.items() if file.startswith("examples/")}
    if not set(digits.values()) <= set(network.class_names):
        digits = {}
    right = {file: look(network, FILES[file].read_bytes())["digit"] == label for file, label in digits.items()}
    examples = [{"file": file, "label": label, "hard": not right[file]} for file, label in digits.items()]
    outputs = network.activations(np.zeros((1, 28, 28), np.uint8))
    shapes = ((block, outputs[block].shape[1:]) for block in BLOCKS)
    return {
        "name": name,
        "accuracy": describe(network),
        "class_names": network.class_names,
        "blocks": [{"name": block, "height": h, "width": w, "channels": c} for block, (h, w, c) in shapes],
        "examples": sorted(examples, key=lambda example: example["hard"]),
    }
