"""Which parts of the ink belong together: connected parts, and the groups of them that may be one digit."""

import itertools
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from mnist_flax.reading.ink import Ink

MAX_PARTS = 150  # more are a texture, or text
SPECK = 0.04  # parts of less than this share of the largest part's area,
SPECK_SIDE = 0.3  # and shorter than this share of its longer side, are dirt
PALE = 0.75  # parts paler than this share of the largest one's ink are no ink
NEAR = 0.3  # parts nearer to each other than this share of their height may be one digit
MAX_STROKES = 5  # of one digit


class Box(NamedTuple):
    """A rectangle of pixels; `bottom` and `right` are outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.right - self.left

    def touches_border(self, shape: tuple[int, ...]) -> bool:
        """Whether it reaches the border of a picture of that (height, width)."""
        return self.top <= 1 or self.left <= 1 or self.bottom >= shape[0] - 1 or self.right >= shape[1] - 1

    def join(self, other: "Box") -> "Box":
        """The smallest box around both."""
        (a, b, c, d), (e, f, g, h) = self, other
        return Box(min(a, e), min(b, f), max(c, g), max(d, h))


class Group(NamedTuple):
    """Parts that may be one digit: their ink, cropped to `box`, and its amount."""

    parts: frozenset[int]
    box: Box
    ink: Ink
    area: float


class Parts:
    """The connected parts of a map of ink, without specks.

    Attributes:
        boxes: by the part's number.
        areas: likewise, in pixels.
        kept: the share of all solid ink that is not specks.
    """

    def __init__(self, ink: Ink) -> None:
        self.ink = ink
        labelled: Any = ndimage.label(ink > 0.5, structure=np.ones((3, 3)))
        self.labels, count = labelled
        areas = np.bincount(self.labels.ravel(), minlength=count + 1)
        found: Any = ndimage.find_objects(self.labels)
        boxes = {i: Box(r.start, c.start, r.stop, c.stop) for i, (r, c) in enumerate(found, start=1)}
        largest = max(boxes, key=lambda i: areas[i], default=0)
        longest = max(boxes[largest][2] - boxes[largest][0], boxes[largest][3] - boxes[largest][1]) if boxes else 0
        self.boxes = {
            i: box
            for i, box in boxes.items()
            if areas[i] >= SPECK * areas[largest] or max(box.height, box.width) >= SPECK_SIDE * longest
        }
        # Edges of a sheet and remains of lines are paler than what was written.
        solid = np.where(self.labels > 0, ink, 0)
        strength = np.bincount(self.labels.ravel(), solid.ravel(), minlength=count + 1) / np.maximum(areas, 1)
        self.boxes = {i: box for i, box in self.boxes.items() if strength[i] >= PALE * strength[largest]}
        self.areas = {i: float(areas[i]) for i in self.boxes}
        self.kept = sum(self.areas.values()) / max(float(areas[1:].sum()), 1.0)
        self._border = np.concatenate([self.labels[0], self.labels[-1], self.labels[1:-1, 0], self.labels[1:-1, -1]])

    def without_border(self) -> list[int]:
        """The parts that do not touch the picture's border."""
        return [i for i, box in self.boxes.items() if not box.touches_border(self.ink.shape)]

    def border_share(self, group: Group) -> float:
        """The share of the picture's border that a group covers."""
        return float(np.isin(self._border, list(group.parts)).mean())

    def group(self, parts: frozenset[int] | set[int] | list[int]) -> Group:
        """The ink of some parts, with the soft edges around them."""
        chosen = frozenset(parts)
        box = self.boxes[next(iter(chosen))]
        for part in chosen:
            box = box.join(self.boxes[part])
        margin = 3
        rows = slice(max(0, box.top - margin), box.bottom + margin)
        columns = slice(max(0, box.left - margin), box.right + margin)
        labels, ink = self.labels[rows, columns], self.ink[rows, columns]
        own = np.isin(labels, list(chosen)) if len(chosen) > 1 else labels == next(iter(chosen))
        near = ndimage.binary_dilation(own, iterations=margin)
        ink = np.where(near & (own | (labels == 0)), ink, 0)
        solid = ink > 0.5
        r, c = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        area = sum(self.areas[part] for part in chosen)
        return Group(chosen, box, ink[r[0] : r[-1] + 1, c[0] : c[-1] + 1], area)

    def clusters(self, parts: list[int]) -> list[list[int]]:
        """Parts that are near each other, each part in one cluster."""
        leader = {part: part for part in parts}

        def find(part: int) -> int:
            while leader[part] != part:
                part = leader[part]
            return part

        for a, b in itertools.combinations(parts, 2):
            if _near(self.boxes[a], self.boxes[b]):
                leader[find(a)] = find(b)
        result: dict[int, list[int]] = {}
        for part in parts:
            result.setdefault(find(part), []).append(part)
        return list(result.values())


def _near(a: Box, b: Box) -> bool:
    """Whether two parts may be strokes of one digit: they overlap across, or the gap between them is small."""
    across = max(a.left, b.left) - min(a.right, b.right)  # negative: they overlap
    down = max(a.top, b.top) - min(a.bottom, b.bottom)
    tall = max(a.height, b.height, max(a.width, b.width) // 2)
    # Two halves of a zero are far apart, but narrow and equally tall.
    halves = all(box.width < 0.5 * tall and box.height > 0.7 * tall for box in (a, b))
    return across < (0.5 if halves else 0.08) * tall and down < NEAR * tall


def partitions(cluster: list[int]) -> list[list[frozenset[int]]]:
    """The ways in which the parts of a cluster may be digits: all as one, each alone, or two groups."""
    if len(cluster) == 1:
        return [[frozenset(cluster)]]
    ways = [[frozenset({part}) for part in cluster]]
    if len(cluster) <= MAX_STROKES:
        ways.append([frozenset(cluster)])
    if 3 <= len(cluster) <= MAX_STROKES:
        for size in range(1, len(cluster) // 2 + 1):
            for chosen in itertools.combinations(cluster, size):
                ways.append([frozenset(chosen), frozenset(cluster) - frozenset(chosen)])
    return ways


def cuts(group: Group) -> list[tuple[Group, Group]]:
    """The ways in which a wide group may be two touching digits side by side: cut where there is least ink."""
    height, width = group.ink.shape
    if width < 0.9 * height or width < 8:
        return []
    solid = group.ink > 0.5
    columns = solid.sum(0)
    candidates = sorted(range(int(0.25 * width), int(0.75 * width) + 1), key=lambda c: columns[c])
    chosen: list[int] = []
    for column in candidates:
        if all(abs(column - other) > width / 12 for other in chosen):
            chosen.append(column)
        if len(chosen) == 4:
            break
    found = []
    for column in chosen:
        halves = [_half(group, 0, column), _half(group, column, width)]
        if all(half is not None for half in halves):
            found.append((halves[0], halves[1]))
    return found  # type: ignore[return-value] - none is None


def _half(group: Group, start: int, stop: int) -> Group | None:
    ink = group.ink[:, start:stop]
    solid = ink > 0.5
    if not solid.any():
        return None
    r, c = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    top, left = group.box.top + int(r[0]), group.box.left + start + int(c[0])
    box = Box(top, left, top + int(r[-1] - r[0]) + 1, left + int(c[-1] - c[0]) + 1)
    cropped = ink[r[0] : r[-1] + 1, c[0] : c[-1] + 1]
    return Group(group.parts, box, cropped, float(solid.sum()))
