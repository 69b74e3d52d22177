"""What a photograph of paper shows besides the ink: the sheet, its printed lines, light, shadows, desk and camera.

A canvas is an array of colours. A step takes one and returns the next: paper is printed on, lit, laid on a desk and
photographed by steps, in that order.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

Canvas = Float[np.ndarray, "h w c"]  # red, green and blue in 0..1; if there is a fourth channel, opacity
Cover = Float[np.ndarray, "h w"]  # the share of each pixel that is covered with ink, or how much light falls on it
Colour = tuple[float, float, float]
Random = np.random.RandomState
Step = Callable[[Random, Canvas], Canvas]

BLACK, WHITE, CREAM, GREY = (0.03, 0.03, 0.03), (0.97, 0.97, 0.96), (0.93, 0.91, 0.86), (0.74, 0.74, 0.73)
PALE_BLUE, DARK_BLUE, RED = (0.72, 0.8, 0.9), (0.3, 0.36, 0.6), (0.85, 0.3, 0.3)
YELLOW, WOOD, BOARD = (0.97, 0.92, 0.55), (0.33, 0.2, 0.13), (0.13, 0.22, 0.17)


def clouds(rng: Random, shape: tuple[int, int], cells: int) -> Cover:
    """Smooth noise of mean 0 and deviation about 1, with `cells` blobs along each side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))


def speckle(rng: Random, shape: tuple[int, int]) -> Cover:
    """Noise of mean 0 and deviation 1, independent between pixels: sums of two bytes, a tenth of the normal's time."""
    draws = np.frombuffer(rng.bytes(2 * shape[0] * shape[1]), np.uint8).reshape(2, *shape).astype(np.float32)
    return (draws.sum(0) - 255) / np.float32(104.5)


def sheet(rng: Random, shape: tuple[int, int], colour: Colour) -> Canvas:
    """A sheet of paper that is not quite even."""
    return (np.float32(colour) * (1 + 0.012 * clouds(rng, shape, 6) + 0.006 * clouds(rng, shape, 40))[..., None]).clip(
        0, 1
    )


def inked(canvas: Canvas, cover: Cover, colour: Colour) -> Canvas:
    """Colour over whatever is covered."""
    canvas = canvas.copy()
    canvas[..., :3] += cover[..., None] * (np.float32(colour) - canvas[..., :3])
    return canvas


def places(canvas: Canvas | Cover) -> tuple[Cover, Cover]:
    """Row (h×1) and column (1×w) of each pixel, from 0 to 1."""
    height, width = canvas.shape[:2]
    rows, columns = np.ogrid[:height, :width]
    return np.float32(rows / height), np.float32(columns / width)


def pixel_width(canvas: Canvas | Cover) -> float:
    """How many of a line's thinnest pixels lie side by side: 1 at a height of 900."""
    return max(1.0, max(canvas.shape[:2]) / 900)


def bars(along: Cover, positions: np.ndarray, width: float, side: int) -> Cover:
    """Lines across `along`, a coordinate in 0..1 of `side` pixels, at `positions`."""
    distance = np.min([np.abs(along - position) for position in np.atleast_1d(positions)], axis=0)
    return np.clip(width / 2 - side * distance + 0.5, 0, 1)


# Printed on the paper.


def ruled(colour: Colour, spacing: float = 0.08, across: bool = False, width: float = 1.5) -> Step:
    """Ruled lines; graph paper, if there are also lines across."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        rows, columns = places(canvas)
        height, breadth = canvas.shape[:2]
        pitch, pen = spacing * rng.uniform(0.8, 1.2), width * pixel_width(canvas)
        cover = bars(rows, np.arange(rng.uniform(0.2, 1) * pitch, 1, pitch), pen, height)
        if across:
            pitch *= height / breadth
            cover = np.maximum(cover, bars(columns, np.arange(rng.uniform(0.2, 1) * pitch, 1, pitch), pen, breadth))
        return inked(canvas, 0.9 * cover, colour)

    return step


def dotted(colour: Colour, spacing: float = 0.035) -> Step:
    """A grid of dots."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        side, pitch = max(canvas.shape[:2]), spacing * rng.uniform(0.8, 1.2)
        rows, columns = (place * length / side for place, length in zip(places(canvas), canvas.shape, strict=False))
        distance = np.hypot(*((place / pitch) % 1 - 0.5 for place in (rows, columns))) * pitch * side
        return inked(canvas, np.clip(1.8 * pixel_width(canvas) - distance, 0, 1), colour)

    return step


