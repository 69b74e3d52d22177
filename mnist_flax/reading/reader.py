"""Reads the digits of a picture: several readings are proposed, drawn as MNIST would, and judged by the network."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from mnist_flax.inference.classifier import Classifier
from mnist_flax.reading.drawing import draw
from mnist_flax.reading.image import Picture
from mnist_flax.reading.ink import Tone, tones, without_lines
from mnist_flax.reading.parts import MAX_PARTS, Box, Group, Parts, cuts, partitions

CLEAR = 0.6  # with a lower probability the network is guessing
EXPLAINED = 0.5  # digits are named if they are at least this share of a reading's ink,
SCORE = 1.1  # and the reading scores at least this,
SCORE_OF_ONES = 1.2  # or this if all are as thin as edges and scratches are
THICK = 4.5  # half the width of a stroke that no pen has, in MNIST's pixels
BATCHES = (8, 32, 128)  # numbers of drawings for which programs are compiled


class Judged(NamedTuple):
    """A group of parts, drawn and judged.

    Attributes:
        novelty: the out-of-distribution score; 0 if the network has no reference for it.
        quality: in 0..1, how much it looks like a digit.
    """

    group: Group
    pixels: UInt8[np.ndarray, "28 28"]
    probabilities: Float[np.ndarray, " classes"]
    novelty: float
    quality: float


class Reading(NamedTuple):
    """One way to read a picture.

    Attributes:
        score: how good a reading it is.
        explained: the share of its ink that lies in digits.
    """

    name: str
    digits: list[Judged]
    score: float
    explained: float


class Judge:
    """Asks the network about drawings, and remembers its answers."""

    def __init__(self, network: Classifier) -> None:
        self.network = network
        self.known: dict[bytes, tuple[Any, float]] = {}

    def __call__(self, groups: Sequence[Group]) -> list[Judged]:
        """Draw groups of parts and let the network judge them."""
        drawings = [draw(group.ink) for group in groups]
        new = {pixels.tobytes(): pixels for pixels in drawings if pixels.tobytes() not in self.known}
        for chunk in _chunks(list(new.values()), BATCHES[-1]):
            self._learn(chunk)
        found = [self.known[pixels.tobytes()] for pixels in drawings]
        return [
            Judged(group, pixels, p, novelty, 0.0 if _is_blob(pixels) else _quality(float(p.max()), novelty))
            for group, pixels, (p, novelty) in zip(groups, drawings, found, strict=True)
        ]

    def _learn(self, drawings: list[UInt8[np.ndarray, "28 28"]]) -> None:
        images = np.stack(drawings)
        size = next(size for size in BATCHES if size >= len(images))
        padded = np.pad(images, ((0, size - len(images)), (0, 0), (0, 0)))
        probabilities, novelty = self.network.predict(padded)[1], self.network.novelty(padded)
        scores = np.zeros(size) if novelty is None else novelty
        for pixels, chances, score in zip(drawings, probabilities, scores, strict=False):
            self.known[pixels.tobytes()] = chances, float(score)


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _is_blob(pixels: UInt8[np.ndarray, "28 28"]) -> bool:
    """Whether a drawing is thicker somewhere than a pen can be."""
    depth: Any = ndimage.distance_transform_edt(pixels > 127)
    return float(depth.max()) > THICK


def _quality(probability: float, novelty: float) -> float:
    return float(np.clip((1.3 - novelty) / 0.5, 0, 1) * np.clip((probability - 0.4) / 0.5, 0, 1))


class Digit(NamedTuple):
    """A digit found in a picture.

    Attributes:
        label: its class.
        probabilities: of all classes.
        box: left, top, right and bottom in pixels of the file; right and bottom are outside.
        line: the number of its line of text, from 0.
        pixels: the network's input.
    """

    label: int
    probabilities: Float[np.ndarray, " classes"]
    box: tuple[int, int, int, int]
    line: int
    pixels: UInt8[np.ndarray, "28 28"]


class Page(NamedTuple):
    """What a picture shows.

    Attributes:
        digits: in reading order, line by line.
        verdict: "digit", "several digits", or why there is none: "no ink", "unclear" or "not like a digit".
        best: the drawing that looks most like a digit, with what the network says of it; None if there is no ink.
    """

    digits: list[Digit]
    verdict: str
    best: Judged | None


def read(network: Classifier, picture: Picture) -> Page:
    """Read the digits of a picture."""
    reading = best_reading(network, picture)
    if reading is None:
        return Page([], "no ink", None)
    best = max(reading.digits, key=lambda digit: digit.quality)
    named = [d for d in reading.digits if d.novelty <= 1 and d.probabilities.max() >= CLEAR]
    named = [digit for digit in named if digit.quality > 0]
    least = SCORE if any(not _is_thin(digit.group.box) for digit in named) else SCORE_OF_ONES
    if not named or reading.explained < EXPLAINED or reading.score < least:
        is_digit = best.novelty <= 1 and best.probabilities.max() < CLEAR
        return Page([], "unclear" if is_digit else "not like a digit", best)
    digits = [
        Digit(int(d.probabilities.argmax()), d.probabilities, _in_file(d.group.box, picture), line, d.pixels)
        for d, line in in_reading_order(named)
    ]
    return Page(digits, "digit" if len(digits) == 1 else "several digits", best)


def _in_file(box: Box, picture: Picture) -> tuple[int, int, int, int]:
    edges = (box.left, box.top, box.right, box.bottom)
    left, top, right, bottom = (round(edge * picture.scale) for edge in edges)
    return left, top, right, bottom


def best_reading(network: Classifier, picture: Picture) -> Reading | None:
    """The reading with the highest score, None if there is no ink; stops at one that is certain."""
    judge, best = Judge(network), None
    for tone in _tones(picture):
        for reading in _readings(tone, judge):
            if reading.digits and (best is None or reading.score > best.score):
                best = reading
        if best is not None and _is_certain(best):
            break
    return best


def _is_certain(reading: Reading) -> bool:
    return (
        reading.explained > 0.97
        and reading.score > 1.4
        and all(j.novelty < 0.75 and j.probabilities.max() > 0.97 for j in reading.digits)
        and "border" not in reading.name.split(",")[1:]
    )


def _tones(picture: Picture) -> Iterator[Tone]:
    """Readings of the picture's tones, each also without lines if there are any."""
    for tone in tones(picture):
        yield tone
        cleaned = without_lines(tone.ink)
        if cleaned is not None:
            yield tone._replace(name=f"{tone.name}, without lines", ink=cleaned)


