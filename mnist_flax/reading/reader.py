"""Reads the digits of a picture."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from mnist_flax.inference.classifier import Classifier
from mnist_flax.reading.candidates import CLEAR, ScoredCandidate
from mnist_flax.reading.drawing import draw
from mnist_flax.reading.image import Picture, of_grey
from mnist_flax.reading.ink import tones
from mnist_flax.reading.parts import Box, Parts
from mnist_flax.reading.proposals import best_reading


class Digit(NamedTuple):
    """A digit found in a picture.

    Attributes:
        label: its class.
        probabilities: of all classes.
        box: left, top, right and bottom in pixels of the file; right and bottom are outside.
        line: the number of its line of text, from 0.
        pixels: the network's input.
        novelty: its out-of-distribution score; 0 if the network has no reference for it.
    """

    label: int
    probabilities: Float[np.ndarray, " classes"]
    box: tuple[int, int, int, int]
    line: int
    pixels: UInt8[np.ndarray, "28 28"]
    novelty: float


class Page(NamedTuple):
    """What a picture shows.

    Attributes:
        digits: in reading order, line by line.
        verdict: "digit", "several digits", or why there is none: "no ink", "unclear" or "not like a digit".
        best: the drawing that looks most like a digit, with what the network says of it; None if there is no ink, or so
            much that nothing was drawn: a page of text, a texture.
    """

    digits: list[Digit]
    verdict: str
    best: ScoredCandidate | None


def read(network: Classifier, picture: Picture) -> Page:
    """Read the digits of a picture."""
    reading, has_ink = best_reading(network, picture)
    if reading is None:
        return Page([], "not like a digit" if has_ink else "no ink", None)
    best = max(reading.digits, key=lambda digit: digit.quality)
    named = [digit for digit in reading.digits if digit.is_named]
    if not named or reading.score < 0:
        is_digit = best.novelty <= 1 and best.probabilities.max() < CLEAR
        return Page([], "unclear" if is_digit else "not like a digit", best)
    digits = [
        Digit(int(d.probabilities.argmax()), d.probabilities, _in_file(d.group.box, picture), line, d.pixels, d.novelty)
        for d, line in in_reading_order(named)
    ]
    return Page(digits, "digit" if len(digits) == 1 else "several digits", best)


def _in_file(box: Box, picture: Picture) -> tuple[int, int, int, int]:
    edges = (box.left, box.top, box.right, box.bottom)
    left, top, right, bottom = (round(edge * picture.scale) for edge in edges)
    return left, top, right, bottom


def in_reading_order(digits: list[ScoredCandidate]) -> list[tuple[ScoredCandidate, int]]:
    """Digits line by line, from left to right, each with the number of its line."""
    lines: list[list[ScoredCandidate]] = []
    for digit in digits:
        joined = [line for line in lines if any(_beside(digit.group.box, other.group.box) for other in line)]
        lines = [line for line in lines if not any(line is other for other in joined)]
        lines.append([digit, *itertools.chain.from_iterable(joined)])
    lines.sort(key=lambda line: float(np.mean([(d.group.box.top + d.group.box.bottom) / 2 for d in line])))
    return [(d, i) for i, line in enumerate(lines) for d in sorted(line, key=lambda digit: digit.group.box.left)]


def _beside(a: Box, b: Box) -> bool:
    """Whether two digits stand in one line: they overlap in height, and not across; an exponent may be higher."""
    down = min(a.bottom, b.bottom) - max(a.top, b.top)
    across = min(a.right, b.right) - max(a.left, b.left)
    if across > 0.5 * min(a.width, b.width):
        return False
    small, large = sorted((a.height, b.height))
    return down > 0.35 * small or (small < 0.7 * large and down > -0.2 * large and across > -0.6 * large)


def redraw(images: UInt8[np.ndarray, "n 28 28"]) -> UInt8[np.ndarray, "n 28 28"]:
    """A data set's images as the reader draws them: ink by the likeliest tone, all of it as one digit."""
    return np.stack([_redrawn(image) for image in images])


def _redrawn(image: UInt8[np.ndarray, "28 28"]) -> UInt8[np.ndarray, "28 28"]:
    tone = next(tones(of_grey(image / np.float32(255))), None)
    parts = None if tone is None else Parts(tone.ink)
    return draw(parts.group(list(parts.boxes)).ink) if parts and parts.boxes else image
