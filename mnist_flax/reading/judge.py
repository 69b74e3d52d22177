"""What to answer about an image file: the digit it shows, or why it shows none."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from mnist_flax.errors import UserError
from mnist_flax.inference.classifier import Classifier
from mnist_flax.reading import image
from mnist_flax.reading.image import SUFFIXES, Drawing

CLEAR = 0.6  # with a lower probability the network is guessing
MAX_BYTES = 100_000_000


def _read(path: Path | None) -> bytes:
    if path is not None and path.is_dir():
        raise UserError(f"no images are to be found in this folder ({', '.join(sorted(SUFFIXES))})")
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path is None else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise UserError(f"it is larger than {MAX_BYTES // 10**6} MB")
    return data


def answer(network: Classifier, path: Path | None) -> tuple[dict[str, Any], UInt8[np.ndarray, "28 28"] | None]:
    """The answer about one file (None: standard input), and the network's input if there is one.

    Keys: `path`, those of `judge_drawing`, and `error`. If the file cannot be read, the verdict is "unreadable" and
    `error` says why.
    """
    result: dict[str, Any] = {"path": "-" if path is None else str(path), "digit": None, "probability": None}
    result |= {"probabilities": None, "verdict": "unreadable", "error": None}
    try:
        drawing = image.draw(image.decode(_read(path)))
    except UserError as error:
        return {**result, "error": str(error)}, None
    return result | judge_drawing(network, drawing), drawing.pixels


def judge_drawing(network: Classifier, drawing: Drawing) -> dict[str, Any]:
    """The answer about an image in which `image.draw` found `drawing`.

    Keys: `digit`, a class name or None; its `probability`; `probabilities` by class; `verdict`, from `image.draw` or
    `judge`: "digit", or why it is none.
    """
    if drawing.pixels is None:
        return {"digit": None, "probability": None, "probabilities": None, "verdict": drawing.verdict}
    [probabilities], [verdict] = judge(network, drawing.pixels[None])
    best = int(probabilities.argmax())
    return {
        "digit": network.class_names[best] if verdict == "digit" else None,
        "probability": float(probabilities[best]),
        "probabilities": dict(zip(network.class_names, map(float, probabilities), strict=True)),
        "verdict": verdict,
    }


def judge(
    network: Classifier, images: UInt8[np.ndarray, "n 28 28"]
) -> tuple[Float[np.ndarray, "n classes"], list[str]]:
    """Probabilities of images, and for each a verdict: "digit", "unclear" or "not like a digit".

    "not like a digit": the out-of-distribution score is above 1 (never, if the network has no reference for it).
    "unclear": no class has a probability of at least `CLEAR`.
    """
    # Averaged over small shifts, because predictions for something that is not a digit change with the shift.
    probabilities, novelty = network.predict(images, shifts=1)[1], network.novelty(images)
    verdicts = np.where(probabilities.max(-1) < CLEAR, "unclear", "digit")
    if novelty is not None:
        verdicts = np.where(novelty > 1, "not like a digit", verdicts)
    return probabilities, verdicts.tolist()
