"""The ways to read a picture, each with a score; the best one is taken.

A reading says what is ink (`ink.tones`), which parts of it belong together (`parts`), and what is only beside the
digits: lines, frames, edges. The network scores all candidates for digits, and from that `scoring` computes how good a
reading is.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mnist_flax.inference.classifier import Classifier
from mnist_flax.reading.candidates import CandidateScorer, ScoredCandidate
from mnist_flax.reading.drawing import as_it_is, draw
from mnist_flax.reading.image import Picture
from mnist_flax.reading.ink import LUMINANCE, Tone, tones, without_lines
from mnist_flax.reading.parts import MAX_PARTS, Box, Parts, cuts, partitions
from mnist_flax.reading.scoring import encloses, is_thin, score

SMALL = 32  # pixels; a picture with no longer side is of a data set, and shows one digit
ODDS_OF_ONE = 10.0  # logarithm of the odds of that, before anything is seen
CERTAIN = 2.0  # the score above which no other tones are tried


class Reading(NamedTuple):
    """One way to read a picture.

    Attributes:
        score: the log odds that it is right.
        explained: the share of its ink that looks like digits.
    """

    name: str
    digits: list[ScoredCandidate]
    score: float
    explained: float


def best_reading(network: Classifier, picture: Picture) -> tuple[Reading | None, bool]:
    """The reading with the highest score, and whether there is ink at all; stops at a reading that is certain.

    None if nothing in the picture can be a digit.
    """
    scorer, best, has_ink = CandidateScorer(network), None, False
    if max(picture.alpha.shape) <= SMALL:
        return _only_digit(picture, scorer)
    for tone in all_tones(picture):
        has_ink = True
        for reading in readings(tone, Parts(tone.ink), scorer):
            if reading.digits and (best is None or reading.score > best.score):
                best = reading
        if best is not None and _is_certain(best):
            break
    return best, has_ink


def _only_digit(picture: Picture, scorer: CandidateScorer) -> tuple[Reading | None, bool]:
    """Read all ink as one digit, by the first tone in which it is one, or else the likeliest tone.

    What is in MNIST's geometry already is scored as it is before it is drawn again, which costs some sharpness.
    """
    found: list[Reading] = []
    original = as_it_is(picture.rgb @ LUMINANCE)
    for tone in tones(picture):
        parts = Parts(tone.ink)
        if not parts.boxes:
            continue
        group = parts.group(list(parts.boxes))
        for drawing in (original, draw(group.ink)):
            if drawing is None:
                continue
            digits = scorer.of_drawings([group], [drawing])
            reading = _reading(tone.name, tone, parts, digits)
            found.append(reading._replace(score=reading.score + ODDS_OF_ONE))
            if digits[0].is_named:
                return found[-1], True
    return next(iter(found), None), bool(found)


def _is_certain(reading: Reading) -> bool:
    """Whether a reading is so good that no other tones need be tried.

    That held for 332 of 651 synthetic pictures, none of which was read differently for it.
    """
    digits_are = all(digit.novelty < 0.75 and digit.probabilities.max() > 0.97 for digit in reading.digits)
    return digits_are and reading.score > CERTAIN


def all_tones(picture: Picture) -> Iterator[Tone]:
    """The ways to see a picture, each also without lines if there are any."""
    for tone in tones(picture):
        yield tone
        cleaned = without_lines(tone.ink)
        if cleaned is not None:
            kept = float((cleaned > 0.5).sum() / max((tone.ink > 0.5).sum(), 1))
            yield tone._replace(name=f"{tone.name}, without lines", ink=cleaned, kept=kept)


def readings(tone: Tone, parts: Parts, scorer: CandidateScorer) -> Iterator[Reading]:
    """The ways to read the ink of one tone."""
    if not parts.boxes or len(parts.boxes) > MAX_PARTS:
        return
    name, every, inner = tone.name, list(parts.boxes), parts.without_border()
    whole = _best_partition(name, tone, parts, every, scorer)
    yield whole
    if inner and len(inner) < len(every):
        yield _best_partition(f"{name}, inner", tone, parts, inner, scorer)
    if len(every) > 1 and whole.explained < 0.8:
        if len(every) <= 6:
            yield _reading(f"{name}, as one", tone, parts, scorer([parts.group(every)]))
        largest = max(every, key=lambda part: parts.areas[part])
        yield _reading(f"{name}, largest", tone, parts, scorer([parts.group([largest])]))


def _best_partition(name: str, tone: Tone, parts: Parts, chosen: list[int], scorer: CandidateScorer) -> Reading:
    """The reading in which each cluster of parts is divided into digits in the best way."""
    ways = [partitions(cluster) for cluster in parts.clusters(chosen)]
    groups = {group: parts.group(group) for cluster in ways for way in cluster for group in way}
    scored = dict(zip(groups, scorer(list(groups.values())), strict=True))
    digits: list[ScoredCandidate] = []
    for cluster in ways:
        best = max(cluster, key=lambda way: _value([scored[group] for group in way]))
        digits += [scored[group] for group in best]
    digits = _cut_where_touching(digits, scorer)
    return _reading(name, tone, parts, _without_strips(_without_frames(digits), parts.ink.shape))


def _without_frames(digits: list[ScoredCandidate]) -> list[ScoredCandidate]:
    """Remove what lies around digits: a box, a frame."""
    frames = [
        digit
        for digit in digits
        if digit.quality < 0.5
        and any(other is not digit and encloses(digit.group.box, other.group.box) for other in digits)
    ]
    return [digit for digit in digits if not any(digit is frame for frame in frames)]


def _without_strips(digits: list[ScoredCandidate], shape: tuple[int, ...]) -> list[ScoredCandidate]:
    """Remove what only looks like a digit: the picture's edge, a shadow there, a piece of a line."""
    if len(digits) < 2:
        return digits
    inner = [digit for digit in digits if not digit.group.box.touches_border(shape)]
    digits = inner or digits
    good = [max(d.group.box.height, d.group.box.width) for d in digits if d.quality > 0.5 and not is_thin(d.group.box)]
    if not good:
        return digits
    height = float(np.median(good))

    def is_line(box: Box) -> bool:
        longer, thinness = max(box.height, box.width), min(box.height, box.width) / max(box.height, box.width)
        return is_thin(box) and longer > (1.12 if thinness < 0.12 else 1.3) * height

    return [digit for digit in digits if not is_line(digit.group.box)] or digits


