import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mnist_flax import data
from mnist_flax.errors import UserError
from mnist_flax.reading import image


def stroke(size=(640, 480), ground=(250, 240, 200), ink=(20, 20, 90), mode="RGB", width=12):
    """A slanted stroke off the centre: a one."""
    picture = Image.new(mode, size, ground)
    ImageDraw.Draw(picture).line([(400, 100), (380, 300)], fill=ink, width=width)
    return picture


def drawing(picture):
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return image.draw(image.decode(file.getvalue()))


@pytest.mark.parametrize(
    "picture",
    [
        stroke(),
        stroke(ground=(0, 0, 0), ink=(255, 255, 255)),
        stroke(mode="L", ground=120, ink=60),
        stroke(mode="RGBA", ground=(0, 0, 0, 0), ink=(0, 0, 0, 255)),
        stroke(mode="RGBA", ground=(0, 0, 0, 0), ink=(255, 255, 255, 255)),
        stroke(size=(3000, 2000)),
        stroke(width=1),
    ],
    ids=["dark on light", "light on dark", "faint", "dark on nothing", "light on nothing", "large", "hairline"],
)
def test_a_stroke_becomes_what_mnist_would_have_drawn(picture):
    pixels, verdict = drawing(picture)
    assert verdict == "digit"
    rows, columns = np.flatnonzero((pixels > 100).any(1)), np.flatnonzero((pixels > 100).any(0))
    assert 17 <= rows[-1] - rows[0] + 1 <= 20
    assert 2 <= columns[-1] - columns[0] + 1 <= 7
    mass = pixels.astype(float)
    centre = [(mass.sum(1 - axis) * np.arange(28)).sum() / mass.sum() for axis in (0, 1)]
    assert np.abs(np.array(centre) - 13.5).max() <= 1
    assert pixels.max() == 255


def test_mnist_images_come_through_as_they_are():
    images = data.load("digits", None, 0).test.images
    drawn = [image.draw(picture.astype(np.float32) / 255) for picture in images]
    assert np.mean([verdict == "digit" for _, verdict in drawn]) > 0.95
    pairs = [(pixels, picture) for (pixels, _), picture in zip(drawn, images, strict=True) if pixels is not None]
    assert np.mean([np.corrcoef(pixels.ravel(), picture.ravel())[0, 1] for pixels, picture in pairs]) > 0.85


def test_no_ink_and_several_digits():
    assert drawing(Image.new("L", (100, 100), 200)) == (None, "no ink")
    noise = np.random.RandomState(0).randint(198, 203, (100, 100)).astype(np.uint8)
    assert drawing(Image.fromarray(noise)).verdict == "no ink"
    two = stroke()
    ImageDraw.Draw(two).line([(200, 100), (200, 300)], fill=(20, 20, 90), width=12)
    assert drawing(two) == (None, "several digits")
    speck = stroke()
    ImageDraw.Draw(speck).ellipse([50, 50, 53, 53], fill=(20, 20, 90))
    assert drawing(speck).verdict == "digit"
    np.testing.assert_array_equal(drawing(speck).pixels, drawing(stroke()).pixels)


@pytest.mark.parametrize(
    ("dtype", "ground", "ink", "suffix"),
    [
        *((np.uint16, 60000, 20000, "png"), (np.uint16, 3000, 900, "tiff"), (np.int32, 200000, 0, "tiff")),
        *((np.float32, 0.9, 0.1, "tiff"), (np.float32, np.nan, 200, "tiff")),
    ],
)
def test_pixels_of_more_than_eight_bits(dtype, ground, ink, suffix):
    file = io.BytesIO()
    dark = np.asarray(stroke(mode="L", ground=255, ink=0)) < 128
    Image.fromarray(np.where(dark, ink, ground).astype(dtype)).save(file, format=suffix)
    np.testing.assert_allclose(image.draw(image.decode(file.getvalue())).pixels, drawing(stroke()).pixels, atol=2)


def test_a_sideways_photograph_is_turned_upright():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it as taken
    stroke().transpose(Image.Transpose.ROTATE_90).save(file, format="PNG", exif=exif)
    np.testing.assert_allclose(image.draw(image.decode(file.getvalue())).pixels, drawing(stroke()).pixels, atol=60)


@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from(["PNG", "GIF", "BMP", "TIFF", "JPEG", "WEBP"]))
def test_fuzz_image_files(noise, position, file_format):
    file = io.BytesIO()
    stroke(size=(60, 40)).save(file, format=file_format)
    data = file.getvalue()
    damaged = data[:position] + noise + data[position + len(noise) :]
    try:
        grey = image.decode(damaged)
    except UserError:
        return
    assert image.draw(grey).verdict in {"digit", "no ink", "several digits"}
