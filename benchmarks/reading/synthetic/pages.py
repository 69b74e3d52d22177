"""Pages of several digits, and pages of none."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.reading.synthetic.drawings import LETTERS, fonts, striped
from benchmarks.reading.synthetic.layouts import Layout, Shape, curve, drawn, put
from benchmarks.reading.synthetic.paper import Canvas, Cover, Random, clouds
from benchmarks.reading.synthetic.strokes import Digits, strokes

Written = list[tuple[Cover, str]]


def write(rng: Random, digits: Digits, sizes: Sequence[float], width: float | None) -> Written:
    """A digit of each size, with its label."""
    return [(strokes(image, size, width), label) for size in sizes for image, label in [digits.draw(rng)]]


def side_by_side(
    page: Cover, row: Written, middle: Sequence[float], gaps: Sequence[float], drops: Sequence[float]
) -> None:
    """Put digits into a page with gaps between them, each lower than the line by its drop, in pixels."""
    left = middle[1] - (sum(cover.shape[1] for cover, _ in row) + sum(gaps)) / 2
    for (cover, _), gap, drop in zip(row, (*gaps, 0), drops, strict=True):
        put(page, cover, (middle[0] + drop, left + cover.shape[1] / 2))
        left += cover.shape[1] + gap


def lines_of(
    lines: tuple[int, int], count: tuple[int, int], gap: float = 0.35, vary: float = 0.08, slope: float = 0.02
) -> Layout:
    """Lines of digits side by side.

    Args:
        lines: how many lines, from and to.
        count: how many digits each has, from and to.
        gap: between digits, and lines, as a share of their size.
        vary: by how much sizes vary.
        slope: of lines, at most.
    """

    def layout(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        counts = rng.randint(count[0], count[1] + 1, rng.randint(lines[0], lines[1] + 1))
        pitch, page, labels = 1 + gap, np.zeros(shape, np.float32), []
        size = min(0.85 * shape[1] / (counts.max() * pitch), 0.85 * shape[0] / (len(counts) * pitch), 0.4 * min(shape))
        tilt = rng.uniform(0.5, 1) * slope * rng.choice((-1, 1))
        for i, number in enumerate(counts):
            row = write(rng, digits, size * rng.uniform(1 - vary, 1 + vary, number), width)
            middle = shape[0] / 2 + (i - (len(counts) - 1) / 2) * pitch * size, shape[1] / 2
            gaps = gap * size * rng.uniform(0.8, 1.2, number - 1)
            drops = size * (tilt * pitch * (np.arange(number) - (number - 1) / 2) + rng.uniform(-0.04, 0.04, number))
            side_by_side(page, row, middle, gaps, drops)
            labels += [label for _, label in row]
        return page, tuple(labels)

    return layout


def exponent(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """A digit with a small one as its exponent."""
    size, small = 0.4 * min(shape), rng.uniform(0.35, 0.5)
    row = write(rng, digits, (size, small * size), width and width * 1.2)
    page = np.zeros(shape, np.float32)
    side_by_side(page, row, np.array(shape) / 2, [rng.uniform(0.1, 0.25) * size], [0, -size * rng.uniform(0.4, 0.5)])
    return page, tuple(label for _, label in row)


def touching(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """Two digits that just touch."""
    size = 0.38 * min(shape)
    (first, _), (second, _) = row = write(rng, digits, size * rng.uniform(0.92, 1.08, 2), width)
    height = max(first.shape[0], second.shape[0])
    first_, second_ = (
        np.pad(c, (((height - c.shape[0]) // 2, (height - c.shape[0] + 1) // 2), (0, 0))) > 0.5 for c in (first, second)
    )
    free = first_[:, ::-1].argmax(1) + second_.argmax(1)
    room = free[first_.any(1) & second_.any(1)].min()
    page = np.zeros(shape, np.float32)
    side_by_side(page, row, np.array(shape) / 2, [-room - 0.015 * size], [0, 0])
    return page, tuple(label for _, label in row)


def telephone_number(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """Seven digits, with a wider gap after the third."""
    size = 0.8 * shape[1] / (7 * 1.2 + 0.5)
    row = write(rng, digits, size * rng.uniform(0.9, 1.1, 7), width)
    gaps = size * (rng.uniform(0.2, 0.35, 6) + 0.6 * (np.arange(6) == 2))
    page = np.zeros(shape, np.float32)
    side_by_side(page, row, np.array(shape) / 2, gaps, size * rng.uniform(-0.05, 0.05, 7))
    return page, tuple(label for _, label in row)


def form_row(low: int, high: int, fill: float = 1.0, pen: float = 2.0) -> Layout:
    """A row of `low` to `high` boxes side by side, a share of them filled in."""

    def layout(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        number = rng.randint(low, high + 1)
        side = min(0.9 * shape[1] / number, 0.4 * shape[0])
        top, left = shape[0] / 2 - side * 0.6, (shape[1] - number * side) / 2
        edges = left + side * np.arange(number + 1)
        verticals = [((top, x), (top + 1.2 * side, x)) for x in edges]
        page = drawn(
            shape, np.array([*verticals, *(((y, left), (y, edges[-1])) for y in (top, top + 1.2 * side))]), pen
        )
        filled = np.flatnonzero(rng.random_sample(number) < fill)
        row = write(rng, digits, side * rng.uniform(0.6, 0.75, len(filled)), width)
        for (cover, _), box in zip(row, filled, strict=True):
            put(
                page,
                cover,
                (shape[0] / 2 + rng.uniform(-0.05, 0.05) * side, edges[box] + side * rng.uniform(0.45, 0.55)),
            )
        return page, tuple(label for _, label in row)

    return layout


def boxed(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """Two to six digits, each in a box of its own, as a form asks for a date."""
    number = rng.randint(2, 7)
    pitch = min(0.9 * shape[1] / number, 0.5 * shape[0])
    row = write(rng, digits, pitch * rng.uniform(0.45, 0.6, number), width)
    lefts = (shape[1] - number * pitch) / 2 + pitch * np.arange(number)
    corners = [(-0.5, 0.05), (-0.5, 0.95), (0.5, 0.95), (0.5, 0.05), (-0.5, 0.05)]
    boxes = [np.array(corners) * pitch + (shape[0] / 2, left) for left in lefts]
    page = drawn(shape, boxes, max(1.5, 0.015 * pitch))
    for (cover, _), left in zip(row, lefts, strict=True):
        put(page, cover, (shape[0] / 2, left + pitch / 2))
    return page, tuple(label for _, label in row)


def grid_of_mnist(side: int) -> Layout:
    """Images of the data set, as they are, in `side` rows and columns; the page has 28 pixels for each."""

    def layout(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        chosen = [digits.draw(rng) for _ in range(side * side)]
        rows = [np.hstack([image for image, _ in chosen[i : i + side]]) for i in range(0, side * side, side)]
        return np.float32(np.vstack(rows)) / 255, tuple(label for _, label in chosen)

    return layout


# No digit.


def nothing(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """An empty page."""
    return np.zeros(shape, np.float32), ()


def typed(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """A page of typed text."""
    image = Image.new("L", shape[::-1])
    size = int(shape[0] * rng.uniform(0.016, 0.026))
    name = rng.choice(["DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf"])
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), size)
    text = "the quick brown fox jumps over a lazy dog and runs before it rains"
    for top in range(2 * size, shape[0] - 2 * size, int(1.5 * size)):
        ImageDraw.Draw(image).text((2 * size, top), " ".join(rng.choice(text.split(), 12)), 255, font)
    image.paste(0, (shape[1] - 2 * size, 0, shape[1], shape[0]))
    return np.asarray(image, np.float32) / 255, ()


def squares(low: int, high: int) -> Layout:
    """Equal squares in rows."""

    def layout(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        page, number = np.zeros(shape, np.float32), rng.randint(low, high + 1)
        across = int(np.ceil(number**0.5))
        pitch = min(shape) // (across + 1)
        for i in range(number):
            top, left = (pitch // 2 + pitch * place for place in divmod(i, across))
            page[top : top + pitch // 3, left : left + pitch // 3] = 1
        return page, ()

    return layout


def letter(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """A letter that is not drawn like a digit: a font's middle lines, by an unsteady hand."""
    image = Image.new("L", (28, 28))
    name = rng.choice(["DejaVuSans.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSerif.ttf"])
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf" / name), 22)
    ImageDraw.Draw(image).text((14, 14), LETTERS[rng.randint(len(LETTERS))], 255, font, anchor="mm")
    page = np.zeros(shape, np.float32)
    put(page, strokes(np.asarray(image), rng.uniform(0.35, 0.6) * min(shape), width or 0.12), np.array(shape) / 2)
    return page, ()


