"""Where on a page a digit is written, and what the pen leaves beside it."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from benchmarks.reading.synthetic.paper import Cover, Random
from benchmarks.reading.synthetic.strokes import Digits, strokes

Shape = tuple[int, int]
# The ink on a page of this shape, and the labels in reading order. The pen's width is a share of a digit's size, None
# if strokes are as wide as in MNIST.
Layout = Callable[[Random, Digits, Shape, float | None], tuple[Cover, tuple[str, ...]]]


def put(page: Cover, cover: Cover, middle: Sequence[float]) -> tuple[int, int, int, int]:
    """Add ink to a page around `middle`, a row and a column; returns its box: top, left, bottom, right."""
    top, left = (round(place - side / 2) for place, side in zip(middle, cover.shape, strict=True))
    box = max(top, 0), max(left, 0), min(top + cover.shape[0], page.shape[0]), min(left + cover.shape[1], page.shape[1])
    inside = page[box[0] : box[2], box[1] : box[3]]
    np.maximum(inside, cover[box[0] - top : box[2] - top, box[1] - left : box[3] - left], out=inside)
    return box


def drawn(shape: Shape, lines: Sequence[np.ndarray], width: float) -> Cover:
    """Lines through points (row, column), in pixels, with round ends."""
    image = Image.new("L", (2 * shape[1], 2 * shape[0]))
    draw, radius = ImageDraw.Draw(image), width
    for line in lines:
        points = [(2 * float(column), 2 * float(row)) for row, column in line]
        draw.line(points, 255, max(1, round(2 * width)))
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return np.asarray(image.reduce(2), np.float32) / 255


def curve(points: np.ndarray) -> np.ndarray:
    """A smooth line through points."""
    return make_interp_spline(np.linspace(0, 1, len(points)), points)(np.linspace(0, 1, 20 * len(points)))


# One digit.


def one(low: float = 0.3, high: float = 0.6, stray: float = 0.1) -> Layout:
    """A digit of `low` to `high` of the page's shorter side, up to `stray` of a side away from the middle."""

    def layout(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        image, label = digits.deal(rng)
        page, middle = np.zeros(shape, np.float32), np.array(shape) * (0.5 + rng.uniform(-stray, stray, 2))
        put(page, strokes(image, rng.uniform(low, high) * min(shape), width), middle)
        return page, (label,)

    return layout


def at_border(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """A digit that touches one edge of the picture."""
    image, label = digits.deal(rng)
    page, cover = np.zeros(shape, np.float32), strokes(image, 0.6 * min(shape), width)
    middle, axis = np.array(shape) / 2, rng.randint(2)
    middle[axis] = cover.shape[axis] / 2 if rng.randint(2) else shape[axis] - cover.shape[axis] / 2
    put(page, cover, middle)
    return page, (label,)


def as_mnist(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """An image of the data set as it is."""
    image, label = digits.deal(rng)
    page = np.zeros(shape, np.float32)
    put(page, np.float32(image) / 255, np.array(shape) / 2)
    return page, (label,)


# Strokes in a square of 1, row and column, as (label, strokes).
IN_STROKES = {
    "4 in two strokes": ("4", [[(0, 0.25), (0.6, 0.2), (0.6, 0.65)], [(0.05, 0.8), (1, 0.75)]]),
    "5 with a separate bar": (
        "5",
        [[(0, 0.34), (0, 0.85)], [(0.1, 0.25), (0.45, 0.2), (0.4, 0.6), (0.7, 0.8), (0.98, 0.5), (0.9, 0.15)]],
    ),
    "0 with gaps": (
        "0",
        [
            [(0.02, 0.42), (0.2, 0.2), (0.5, 0.12), (0.8, 0.2), (0.98, 0.42)],
            [(0.02, 0.6), (0.2, 0.82), (0.5, 0.9), (0.8, 0.82), (0.98, 0.6)],
        ],
    ),
}


def in_strokes(name: str) -> Layout:
    """A digit of strokes that do not touch."""
    label, paths = IN_STROKES[name]

    def layout(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        size, slant = rng.uniform(0.35, 0.6) * min(shape), rng.uniform(-0.15, 0.15)
        corner = (np.array(shape) - size) / 2 + rng.uniform(-0.05, 0.05, 2) * shape
        warp = np.array([[size, 0], [-slant * size, rng.uniform(0.65, 0.85) * size]])
        lines = [corner + (np.array(path) + rng.normal(0, 0.012, (len(path), 2))) @ warp.T for path in paths]
        lines = [line if label == "4" or len(line) < 4 else curve(line) for line in lines]
        return drawn(shape, lines, (width or 0.1) * size), (label,)

    return layout


def cut(layout: Layout, upright: bool) -> Layout:
    """A light scratch through the ink."""

    def scratched(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        page, labels = layout(rng, digits, shape, width)
        box = ndimage.find_objects((page > 0.5).astype(int))[0]
        side = box[1] if upright else box[0]
        middle = side.start + rng.uniform(0.35, 0.65) * (side.stop - side.start)
        rows, columns = np.indices(shape)
        along, across = (columns, rows) if upright else (rows, columns)
        away = np.abs(along - middle - rng.uniform(-0.03, 0.03) * (across - shape[not upright] / 2))
        return page * np.clip(away - 0.008 * min(shape) + 0.5, 0, 1), labels

    return scratched


def lined(layout: Layout, edges: str, gap: float, pen: float = 0.006, reach: float = 0.15) -> Layout:
    """Lines beside the ink, `gap` of its side away: at `edges`, the first letters of top, left, bottom, right."""

    def with_lines(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        page, labels = layout(rng, digits, shape, width)
        rows, columns = ndimage.find_objects((page > 0.5).astype(int))[0]
        side = max(rows.stop - rows.start, columns.stop - columns.start)
        far, more = gap * side, reach * side
        box = {"t": rows.start - far, "b": rows.stop + far, "l": columns.start - far, "r": columns.stop + far}
        ends = {edge: box[edge] if edge in edges else box[edge] + more * (1 if edge in "br" else -1) for edge in box}
        lines = [
            ((box[e], ends["l"]), (box[e], ends["r"])) if e in "tb" else ((ends["t"], box[e]), (ends["b"], box[e]))
            for e in edges
        ]
        return np.maximum(page, drawn(shape, np.array(lines), max(1.5, pen * min(shape)))), labels

    return with_lines


def ringed(layout: Layout) -> Layout:
    """A ring around the ink, as a teacher marks an answer."""

    def with_ring(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        page, labels = layout(rng, digits, shape, width)
        box = ndimage.find_objects((page > 0.5).astype(int))[0]
        middle = np.array([(side.start + side.stop) / 2 for side in box])
        reach = rng.uniform(0.65, 0.9) * max(side.stop - side.start for side in box) * rng.uniform(0.9, 1.1, 2)
        turn = np.linspace(0, 2 * np.pi, 60)
        ring = middle + reach * np.column_stack([np.sin(turn), np.cos(turn)])
        return np.maximum(page, drawn(shape, [ring], max(2.0, 0.006 * min(shape)))), labels

    return with_ring
