"""What in a picture may be ink: several ways to see its tones, each a map of ink in 0..1."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from mnist_flax.reading.image import Picture

Ink = Float[np.ndarray, "h w"]  # 0 background .. 1 strongest
Mask = Bool[np.ndarray, "h w"]

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
MIN_CONTRAST = 0.1  # of black to white; less is paper grain
# Sides of the windows in which paper is looked for, as shares of the picture's: larger than a pen is wide, smaller than
# a shadow is.
WINDOWS = (0.12, 0.35)
LINE = 0.25  # a line is at least so long, as a share of the picture's side,
LINE_WIDTH = 0.035  # and at most so wide,
STICKS_OUT = 1.3  # and so many times as long as what it touches


class Tone(NamedTuple):
    """One way to see a picture.

    Attributes:
        name: for people.
        ink: what may be ink.
        values: the tones that it was found in.
        kept: the share of its ink that is left after lines are removed; 1 if none were.
    """

    name: str
    ink: Ink
    values: Ink
    kept: float = 1.0


def tones(picture: Picture) -> Iterator[Tone]:
    """The ways to see a picture, the most likely ones first."""
    grey = picture.rgb @ LUMINANCE
    opaque = picture.alpha > 0.5
    if opaque.mean() <= 1 / 3:
        yield from _if_any("opaque", picture.alpha, picture.alpha)
    yield from _against_border(grey)
    colour = _principal_colour(picture.rgb)
    for name, values in (("grey", grey), ("colour", colour)):
        if values is None or (name == "grey" and colour is not None and np.ptp(grey) < MIN_CONTRAST):
            continue
        if name == "colour":
            yield from _against_border(values)
        for window in WINDOWS[min(values.shape) < 64 :]:
            yield from _if_any(f"dark {name} {window}", values, *_against_paper(values, window))
            yield from _if_any(f"light {name} {window}", values, _against_paper(1 - values, window)[1])


def _if_any(name: str, values: Ink, contrast: Ink, difference: Ink | None = None) -> Iterator[Tone]:
    """The ink of a map of contrasts, if there is any; `difference` has them in grey levels if `contrast` does not."""
    difference = contrast if difference is None else difference
    count = min(max(12, contrast.size // 500), contrast.size)
    top = np.argpartition(contrast, -count, axis=None)[-count:]
    strongest, absolute = float(np.median(contrast.ravel()[top])), float(np.median(difference.ravel()[top]))
    # Noise has a strongest contrast too, but not one that stands out from the rest.
    noise = float(np.quantile(contrast[::4, ::4], 0.5)) if contrast.size > 4096 else 0.0
    if absolute >= MIN_CONTRAST and strongest > 5 * noise:
        # Contrasts below a fifth of the strongest are shadows and JPEG artefacts.
        yield Tone(name, np.clip((contrast / strongest - 0.2) / 0.6, 0, 1), values)


def _against_border(grey: Ink) -> Iterator[Tone]:
    """Ink as what differs from the median of the picture's border, darker or lighter, whichever differs more."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    difference = grey - np.median(border)
    if abs(difference.min()) > difference.max():
        difference = -difference
    yield from _if_any("border", grey, np.maximum(difference, 0))


def _against_paper(grey: Ink, window: float) -> tuple[Ink, Ink]:
    """How much darker each pixel is than the paper around it: as a share of the paper's brightness, and in grey levels.

    The paper is a morphological closing: it fills what is narrower than the window and leaves edges of light, such as
    a shadow's or a sheet's, where they are.
    """
    smooth = ndimage.gaussian_filter(grey, 0.7) if min(grey.shape) >= 64 else grey
    size = 2 * round(window * max(grey.shape) / 2) + 1
    paper = ndimage.grey_closing(smooth, size=(size, size))
    difference = np.maximum(paper - smooth, 0)
    return difference / np.maximum(paper, 0.2), difference


def _principal_colour(rgb: Float[np.ndarray, "h w 3"]) -> Ink | None:
    """The picture along the direction in which its colours vary most, if that tells more than grey does."""
    pixels = rgb.reshape(-1, 3)[:: max(1, rgb.size // 60_000)]
    values, vectors = np.linalg.eigh(np.cov(pixels.T, bias=True))
    grey = float(np.var(pixels @ LUMINANCE) / np.square(LUMINANCE).sum())
    if values[-1] < 1.5 * grey or values[-1] < 1e-4:
        return None
    along = (rgb - pixels.mean(0)) @ vectors[:, -1].astype(np.float32)
    low, high = np.quantile(along, (0.002, 0.998))
    return np.clip((along - low) / max(high - low, 0.25), 0, 1)


def without_lines(ink: Ink) -> Ink | None:
    """Ink without long thin lines, such as rules, margins and boxes, strokes mended where lines crossed them.

    None if there are no lines.
    """
    mask = ink > 0.5
    side = max(mask.shape)
    length, width = max(7, round(LINE * side)), max(3, round(LINE_WIDTH * side))
    thick = ndimage.maximum_filter(ndimage.minimum_filter(mask.astype(np.uint8), width), width + 2)
    lines = [_lines(mask, length, axis) & (thick == 0) for axis in (0, 1)]
    if lines[0].any() or lines[1].any():
        rest: Any = ndimage.label(mask & ~(lines[0] | lines[1]), structure=np.ones((3, 3)))
        lines = [_longer_than_strokes(line, rest[0], axis) for axis, line in enumerate(lines)]
    found = [(axis, line) for axis, line in enumerate(lines) if line.any()]
    if not found:
        return None
    result = ink.copy()
    for axis, line in found:
        cut: Any = ndimage.binary_dilation(line, iterations=2)
        result[cut] = 0
        size = (1, 2 * width + 1) if axis == 0 else (2 * width + 1, 1)
        mended = ndimage.grey_closing(result, size=size)
        result[cut] = mended[cut]
    return result


def _lines(mask: Mask, length: int, axis: int) -> Mask:
    """Runs of ink of at least `length` along an axis."""
    # A line may be tilted a little: it is looked for in a mask that is two pixels wider to each side.
    wide = ndimage.maximum_filter1d(mask.astype(np.uint8), 5, axis=1 - axis)
    run = ndimage.maximum_filter1d(ndimage.minimum_filter1d(wide, length, axis=axis), length, axis=axis)
    return (run > 0) & mask


def _longer_than_strokes(line: Mask, others: Any, axis: int) -> Mask:
    """The lines that are clearly longer than all they touch of the labelled rest; the others are strokes of digits.

    The foot of a two is such a stroke.
    """
    labelled: Any = ndimage.label(line, structure=np.ones((3, 3)))
    extents = [box[axis].stop - box[axis].start for box in ndimage.find_objects(others)]
    result = line.copy()
    for i, box in enumerate(ndimage.find_objects(labelled[0]), start=1):
        around = tuple(slice(max(0, cut.start - 2), cut.stop + 2) for cut in box)
        own = labelled[0][around] == i
        touched = np.unique(others[around][ndimage.binary_dilation(own, np.ones((3, 3)), iterations=2)])
        longest = max((extents[j - 1] for j in touched if j), default=0)
        if box[axis].stop - box[axis].start < STICKS_OUT * longest:
            result[around][own] = False
    return result