def line_at(low: float, high: float, colour: Colour, upright: bool = True, width: float = 2) -> Step:
    """One line from edge to edge, at a share between `low` and `high` of the width, or height if it lies."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        along = places(canvas)[upright]
        position = np.array([rng.uniform(low, high)])
        return inked(canvas, bars(along, position, width * pixel_width(canvas), canvas.shape[int(upright)]), colour)

    return step


def strip(colour: Colour, share: float = 0.04) -> Step:
    """What lies behind the paper shows along one edge."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        rows, columns = places(canvas)
        edge = (rows, columns, 1 - rows, 1 - columns)[rng.randint(4)]
        slope = rng.uniform(-0.2, 0.2) * share * ((columns if edge is rows else rows) - 0.5)
        wide = share * rng.uniform(0.6, 1.4)
        return inked(canvas, np.clip((wide + slope - edge) * max(canvas.shape) + 0.5, 0, 1), colour)

    return step


def crumbs(low: int, high: int, size: float = 0.004) -> Step:
    """Specks of dirt."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        rows, columns = places(canvas)
        cover = np.zeros(canvas.shape[:2], np.float32)
        for _ in range(rng.randint(low, high)):
            tall, wide = size * rng.uniform(0.5, 1.5, 2)
            down, across = (rows - rng.uniform()) / tall, (columns - rng.uniform()) / wide
            near = np.ix_(np.abs(down[:, 0]) < 2, np.abs(across[0]) < 2)
            speck = np.clip(3 - 2 * np.hypot(down[near[0][:, 0]], across[:, near[1][0]]), 0, 1) * rng.uniform(0.4, 0.9)
            cover[near] = np.maximum(cover[near], speck)
        return inked(canvas, cover, (0.2, 0.16, 0.12))

    return step


# Light.


def lit(canvas: Canvas, light: Cover) -> Canvas:
    """The canvas where only a part of the light falls on each pixel."""
    return canvas * np.float32(light)[..., None]


def _slope(rng: Random, canvas: Canvas) -> Cover:
    """A plane from 0 to 1 in a random direction."""
    rows, columns = places(canvas)
    angle = rng.uniform(0, 2 * np.pi)
    plane = np.cos(angle) * rows + np.sin(angle) * columns
    return (plane - plane.min()) / np.ptp(plane)


def falling_light(darkest: float) -> Step:
    """Light that falls evenly across the page."""
    return lambda rng, canvas: lit(canvas, 1 - (1 - darkest) * _slope(rng, canvas))


def shadow(light: float, softness: float) -> Step:
    """A shadow over up to half of the page, with an edge as wide as a share of the page."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        depth = (_slope(rng, canvas) - rng.uniform(0.45, 0.75)) / softness
        return lit(canvas, 1 - (1 - light) / (1 + np.exp(-np.clip(8 * depth, -30, 30))))

    return step


def hand_shadow(light: float) -> Step:
    """The soft shadow of a hand with three fingers, from one side."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        rows, columns = places(canvas)
        if rng.randint(2):
            columns = 1 - columns
        middle, reach = rng.uniform(0.3, 0.8), rng.uniform(0.5, 0.8)
        shape = np.hypot((rows - middle) / 0.22, (columns - 1) / 0.4) < 1
        for finger in (-0.12, -0.02, 0.08):
            tip = reach * rng.uniform(0.8, 1.1)
            shape |= np.hypot(rows - middle - finger, np.maximum(1 - tip - columns, 0)) < 0.04
        blurred = ndimage.gaussian_filter(np.float32(shape), 0.012 * max(canvas.shape))
        return lit(canvas, 1 - (1 - light) * blurred)

    return step


def vignette(corner: float) -> Step:
    """Corners darker than the middle, as behind a wide lens."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        rows, columns = places(canvas)
        return lit(canvas, 1 - (1 - corner) * 2 * ((rows - 0.5) ** 2 + (columns - 0.5) ** 2))

    return step


def gutter(rng: Random, canvas: Canvas) -> Canvas:
    """The dark fold of a book at the left or right edge."""
    columns = places(canvas)[1]
    columns = 1 - columns if rng.randint(2) else columns
    return lit(canvas, 1 - rng.uniform(0.7, 0.95) * np.exp(-columns / rng.uniform(0.015, 0.04)))


def glare(strength: float) -> Step:
    """The reflection of a lamp or window."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        rows, columns = places(canvas)
        across = np.hypot((rows - rng.uniform(0.1, 0.9)) / 0.3, (columns - rng.uniform(0.1, 0.9)) / 0.2)
        return canvas + strength * np.exp(-(across**2))[..., None] * (1 - canvas)

    return step


def smudged(rng: Random, canvas: Canvas) -> Canvas:
    """The clouds of chalk that a sponge leaves on a board."""
    return canvas + (0.05 * np.abs(clouds(rng, canvas.shape[:2], 5)))[..., None].clip(0, 1)
