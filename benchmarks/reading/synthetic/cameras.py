"""How a sheet of paper becomes a picture: laid on a desk, cut out, shown on a screen, photographed or scanned."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from benchmarks.reading.synthetic import paper
from benchmarks.reading.synthetic.paper import Canvas, Colour, Random, Step


def phone(rng: Random, canvas: Canvas) -> Canvas:
    """A telephone's camera: a little blur, noise, exposure and a tint."""
    blur, noise = rng.uniform(0.4, 1.0), rng.uniform(0.006, 0.018)
    image = ndimage.gaussian_filter(canvas, (blur, blur, 0)) * np.float32(
        rng.uniform(0.98, 1.02, 3) * rng.uniform(0.88, 1)
    )
    return (image + noise * paper.speckle(rng, canvas.shape[:2])[..., None]).clip(0, 1)


def turned(degrees: float, share: float = 1.0) -> Step:
    """The page smaller and turned either way by up to `degrees`; around it is nothing."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        height, width = canvas.shape[:2]
        angle, scale = np.deg2rad(degrees * rng.uniform(0.4, 1) * rng.choice((-1, 1))), share * rng.uniform(0.92, 1.08)
        matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
        centre = np.array([height, width]) / 2
        offset = (
            centre - matrix @ centre - (0 if share == 1 else matrix @ (rng.uniform(-0.04, 0.04, 2) * (height, width)))
        )
        opaque = np.dstack([canvas, np.ones((height, width), np.float32)])
        layers = [
            ndimage.affine_transform(opaque[..., i], matrix, offset, order=1, mode="nearest" if i < 3 else "constant")
            for i in range(4)
        ]
        return np.dstack(layers).clip(0, 1)

    return step


def laid_on(colour: Colour, grain: float = 0.08, depth: float = 0.5) -> Step:
    """What shows through a canvas is a desk, on which the sheet throws a shadow."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        shape = canvas.shape[:2]
        fibres = ndimage.zoom(paper.clouds(rng, (shape[0] // 8 + 1, shape[1]), 60), (8, 1), order=1)[: shape[0]]
        desk = (np.float32(colour) * (1 + grain * fibres)[..., None]).clip(0, 1)
        opaque = canvas[..., 3]
        cast = ndimage.gaussian_filter(np.roll(opaque, (6, 4), (0, 1)), 6)
        desk = paper.lit(desk, 1 - depth * cast)
        return desk + opaque[..., None] * (canvas[..., :3] - desk)

    return step


def joined(*steps: Step) -> Step:
    """One step after the other."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        for each in steps:
            canvas = each(rng, canvas)
        return canvas

    return step


def padded(share: float, colour: Colour | None = None) -> Step:
    """A margin around a picture; of nothing, if it has no colour."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        margin = int(share * max(canvas.shape))
        opaque = canvas if canvas.shape[2] == 4 else np.dstack([canvas, np.ones(canvas.shape[:2], np.float32)])
        wide = np.pad(opaque, ((margin, margin), (margin, margin), (0, 0)))
        return wide if colour is None else np.float32(colour) + wide[..., 3:] * (wide[..., :3] - np.float32(colour))

    return step


def framed(rng: Random, canvas: Canvas) -> Canvas:
    """A black frame at the picture's edge."""
    inner = canvas[2:-2, 2:-2]
    return np.pad(inner, ((2, 2), (2, 2), (0, 0)))


def window(rng: Random, canvas: Canvas) -> Canvas:
    """A screenshot of a window: its shadow is black and half transparent."""
    wide = padded(0.14)(rng, canvas)
    cast = 0.6 * ndimage.gaussian_filter(np.roll(wide[..., 3], 8, 0), 14)
    return np.dstack([wide[..., :3] * wide[..., 3:], np.maximum(wide[..., 3], cast)])


def rounded(rng: Random, canvas: Canvas) -> Canvas:
    """Transparent rounded corners."""
    height, width = canvas.shape[:2]
    radius = rng.uniform(0.08, 0.16) * min(height, width)
    rows, columns = (place * side for place, side in zip(paper.places(canvas), (height, width), strict=True))
    down, across = (np.maximum(radius - np.minimum(x, side - x), 0) for x, side in ((rows, height), (columns, width)))
    return np.dstack([canvas, np.clip(radius - np.hypot(down, across), 0, 1)])


def ink_only(rng: Random, canvas: Canvas) -> Canvas:
    """The paper made transparent, the ink black, as a signature is saved."""
    darkness = 1 - canvas[..., :3].mean(2)
    return np.dstack([np.zeros_like(canvas[..., :3]), (darkness - darkness.min()) / np.ptp(darkness)])


def enlarged(times: int) -> Step:
    """Each pixel as a square."""
    return lambda rng, canvas: canvas.repeat(times, 0).repeat(times, 1)


def shrunk(low: int, high: int) -> Step:
    """Reduced to `low` to `high` pixels a side."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        image = Image.fromarray(np.rint(255 * canvas).astype(np.uint8))
        return np.asarray(image.resize((rng.randint(low, high + 1),) * 2, Image.Resampling.BOX), np.float32) / 255

    return step


def axes(rng: Random, canvas: Canvas) -> Canvas:
    """A figure of a plotting library: white margins, a thin frame and ticks."""
    wide = padded(0.16, (1.0, 1.0, 1.0))(rng, canvas)
    height, width = wide.shape[:2]
    margin = int(0.16 * max(canvas.shape))
    cover = np.zeros((height, width), np.float32)
    cover[margin:-margin, [margin, width - margin]] = cover[[margin, height - margin], margin : -margin + 1] = 1
    for tick in np.linspace(margin + 6, width - margin - 6, 6).astype(int):
        cover[height - margin : height - margin + 5, tick] = cover[tick, margin - 5 : margin] = 1
    return paper.inked(wide, cover, paper.BLACK)


def colour_map(name: str) -> Step:
    """Grey levels in false colours."""
    import matplotlib

    return lambda rng, canvas: np.float32(matplotlib.colormaps[name](canvas[..., 0])[..., :3])


def screen(rng: Random, canvas: Canvas) -> Canvas:
    """A picture of a screen: its rows and subpixels beat with the camera's."""
    rows, columns = (place * side for place, side in zip(paper.places(canvas), canvas.shape, strict=False))
    pitch, tilt = rng.uniform(2.6, 3.6), rng.uniform(-0.04, 0.04)
    across, down = (columns + tilt * rows) / pitch, (rows - tilt * columns) / pitch
    red, green, blue = (0.75 + 0.25 * np.cos(2 * np.pi * (across - shift / 3)) for shift in range(3))
    lines = (0.85 + 0.15 * np.cos(2 * np.pi * down))[..., None]
    return canvas * np.float32(np.dstack([red, green, blue]) * lines) * np.float32((0.9, 0.97, 1.0))


def impulses(amount: float) -> Step:
    """Salt and pepper."""

    def step(rng: Random, canvas: Canvas) -> Canvas:
        draw = rng.random_sample(canvas.shape[:2])[..., None]
        return np.where(
            draw < amount / 2, np.float32(paper.BLACK), np.where(draw > 1 - amount / 2, np.float32(paper.WHITE), canvas)
        )

    return step


def chosen(steps: Sequence[Step]) -> Step:
    """One of several steps."""
    return lambda rng, canvas: steps[rng.randint(len(steps))](rng, canvas)
