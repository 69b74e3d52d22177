"""Candidates for digits, scored by the network: how much each looks like a digit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from scipy import ndimage

from mnist_flax.inference.classifier import BATCHES, Classifier
from mnist_flax.reading.drawing import draw
from mnist_flax.reading.parts import Group

THICK = 6.0  # half the width of a stroke that no pen has, in MNIST's pixels
CLEAR = 0.6  # with a lower probability the network is guessing


class ScoredCandidate(NamedTuple):
    """A group of parts that may be a digit, drawn as MNIST would, with what the network says of it.

    Attributes:
        novelty: the out-of-distribution score; 0 if the network has no reference for it.
        thickness: half the width of its widest stroke, in pixels of the drawing.
    """

    group: Group
    pixels: UInt8[np.ndarray, "28 28"]
    probabilities: Float[np.ndarray, " classes"]
    novelty: float
    thickness: float

    @property
    def is_blob(self) -> bool:
        """Whether it is thicker somewhere than a pen can be."""
        return self.thickness > THICK

    @property
    def quality(self) -> float:
        """How much it looks like a digit, from 0 to 1."""
        if self.is_blob:
            return 0.0
        known, clear = (1.3 - self.novelty) / 0.5, (float(self.probabilities.max()) - 0.4) / 0.5
        return float(np.clip(known, 0, 1) * np.clip(clear, 0, 1))

    @property
    def is_named(self) -> bool:
        """Whether it is taken for a digit."""
        return self.novelty <= 1 and float(self.probabilities.max()) >= CLEAR and self.quality > 0


class CandidateScorer:
    """Scores candidates by the network, and remembers the scores."""

    def __init__(self, network: Classifier) -> None:
        self.network = network
        self.known: dict[bytes, tuple[np.ndarray, float]] = {}

    def __call__(self, groups: Sequence[Group]) -> list[ScoredCandidate]:
        """Draw groups of parts and score them."""
        return self.of_drawings(groups, [draw(group.ink) for group in groups])

    def of_drawings(
        self, groups: Sequence[Group], drawings: Sequence[UInt8[np.ndarray, "28 28"]]
    ) -> list[ScoredCandidate]:
        """Score drawings of groups of parts."""
        new = {pixels.tobytes(): pixels for pixels in drawings if pixels.tobytes() not in self.known}
        if new:
            probabilities, novelty = self.network.judge(np.stack(list(new.values())))
            scores = np.zeros(len(new)) if novelty is None else novelty
            self.known |= {key: (p, float(score)) for key, p, score in zip(new, probabilities, scores, strict=True)}
        found = [self.known[pixels.tobytes()] for pixels in drawings]
        return [
            ScoredCandidate(group, pixels, p, novelty, _thickness(pixels))
            for group, pixels, (p, novelty) in zip(groups, drawings, found, strict=True)
        ]


def compile_for(network: Classifier) -> None:
    """Compile the programs that scoring runs, so that the first picture is answered as fast as the others."""
    for size in BATCHES:
        network.judge(np.zeros((size, 28, 28), np.uint8))


def _thickness(pixels: UInt8[np.ndarray, "28 28"]) -> float:
    depth: Any = ndimage.distance_transform_edt(pixels > 127)
    return float(depth.max())