def _readings(tone: Tone, judge: Judge) -> Iterator[Reading]:
    parts = Parts(tone.ink)
    if not parts.boxes or len(parts.boxes) > MAX_PARTS:
        return
    name, every, inner = tone.name, list(parts.boxes), parts.without_border()
    whole = _best_partition(name, tone, parts, every, judge)
    yield whole
    if inner and len(inner) < len(every):
        yield _best_partition(f"{name}, inner", tone, parts, inner, judge)
    if len(every) > 1 and whole.explained < 0.8:
        if len(every) <= 6:
            yield _reading(f"{name}, as one", tone, parts, judge([parts.group(every)]))
        largest = max(every, key=lambda part: parts.areas[part])
        yield _reading(f"{name}, largest", tone, parts, judge([parts.group([largest])]))


def _best_partition(name: str, tone: Tone, parts: Parts, chosen: list[int], judge: Judge) -> Reading:
    """The reading in which each cluster of parts is divided into digits in the best way."""
    ways = [partitions(cluster) for cluster in parts.clusters(chosen)]
    groups = {group: parts.group(group) for cluster in ways for way in cluster for group in way}
    judged = dict(zip(groups, judge(list(groups.values())), strict=True))
    digits: list[Judged] = []
    for cluster in ways:
        best = max(cluster, key=lambda way: _value([judged[group] for group in way]))
        digits += [judged[group] for group in best]
    digits = [half for digit in digits for half in _cut(digit, judge)]
    return _reading(name, tone, parts, _without_strips(_without_frames(digits), parts.ink.shape))


def _without_frames(digits: list[Judged]) -> list[Judged]:
    """Digits without what is around them: a box, a frame."""
    frames = [
        digit
        for digit in digits
        if digit.quality < 0.5
        and any(other is not digit and _encloses(digit.group.box, other.group.box) for other in digits)
    ]
    return [digit for digit in digits if not any(digit is frame for frame in frames)]


