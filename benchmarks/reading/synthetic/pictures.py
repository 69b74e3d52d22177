"""How a kind of picture is made: paper, pen, what is written, light, surroundings, camera and file."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.reading.synthetic import paper
from benchmarks.reading.synthetic.cameras import joined, phone
from benchmarks.reading.synthetic.image_files import Save, jpeg, saved
from benchmarks.reading.synthetic.layouts import Layout, as_mnist, one
from benchmarks.reading.synthetic.paper import BLACK, CREAM, WHITE, Colour, Random, Step
from benchmarks.reading.synthetic.strokes import Digits


class Tool(NamedTuple):
    """What writes: its colour, its width as a share of the digit (from, to; None: as in MNIST), how it covers paper."""

    colour: Colour
    width: tuple[float, float] | None
    grain: float = 0.0  # unevenness of the ink
    strength: float = 1.0


PEN = Tool((0.1, 0.1, 0.16), (0.06, 0.11), 0.05)
BALLPOINT = Tool((0.16, 0.24, 0.62), (0.045, 0.07), 0.12)
PENCIL = Tool((0.3, 0.3, 0.31), (0.04, 0.08), 0.3, 0.75)
FELT = Tool((0.06, 0.06, 0.08), (0.1, 0.15))
MARKER = Tool((0.05, 0.05, 0.06), (0.17, 0.2))
HAIRLINE = Tool((0.1, 0.1, 0.12), (0.012, 0.016))
CHALK = Tool((0.95, 0.95, 0.92), (0.07, 0.12), 0.25, 0.95)
BRUSH = Tool(BLACK, None)  # strokes as wide as MNIST's

ONE, LARGE = one(), one(0.6, 0.8, 0.03)
GOOD_JPEG, GREY_PNG = jpeg(), saved(".png", "L")

File = tuple[bytes, str, tuple[str, ...]]  # a file, its suffix and the labels in reading order
Kind = Callable[[Random, Digits], File]


def picture(
    layout: Layout = ONE,
    tool: Tool = PEN,
    colour: Colour = CREAM,
    *,
    shapes: Sequence[tuple[int, int]] = ((900, 700), (900, 700), (800, 800), (800, 1100)),
    under: Sequence[Step] = (),
    over: Sequence[Step] = (),
    camera: Sequence[Step] = (phone,),
    save: Save = GOOD_JPEG,
) -> Kind:
    """A kind of picture: a sheet, print `under` the ink, light and whatever lies `over` it, then the camera."""

    def kind(rng: Random, digits: Digits) -> File:
        shape = shapes[rng.randint(len(shapes))]
        canvas = joined(*under)(rng, paper.sheet(rng, shape, colour))
        width = None if tool.width is None else rng.uniform(*tool.width)
        cover, labels = layout(rng, digits, shape, width)
        grain = tool.grain * np.abs(paper.clouds(rng, shape, max(shape) // 3))
        canvas = paper.inked(canvas, tool.strength * cover * (1 - grain).clip(0, 1), tool.colour)
        return *save(rng, joined(*over, *camera)(rng, canvas)), labels

    return kind


def clean(layout: Layout = LARGE, tool: Tool = BRUSH, colour: Colour = WHITE, **options: Any) -> Kind:
    """A picture that was never photographed: drawn by a program, and saved as it is."""
    return picture(
        layout, tool, colour, **{"shapes": ((392, 392), (500, 500)), "camera": (), "save": saved(".png")} | options
    )


def mnist(
    save: Save = GREY_PNG, layout: Layout = as_mnist, side: int = 28, inverted: bool = False, **options: Any
) -> Kind:
    """Images of the data set as they are."""
    ink, ground = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))[:: -1 if inverted else 1]
    return clean(layout, Tool(ink, None), ground, shapes=((side, side),), save=save, **options)