def _value(way: list[ScoredCandidate]) -> float:
    """How well parts are explained as these digits.

    One good digit is better than several: two halves of a zero look like ones. But a stack of digits looks like a one.
    """
    area = sum(digit.group.area for digit in way)
    explained = sum(digit.group.area * digit.quality for digit in way) / area
    if len(way) == 1 and len(way[0].group.parts) > 1:
        return explained + (-0.1 if is_thin(way[0].group.box) else 0.1)
    return explained


def _cut_where_touching(digits: list[ScoredCandidate], scorer: CandidateScorer) -> list[ScoredCandidate]:
    """Cut each candidate that is no digit into two that touch, if both of these are digits."""
    doubtful = [(i, digit) for i, digit in enumerate(digits) if digit.quality <= 0.5 and not digit.is_blob]
    pairs = [(i, pair) for i, digit in doubtful for pair in cuts(digit.group)]
    halves = scorer([half for _, pair in pairs for half in pair])  # all at once, which is faster
    best: dict[int, list[ScoredCandidate]] = {}
    for k, (i, _) in enumerate(pairs):
        pair = halves[2 * k : 2 * k + 2]
        worst = min(half.quality for half in pair)
        if worst > 0.6 and (i not in best or worst > min(half.quality for half in best[i])):
            best[i] = pair
    return [part for i, digit in enumerate(digits) for part in best.get(i, [digit])]


def _reading(name: str, tone: Tone, parts: Parts, digits: list[ScoredCandidate]) -> Reading:
    area = sum(digit.group.area for digit in digits)
    explained = sum(digit.group.area * digit.quality for digit in digits) / max(area, 1.0)
    return Reading(name, digits, score(tone, parts, digits) if digits else -math.inf, explained)
