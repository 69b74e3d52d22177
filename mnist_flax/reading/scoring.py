"""How good a way to read a picture is: the log odds that it is right.

`benchmarks.release.reading_weights` fits the weights to synthetic pictures, whose digits are known.
`benchmarks.reading.photographs` measures with other pictures, about half of them of kinds that are never fitted.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from mnist_flax.reading.candidates import ScoredCandidate
from mnist_flax.reading.ink import Tone
from mnist_flax.reading.parts import Box, Group, Parts

BIAS = -0.08
WEIGHTS = {
    "kept": 2.01,  # the share of all ink that is drawn as digits
    "novelty": -5.28,  # their out-of-distribution score
    "worst": 3.94,  # the quality of the worst of them
    "thin": -2.70,  # the share of their ink that is in thin ones: edges and rules look like ones
    "common": -2.06,  # the share of the picture that has their tone: paper between strokes has that of all paper
    "enclosing": -3.53,  # whether one of them lies around another, as in a face or a frame
    "border": -0.73,  # the largest share of the picture's border that one covers, as a desk or a shadow does
    "thick": -0.35,  # by how many of MNIST's pixels half the widest stroke is wider than a pen's
    "soft": -0.26,  # how many pixels it takes from ink to paper; a shadow's edge is softer than a pen's
    "spread": -1.48,  # by how much they differ in size: the logarithm of the ratio
}
PEN = 3.0  # half the width of a wide stroke, in MNIST's pixels
SAME = 0.1  # of black to white: tones of one thing in one light
EXTREME = 0.1  # of more than ten digits, a tenth may be misread, too large or too small
MAX_NOVELTY, MAX_THICK, MAX_SOFT = 3.0, 4.0, 6.0  # more makes a reading no worse


def score(tone: Tone, parts: Parts, digits: Sequence[ScoredCandidate]) -> float:
    """The log odds that a picture shows these digits, and nothing else."""
    return BIAS + sum(WEIGHTS[name] * value for name, value in features(tone, parts, digits).items())


def features(tone: Tone, parts: Parts, digits: Sequence[ScoredCandidate]) -> dict[str, float]:
    """What the score is computed from, by the names of `WEIGHTS`."""
    area = np.array([digit.group.area for digit in digits])
    share = area / max(area.sum(), 1.0)
    boxes = [digit.group.box for digit in digits]
    sizes = [float(max(digit.group.box.height, digit.group.box.width)) for digit in digits if digit.is_named]
    return {
        "kept": tone.kept * parts.kept * float(area.sum()) / max(sum(parts.areas.values()), 1.0),
        "novelty": float(share @ [min(digit.novelty, MAX_NOVELTY) for digit in digits]),
        "worst": _quantile([digit.quality for digit in digits], EXTREME),
        "thin": float(share @ [is_thin(box) for box in boxes]),
        "common": float(share @ [_common(tone, digit.group) for digit in digits]),
        "enclosing": float(any(encloses(a, b) for a, b in itertools.permutations(boxes[:20], 2))),
        "border": max(parts.border_share(digit.group) for digit in digits),
        "thick": float(np.clip(max(digit.thickness for digit in digits) - PEN, 0, MAX_THICK)),
        "soft": float(share @ [min(_softness(digit.group), MAX_SOFT) for digit in digits]),
        "spread": float(np.log(_quantile(sizes, 1 - EXTREME) / _quantile(sizes, EXTREME))) if sizes else 0.0,
    }


def encloses(a: Box, b: Box) -> bool:
    """Whether one box lies around another."""
    return a.top <= b.top and a.left <= b.left and a.bottom >= b.bottom and a.right >= b.right


def is_thin(box: Box) -> bool:
    """Whether a box is as narrow as that of a one, a line or an edge."""
    return min(box.height, box.width) < 0.3 * max(box.height, box.width)


def _quantile(values: Sequence[float], share: float) -> float:
    """A quantile, which of few values is the smallest or the largest."""
    return float(np.quantile(values, share, method="lower" if share < 0.5 else "higher"))


def _common(tone: Tone, group: Group) -> float:
    """The share of the picture that is hardly lighter or darker than the group's ink."""
    own = tone.values[group.box.top : group.box.bottom, group.box.left : group.box.right][group.ink > 0.5]
    return float((abs(tone.values[::2, ::2] - np.median(own)) < SAME).mean())


def _softness(group: Group) -> float:
    """The number of pixels between ink and paper for each pixel of the ink's outline."""
    solid = np.pad(group.ink > 0.5, 1)
    inside: Any = ndimage.binary_erosion(solid)
    outline = solid.sum() - inside.sum()
    return float(((group.ink > 0.15) & (group.ink < 0.85)).sum() / max(outline, 1))