def _without_strips(digits: list[Judged], shape: tuple[int, ...]) -> list[Judged]:
    """Digits without what only looks like one beside them: the picture's edge, a shadow there, a piece of a line."""
    if len(digits) < 2:
        return digits
    inner = [digit for digit in digits if not _touches(digit.group.box, shape)]
    digits = inner or digits
    good = [max(d.group.box.height, d.group.box.width) for d in digits if d.quality > 0.5 and not _is_thin(d.group.box)]
    if not good:
        return digits
    height = float(np.median(good))

    def is_line(box: Box) -> bool:
        longer, thinness = max(box.height, box.width), min(box.height, box.width) / max(box.height, box.width)
        return longer > (1.12 if thinness < 0.12 else 1.3) * height and thinness < 0.3

    return [digit for digit in digits if not is_line(digit.group.box)] or digits


def _encloses(a: Box, b: Box) -> bool:
    return a.top <= b.top and a.left <= b.left and a.bottom >= b.bottom and a.right >= b.right


def _touches(box: Box, shape: tuple[int, ...]) -> bool:
    return box.top <= 1 or box.left <= 1 or box.bottom >= shape[0] - 1 or box.right >= shape[1] - 1


def _is_thin(box: Box) -> bool:
    return min(box.height, box.width) < 0.3 * max(box.height, box.width)


def _value(way: list[Judged]) -> float:
    """How well parts are explained as these digits.

    One good digit is better than several: two halves of a zero look like ones. But a stack of digits looks like a one.
    """
    area = sum(judged.group.area for judged in way)
    explained = sum(judged.group.area * judged.quality for judged in way) / area
    if len(way) == 1 and len(way[0].group.parts) > 1:
        return explained + (-0.1 if _is_thin(way[0].group.box) else 0.1)
    return explained


def _cut(digit: Judged, judge: Judge) -> list[Judged]:
    """A drawing that is no digit as two that touch, if both of these are."""
    if digit.quality > 0.5:
        return [digit]
    pairs = [judge(list(pair)) for pair in cuts(digit.group)]
    best = max(pairs, key=lambda pair: min(half.quality for half in pair), default=None)
    return best if best is not None and min(half.quality for half in best) > 0.6 else [digit]


def _reading(name: str, tone: Tone, parts: Parts, digits: list[Judged]) -> Reading:
    """A reading with its score: how well its ink is explained, how much of all ink that is, how strong the ink is."""
    area = sum(judged.group.area for judged in digits)
    explained = sum(judged.group.area * judged.quality for judged in digits) / max(area, 1.0)
    novelty = sum(judged.group.area * min(judged.novelty, 3.0) for judged in digits) / max(area, 1.0)
    kept = parts.kept * area / max(sum(parts.areas.values()), 1.0)
    # Edges, rules and whatever else is long and thin look like ones: a reading without them is better.
    thin = sum(d.group.area for d in digits if _is_thin(d.group.box)) / max(area, 1.0)
    score = explained + 0.5 * kept - 0.3 * novelty + 0.25 * min(1.0, tone.contrast / 0.5) - 0.2 * thin
    score -= 0.25 * (not tone.usual)
    if thin == 1 and "without lines" in name:
        score -= 0.4  # pieces of lines
    if any(_encloses(a.group.box, b.group.box) for a, b in itertools.permutations(digits[:20], 2)):
        score -= 0.5  # a drawing with things in it, such as a face
    return Reading(name, digits, score, explained)


def in_reading_order(digits: list[Judged]) -> list[tuple[Judged, int]]:
    """Digits line by line, from left to right, each with the number of its line."""
    lines: list[list[Judged]] = []
    for digit in sorted(digits, key=lambda digit: -digit.group.box.height):
        near = [line for line in lines if any(_beside(digit.group.box, other.group.box) for other in line)]
        if near:
            near[0].append(digit)
        else:
            lines.append([digit])
    lines.sort(key=lambda line: float(np.mean([(d.group.box.top + d.group.box.bottom) / 2 for d in line])))
    return [(d, i) for i, line in enumerate(lines) for d in sorted(line, key=lambda digit: digit.group.box.left)]


def _beside(a: Box, b: Box) -> bool:
    """Whether two digits stand in one line: they overlap in height, and not across."""
    down = min(a.bottom, b.bottom) - max(a.top, b.top)
    across = min(a.right, b.right) - max(a.left, b.left)
    return down > 0.35 * min(a.height, b.height) and across < 0.5 * min(a.width, b.width)
