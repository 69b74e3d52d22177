"""What to answer about an image file: the digits it shows, or why it shows none."""

import contextlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mnist_flax.errors import UserError
from mnist_flax.inference.classifier import Classifier
from mnist_flax.reading.candidates import CLEAR
from mnist_flax.reading.image import SUFFIXES, Picture, decode
from mnist_flax.reading.reader import Page, read

MAX_BYTES = 100_000_000
MIN_HEIGHT = 12  # pixels of the file; strokes of smaller digits run into each other
DARK = 0.15  # mean brightness, of white, of a picture that was taken with too little light
REPORT = "; please report this picture"


class Answer(NamedTuple):
    """The answer about one image file, and what it was made from.

    Attributes:
        result: for people and programs; its keys are those of `answer`.
        data: the file; empty if it could not be read.
        picture: the file decoded, None if it could not be.
        page: what was found in the picture, None if the file could not be read.
    """

    result: dict[str, Any]
    data: bytes = b""
    picture: Picture | None = None
    page: Page | None = None


def answer(network: Classifier, path: Path | None) -> Answer:
    """Answer about one file; `path` None is standard input.

    Keys of the result: `path`, those of `describe`, and `error`. If the file cannot be read, the verdict is
    "unreadable" and `error` says why. No file raises an exception.
    """
    nothing = {"digit": None, "probability": None, "probabilities": None, "verdict": "unreadable", "digits": []}
    result: dict[str, Any] = {"path": "-" if path is None else str(path), **nothing, "error": None}
    try:
        data = _contents(path)
        picture = decode(data)
        page = read(network, picture)
        return Answer(result | describe(network, page), data, picture, page)
    except UserError as error:
        return Answer({**result, "error": str(error)})
    except Exception as error:  # noqa: BLE001 - a mistake in reading one picture must not cost the others their answer
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Answer({**result, "error": f"it could not be read ({reason}){REPORT}"})


def is_unforeseen(result: dict[str, Any]) -> bool:
    """Whether a file has no answer because of a mistake in this program."""
    return result["error"] is not None and result["error"].endswith(REPORT)


def _contents(path: Path | None) -> bytes:
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


def describe(network: Classifier, page: Page) -> dict[str, Any]:
    """What was found in a picture, as a JSON object.

    Keys: `digit`, the class name if there is exactly one digit; its `probability`; `probabilities` by class, of the
    best guess if none is named, None if there are several digits or no ink; `verdict`, as `Page` has it; `digits`, in
    reading order, each with `digit`, `probability`, `box` (left, top, right, bottom in the file's pixels) and `line`.
    """
    names = network.class_names
    digits = [
        {
            "digit": names[digit.label],
            "probability": float(digit.probabilities[digit.label]),
            "box": list(digit.box),
            "line": digit.line,
        }
        for digit in page.digits
    ]
    shown = page.digits[0] if page.digits else page.best
    probabilities = None if shown is None or len(digits) > 1 else shown.probabilities
    return {
        "digit": digits[0]["digit"] if len(digits) == 1 else None,
        "probability": None if probabilities is None else float(probabilities.max()),
        "probabilities": None if probabilities is None else by_class(network, probabilities),
        "verdict": page.verdict,
        "digits": digits,
    }


def by_class(network: Classifier, probabilities: Float[np.ndarray, " classes"]) -> dict[str, float]:
    """Probabilities by the names of their classes."""
    return dict(zip(network.class_names, map(float, probabilities), strict=True))


def inputs(page: Page) -> list[UInt8[np.ndarray, "28 28"]]:
    """The network's input for each digit, or for the best guess if none is named."""
    if page.digits or page.best is None:
        return [digit.pixels for digit in page.digits]
    return [page.best.pixels]


def hint(page: Page, picture: Picture) -> str:
    """Why no digit is named and what would help; empty if one is named or the reason is not known."""
    if page.digits:
        return ""
    if page.best is None and page.verdict != "no ink":
        return "it has very many parts, as text or a texture has; crop the picture to the digits"
    if page.best is None:
        if float(picture.rgb.mean()) < DARK:
            return "the picture is almost black; more light would help"
        return "nothing is clearly darker or lighter than the paper; more light or a darker pen would help"
    box = page.best.group.box
    pixels = round(max(box.height, box.width) * picture.scale)
    if pixels < MIN_HEIGHT:
        return f"it is only {pixels} pixels high; a larger picture would help"
    if page.verdict == "unclear":
        return ""
    if box.touches_border(picture.alpha.shape):
        return "what stands out reaches the picture's edge; crop to the paper, and leave some around the digits"
    return "crop the picture to the digits"


def judge(
    network: Classifier, images: UInt8[np.ndarray, "n 28 28"]
) -> tuple[Float[np.ndarray, "n classes"], list[str]]:
    """Probabilities of drawings in MNIST's geometry, and for each a verdict: "digit", "unclear" or "not like a digit".

    "not like a digit": the out-of-distribution score is above 1 (never, if the network has no reference for it).
    "unclear": no class has a probability of at least `CLEAR`.
    """
    # Averaged over small shifts, because predictions for something that is not a digit change with the shift.
    probabilities, novelty = network.predict(images, shifts=1)[1], network.novelty(images)
    verdicts = np.where(probabilities.max(-1) < CLEAR, "unclear", "digit")
    if novelty is not None:
        verdicts = np.where(novelty > 1, "not like a digit", verdicts)
    return probabilities, verdicts.tolist()
