import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, features

from benchmarks.reading.synthetic.image_files import EXIF_ORIENTATION, UNDO
from mnist_flax.errors import UserError
from mnist_flax.reading.image import WORKING_SIDE, decode

PAPER, INK = (250, 240, 200), (20, 20, 90)


def stroke(size=(200, 160), paper=PAPER, ink=INK, mode="RGB", width=12):
    """A slanted stroke off the centre: a one."""
    picture = Image.new(mode, size, paper)
    ImageDraw.Draw(picture).line([(120, 30), (110, 110)], fill=ink, width=width)
    return picture


def as_file(picture, file_format="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format=file_format, **options)
    return file.getvalue()


DARK = np.asarray(stroke(mode="L", paper=255, ink=0)) < 128


def grey(picture):
    return picture.rgb.mean(-1)


def shows_the_stroke(picture, contrast=0.3):
    """Whether the decoded stroke is where it was drawn, and darker than the paper."""
    values = grey(picture)
    assert values.shape == DARK.shape
    return values[~DARK].min() - values[DARK].max() > contrast


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM"])  # PPM: also PGM and PBM
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_formats_and_modes(file_format, mode):
    if (file_format, mode) == ("PPM", "P"):
        pytest.skip("the format has no palettes")
    options = {"lossless": True} if file_format == "WEBP" else {}
    picture = decode(as_file(stroke().convert(mode, dither=Image.Dither.NONE), file_format, **options))
    assert picture.scale == 1
    assert (picture.alpha == 1).all()
    assert shows_the_stroke(picture)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(mode):
    values = grey(decode(as_file(stroke().convert(mode), "JPEG", quality=95)))
    assert np.median(values[~DARK]) - np.median(values[DARK]) > 0.5


@pytest.mark.skipif(not features.check("avif"), reason="needs a Pillow that reads AVIF")
def test_avif():
    values = grey(decode(as_file(stroke(), "AVIF", quality=90)))
    assert np.median(values[~DARK]) - np.median(values[DARK]) > 0.5


def test_heic_says_how_it_can_be_read(monkeypatch):
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"it is a HEIC file: pip install pillow-heif, or save it as JPEG"):
        decode(data)


def test_heic():
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    file = io.BytesIO()
    heif.from_pillow(stroke()).save(file, quality=95)
    values = grey(decode(file.getvalue()))
    assert np.median(values[~DARK]) - np.median(values[DARK]) > 0.5


@pytest.mark.parametrize(
    ("dtype", "paper", "ink", "file_format"),
    [
        (np.uint16, 60000, 20000, "PNG"),
        (np.uint16, 3000, 900, "TIFF"),
        (np.int32, 200000, 0, "TIFF"),
        (np.float32, 0.9, 0.1, "TIFF"),
        (np.float32, 1.02, -0.01, "TIFF"),  # resampling overshoots
        (np.float32, 1.02, 0.0, "TIFF"),
        (np.float32, 3.0, 0.0, "TIFF"),
        (np.float32, 2.82, -0.42, "TIFF"),  # standardised
        (np.float32, 250, 3, "TIFF"),
    ],
)
def test_pixels_of_more_than_eight_bits(dtype, paper, ink, file_format):
    values = np.where(DARK, ink, paper).astype(dtype)
    assert shows_the_stroke(decode(as_file(Image.fromarray(values), file_format)))


def test_infinite_and_missing_levels_are_black():
    values = np.where(DARK, np.nan, 200).astype(np.float32)
    values[0, 0] = np.inf
    picture = decode(as_file(Image.fromarray(values), "TIFF"))
    assert np.isfinite(picture.rgb).all()
    assert grey(picture)[DARK].max() == grey(picture)[0, 0] == 0


@pytest.mark.parametrize("ink", [0, 255])
def test_under_transparent_pixels_is_the_colour_of_the_opaque_ones(ink):
    picture = decode(as_file(stroke(mode="RGBA", paper=(0, 0, 0, 0), ink=(ink, ink, ink, 255))))
    assert (picture.alpha == DARK).all()
    assert np.ptp(picture.rgb) == 0
    opaque = decode(as_file(stroke().convert("RGBA")))
    assert shows_the_stroke(opaque)
    assert decode(as_file(Image.new("RGBA", (9, 9)))).alpha.max() == 0


def test_colours_are_kept():
    picture = decode(as_file(stroke()))
    np.testing.assert_allclose(picture.rgb[0, 0], np.array(PAPER) / 255, atol=1e-6)
    np.testing.assert_allclose(picture.rgb[60, 116], np.array(INK) / 255, atol=1e-6)


def test_empty_first_frames_are_passed_over():
    frames = [
        Image.new("RGB", (200, 160), PAPER),
        Image.new("RGB", (200, 160), PAPER),
        stroke(),
        Image.new("RGB", (200, 160)),
    ]
    picture = decode(as_file(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert shows_the_stroke(picture)
    blank = decode(as_file(frames[0], "TIFF", save_all=True, append_images=frames[:1]))
    assert np.ptp(blank.rgb.reshape(-1, 3), axis=0).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_sideways_photograph_is_turned_upright(orientation):
    picture, exif = stroke(), Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    if orientation in UNDO:
        picture = picture.transpose(UNDO[orientation])
    assert shows_the_stroke(decode(as_file(picture, "PNG", exif=exif)))


def test_large_pictures_are_reduced_to_working_size():
    picture = decode(as_file(stroke().resize((2000, 1600))))
    assert picture.rgb.shape == (round(0.8 * WORKING_SIDE), WORKING_SIDE, 3)
    assert picture.scale == pytest.approx(2000 / WORKING_SIDE)


def test_a_huge_jpeg_is_decoded_at_a_fraction_of_its_size():
    data = as_file(stroke().resize((8160, 6528)), "JPEG")
    picture = decode(data)
    assert max(picture.rgb.shape) <= WORKING_SIDE
    assert picture.scale * picture.rgb.shape[1] == pytest.approx(8160)
    with pytest.raises(UserError, match="it has 9000×9000 pixels, more than 50,000,000"):
        decode(as_file(Image.new("1", (9000, 9000))))
    with pytest.raises(UserError, match="it has 200×160 pixels, more than 1,000"):
        decode(as_file(stroke()), max_pixels=1000)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 2), (8, 8)])
def test_tiny_pictures(size):
    picture = decode(as_file(Image.new("L", size, 77)))
    assert picture.rgb.shape == (size[1], size[0], 3)


@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from(["PNG", "GIF", "BMP", "TIFF", "JPEG", "WEBP"]))
def test_fuzz_image_files(noise, position, file_format):
    data = as_file(stroke().resize((60, 40)), file_format)
    damaged = data[:position] + noise + data[position + len(noise) :]
    try:
        picture = decode(damaged)
    except UserError:
        return
    assert picture.rgb.shape[:2] == picture.alpha.shape
    for values in (picture.rgb, picture.alpha):
        assert np.isfinite(values).all()
        assert 0 <= values.min() <= values.max() <= 1.001
