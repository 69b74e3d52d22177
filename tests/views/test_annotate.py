import io

import numpy as np
import pytest
from PIL import Image

from mnist_flax.reading.image import decode
from mnist_flax.views.annotate import COLOUR, LARGEST, annotated

TURNED = 0x0112  # EXIF's orientation


def answered(image, box=None, **options):
    """A file of an image, annotated with a digit in a box."""
    file = io.BytesIO()
    image.save(file, **{"format": "PNG"} | options)
    digits = [{"digit": "4", "probability": 0.9, "box": box, "line": 0}] if box else []
    return annotated(file.getvalue(), decode(file.getvalue()), {"digits": digits, "verdict": "no ink"})


def frame(image):
    """Left, top, right and bottom of the box: the columns and rows in which most is of its colour."""
    marked = (np.asarray(image) == COLOUR).all(-1)
    columns, rows = np.flatnonzero(marked.sum(0) > 50), np.flatnonzero(marked.sum(1) > 50)
    return columns[0], rows[-1], columns[-1]


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK", "I;16"])
def test_a_box_is_drawn_where_the_digit_is(mode):
    image = Image.new(mode, (400, 300), 0)
    box = [100, 80, 180, 220]
    left, bottom, right = frame(answered(image, box, format="TIFF"))
    assert (left, right, bottom) == pytest.approx((100, 180, 220), abs=5)


def test_large_pictures_are_reduced_and_small_ones_enlarged():
    assert answered(Image.new("L", (4000, 1000)), [0, 0, 400, 400], format="JPEG").size == (LARGEST, 400)
    assert answered(Image.new("L", (28, 28)), [4, 4, 24, 24]).size == (420, 420)
    left, bottom, right = frame(answered(Image.new("L", (4000, 2000)), [1000, 800, 1800, 1600]))
    assert (left, right, bottom) == pytest.approx((400, 720, 640), abs=6)


def test_a_sideways_photograph_is_upright():
    exif = Image.Exif()
    exif[TURNED] = 6
    image = answered(Image.new("L", (400, 300)), [100, 200, 200, 300], exif=exif)
    assert image.size == (300, 400)
    left, _, right = frame(image)
    assert (left, right) == pytest.approx((100, 200), abs=5)


def test_the_answer_is_written_where_there_is_no_digit():
    marked = (np.asarray(answered(Image.new("L", (400, 300), 255))) == COLOUR).all(-1)
    assert marked[:30, :60].mean() > 0.3
    assert not marked[60:].any()


def test_labels_stay_in_the_picture():
    for box in ([0, 0, 40, 60], [370, 250, 400, 300]):
        assert answered(Image.new("L", (400, 300)), box).size == (400, 300)