def printed(low: int, high: int) -> Layout:
    """A line of `low` to `high` printed digits."""

    def layout(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
        labels = tuple(label for _ in range(rng.randint(low, high + 1)) for _, label in [digits.draw(rng)])
        size = int(rng.uniform(0.35, 0.8) * min(shape[0], 1.4 * shape[1] / len(labels)))
        typefaces = fonts()[::2]  # the others are left to `benchmarks.reading.transfer`
        font = ImageFont.truetype(str(typefaces[rng.randint(len(typefaces))]), size)
        image = Image.new("L", shape[::-1])
        ImageDraw.Draw(image).text((shape[1] / 2, shape[0] / 2), "".join(labels), 255, font, anchor="mm")
        return np.asarray(image, np.float32) / 255, labels

    return layout


def stripes(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """Parallel stripes in a square."""
    angle, period, side = rng.uniform(0, np.pi), rng.uniform(0.05, 0.2), 0.8 * min(shape)
    rows, columns = np.mgrid[: shape[0], : shape[1]] - np.array(shape)[:, None, None] / 2
    inside = np.maximum(abs(rows), abs(columns)) < side / 2
    return (striped(rows, columns, angle, period * side) & inside).astype(np.float32), ()


def scribble(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """A curve through 8 to 20 random points."""
    points = np.array(shape) * (0.5 + rng.uniform(-0.35, 0.35, (rng.randint(8, 21), 2)))
    return drawn(shape, [curve(points)], (width or 0.1) * 0.3 * min(shape)), ()


def face(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """A round face with two eyes, a nose and a mouth."""
    turn = np.linspace(0, 2 * np.pi, 60)[:, None]
    ring = np.hstack([np.sin(turn), np.cos(turn)])
    eyes = [0.08 * ring + (-0.3, side * rng.uniform(0.3, 0.4)) for side in (-1, 1)]
    smile = np.array([(0.35 + rng.uniform(0.05, 0.2) * np.cos(x * np.pi / 2), 0.4 * x) for x in np.linspace(-1, 1, 20)])
    nose = np.array([(-0.1, 0), (0.15, -0.06), (0.15, 0.05)])
    size, middle = rng.uniform(0.25, 0.35) * min(shape), np.array(shape) * (0.5 + rng.uniform(-0.08, 0.08, 2))
    lines = [middle + size * line for line in (ring * (1, 0.9), *eyes, smile, nose)]
    return drawn(shape, lines, (width or 0.1) * size), ()


def shapes(rng: Random, digits: Digits, shape: Shape, width: float | None) -> tuple[Cover, tuple[str, ...]]:
    """A circle or polygon with one to four smaller ones in it."""
    number, turn = rng.randint(1, 5), rng.uniform(0, 2 * np.pi)
    size, middle = rng.uniform(0.2, 0.4) * min(shape), np.array(shape) * (0.5 + rng.uniform(-0.08, 0.08, 2))

    def around(turns: np.ndarray) -> np.ndarray:
        return np.column_stack([np.sin(turns), np.cos(turns)])

    def outline(radius: float) -> np.ndarray:
        turns = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, rng.choice((3, 4, 5, 40)) + 1)
        return radius * rng.uniform(0.7, 1, 2) * around(turns)

    places = 0.3 * around(turn + 2 * np.pi * np.arange(number) / number)
    lines = [outline(1), *(outline(rng.uniform(0.08, 0.2)) + place for place in places)]
    return drawn(shape, [middle + size * line for line in lines], (width or 0.1) * size), ()


def texture(rng: Random, canvas: Canvas) -> Canvas:
    """A photograph of nothing in particular: clouds of colour at several scales."""
    layers = [
        np.dstack([clouds(rng, canvas.shape[:2], cells) for _ in range(3)]) / cells**0.5 for cells in (2, 6, 20, 60)
    ]
    return (0.5 + 0.3 * sum(layers)).clip(0, 1).astype(np.float32)


def noise(rng: Random, canvas: Canvas) -> Canvas:
    """Independent pixels."""
    return rng.random_sample(canvas.shape).astype(np.float32)
