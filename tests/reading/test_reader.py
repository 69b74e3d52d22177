import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

import mnist_flax
from benchmarks.reading.synthetic import layouts
from benchmarks.reading.synthetic.strokes import cropped
from mnist_flax import data
from mnist_flax.reading.drawing import as_it_is, draw
from mnist_flax.reading.image import Picture, decode, of_grey
from mnist_flax.reading.reader import read


@pytest.fixture(scope="module")
def network():
    return mnist_flax.load()


# Strokes in a square of 1: row and column of points that a pen goes through.
ROUND = np.linspace(0, 2 * np.pi, 17)
STROKES = {
    "0": [list(zip(0.5 - 0.5 * np.cos(ROUND), 0.5 + 0.3 * np.sin(ROUND), strict=True))],
    "1": [[(0, 0.55), (0.5, 0.5), (1, 0.45)]],
    "2": [[(0.2, 0.2), (0.03, 0.4), (0.05, 0.65), (0.3, 0.75), (0.6, 0.5), (0.97, 0.15)], [(0.97, 0.15), (0.97, 0.85)]],
    "3": [
        [(0.1, 0.2), (0, 0.5), (0.12, 0.75), (0.35, 0.7), (0.47, 0.42)],
        [(0.47, 0.42), (0.55, 0.72), (0.78, 0.8), (0.98, 0.5), (0.92, 0.15)],
    ],
    "4": [[(0, 0.35), (0.6, 0.12), (0.6, 0.9)], [(0.15, 0.7), (1, 0.65)]],
    "5": [
        [(0, 0.8), (0, 0.25), (0.42, 0.2)],
        [(0.42, 0.2), (0.4, 0.55), (0.6, 0.82), (0.85, 0.75), (1, 0.45), (0.93, 0.15)],
    ],
    "6": [[(0, 0.65), (0.3, 0.35), (0.7, 0.2), (0.98, 0.45), (0.8, 0.75), (0.55, 0.6), (0.6, 0.25)]],
    "7": [[(0.02, 0.15), (0.02, 0.85)], [(0.02, 0.85), (0.5, 0.55), (1, 0.4)]],
    "8": [
        [(0.05, 0.7), (0, 0.45), (0.2, 0.25), (0.5, 0.52), (0.78, 0.78), (1, 0.5), (0.8, 0.22), (0.5, 0.5)],
        [(0.5, 0.5), (0.25, 0.75), (0.05, 0.7)],
    ],
    "9": [
        [(0.1, 0.72), (0, 0.45), (0.2, 0.25), (0.45, 0.4), (0.4, 0.65), (0.1, 0.72)],
        [(0.1, 0.72), (0.6, 0.7), (1, 0.55)],
    ],
}


def pen(label, size, width):
    """A digit, `size` high, drawn with a pen of a share of this."""
    straight = label in "17" or label == "4"
    lines = [np.array(line, float) for line in STROKES[label]]
    lines = [line if straight or len(line) < 4 else layouts.curve(line) for line in lines]
    return cropped(layouts.drawn((2 * size, 2 * size), [size * (line + 0.5) for line in lines], width * size))


def sheet(places, shape=(300, 400), width=0.09):
    """A page with digits, and their boxes (left, top, right, bottom); places: label, (row, column), size."""
    page, boxes = np.zeros(shape, np.float32), []
    for label, middle, size in places:
        top, left, bottom, right = layouts.put(page, pen(label, size, width), middle)
        boxes.append((left, top, right, bottom))
    return page, boxes


def picture(cover, ink=0.1, paper=0.95):
    """Ink on paper as the reader takes it, from a file."""
    values = np.rint(255 * (paper + (ink - paper) * cover)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, format="PNG")
    return decode(file.getvalue())


def named(page):
    """The digits of each line."""
    lines = {}
    for digit in page.digits:
        lines[digit.line] = lines.get(digit.line, "") + str(digit.label)
    return [lines[line] for line in sorted(lines)]


STYLES = {
    "dark on light": {},
    "light on dark": {"ink": 0.9, "paper": 0.1},
    "faint": {"ink": 0.7, "paper": 0.85},
    "on grey": {"ink": 0.3, "paper": 0.5},
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("label", "0123456789")
def test_a_digit_in_any_tone(network, label, style):
    page = read(network, picture(sheet([(label, (140, 210), 150)])[0], **STYLES[style]))
    assert (named(page), page.verdict) == ([label], "digit")
    assert page.digits[0].pixels.max() == 255
    assert page.digits[0].probabilities.argmax() == int(label)


@pytest.mark.parametrize(("size", "width"), [(40, 0.12), (150, 0.03), (150, 0.17), (280, 0.09)])
@pytest.mark.parametrize("label", "0257")
def test_a_digit_of_any_size_and_pen(network, label, size, width):
    page = read(network, picture(sheet([(label, (150, 200), size)], width=width)[0]))
    assert named(page) == [label]


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_in_mnist_geometry_is_not_drawn_again(network, turned):
    drawing = draw(pen("5", 60, 0.12))
    page = read(network, of_grey((255 - drawing if turned else drawing) / np.float32(255)))
    assert named(page) == ["5"]
    np.testing.assert_array_equal(page.digits[0].pixels, drawing)


def test_what_is_drawn_otherwise_is_not_taken_as_it_is():
    drawing = draw(pen("5", 60, 0.12)) / np.float32(255)
    small = np.pad(Image.fromarray(drawing).resize((20, 20)), 4)
    for other in (np.zeros((28, 28)), np.ones((28, 28)), drawing[:, 1:], np.roll(drawing, 2, axis=1), small):
        assert as_it_is(np.asarray(other, np.float32)) is None


def test_mnist_images_are_read(network, mnist_dir):
    images, labels = (values[:500] for values in data.load("mnist", mnist_dir, None).test)
    found = [named(read(network, of_grey(image / np.float32(255)))) for image in images]
    assert sum(digits == [str(label)] for digits, label in zip(found, labels, strict=True)) >= 496


def test_several_digits_in_reading_order(network):
    row = [("4", (140, 80), 100), ("2", (160, 200), 110), ("7", (150, 320), 95)]
    page = read(network, picture(sheet(row)[0]))
    assert (named(page), page.verdict) == (["427"], "several digits")
    lines = [("3", (80, 110), 90), ("0", (90, 290), 90), ("8", (220, 100), 90), ("5", (215, 300), 90)]
    assert named(read(network, picture(sheet(lines[::-1])[0]))) == ["30", "85"]
    column = [("6", (80, 150), 100), ("9", (220, 150), 100)]
    assert named(read(network, picture(sheet(column)[0]))) == ["6", "9"]


@pytest.mark.parametrize("row", [80, 100, 130])
def test_an_exponent_is_a_digit_after_its_base(network, row):
    page, _ = sheet([("5", (180, 150), 120), ("2", (row, 230), 55)])
    assert named(read(network, picture(page))) == ["52"]


@pytest.mark.parametrize("name", layouts.IN_STROKES)
@pytest.mark.parametrize("seed", range(3))
def test_strokes_that_do_not_touch_are_one_digit(network, name, seed):
    cover, [label] = layouts.in_strokes(name)(np.random.RandomState(seed), None, (300, 300), 0.1)
    assert named(read(network, picture(cover))) == [label]


LINES = {
    "frame": [((60, 70), (60, 330)), ((240, 70), (240, 330)), ((60, 70), (240, 70)), ((60, 330), (240, 330))],
    "margin": [((0, 60), (299, 60))],
    "rules": [((row, 0), (row, 399)) for row in range(30, 300, 40)],
    "underlined": [((230, 120), (230, 280))],
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("label", "258")
def test_lines_around_a_digit_are_none(network, name, label):
    cover, _ = sheet([(label, (150, 200), 120)])
    lines = layouts.drawn(cover.shape, [np.array(line, float) for line in LINES[name]], 2.0)
    shade = 0.5 if name == "rules" else 1.0
    assert named(read(network, picture(np.maximum(cover, shade * lines)))) == [label]


def test_no_ink(network):
    rng = np.random.RandomState(0)
    for grey in (
        np.full((100, 100), 0.8),
        np.full((1, 1), 0.5),
        0.8 + rng.uniform(-0.02, 0.02, (200, 300)),
    ):
        page = read(network, picture(np.zeros_like(grey), paper=grey))
        assert (page.digits, page.verdict, page.best) == ([], "no ink", None)


def test_light_that_falls_off_is_no_digit(network):
    grey = np.linspace(0.4, 0.9, 300)[None].repeat(200, 0)
    assert read(network, picture(np.zeros_like(grey), paper=grey)).digits == []


def test_a_network_without_reference_reads_too(network):
    plain = mnist_flax.Classifier(network.variables, network.card)
    assert named(read(plain, picture(sheet([("3", (140, 210), 150)])[0]))) == ["3"]


@pytest.mark.parametrize("factor", [1, 4])
@pytest.mark.parametrize("turned", [False, True])
def test_boxes_are_in_the_upright_files_pixels(network, factor, turned):
    cover, boxes = sheet([("2", (90, 100), 120), ("5", (200, 300), 120)])
    image = Image.fromarray(np.rint(255 * (1 - cover)).astype(np.uint8))
    image, file, exif = image.resize((400 * factor, 300 * factor)), io.BytesIO(), Image.Exif()
    if turned:
        exif[0x0112] = 6  # turn right to see it as taken
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(file, format="JPEG", quality=95, exif=exif)
    found = read(network, decode(file.getvalue())).digits
    assert len(found) == 2
    for digit, box in zip(found, boxes, strict=True):
        assert all(isinstance(edge, int) for edge in digit.box)
        np.testing.assert_allclose(digit.box, factor * np.array(box), atol=5 * factor)


THINGS = st.sampled_from(["text", "line", "dots", "square", "noise", "digit", "ellipse"])
SHADE = st.integers(0, 255)
PAGES = st.tuples(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    SHADE,
    st.lists(st.tuples(THINGS, SHADE, st.integers(0, 2**16)), max_size=4),
    st.booleans(),
)


def drawn(size, paper, things, transparent):
    """A page with things on it."""
    page = Image.new("L", size, paper)
    for thing, shade, seed in things:
        rng, draw = np.random.RandomState(seed), ImageDraw.Draw(page)
        (x, right), (y, bottom) = np.sort(rng.uniform(-0.1, 1.1, (2, 2)) * np.array(size)[:, None])
        match thing:
            case "text" | "digit":
                text = "The 7 quick\nbrown 42 foxes" if thing == "text" else str(rng.randint(10))
                draw.text((x, y), text, shade, ImageFont.load_default(rng.uniform(4, max(5, bottom - y))))
            case "line":
                draw.line([(x, y), (right, bottom)], shade, rng.randint(1, 12))
            case "dots":
                draw.point([tuple(point) for point in rng.uniform(0, 1, (rng.randint(400), 2)) * size], shade)
            case "square":
                draw.rectangle([x, y, right, bottom], shade if seed % 2 else None, shade, rng.randint(1, 9))
            case "ellipse":
                draw.ellipse([x, y, right, bottom], shade if seed % 2 else None, shade, rng.randint(1, 9))
            case "noise":
                noisy = np.asarray(page) + rng.normal(0, shade / 4, size[::-1])
                page = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if transparent:
        page = page.convert("LA")
        page.putalpha(Image.new("L", size, things[0][1] if things else 0))
    return page


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(PAGES)
def test_fuzz_pages_have_an_answer(network, made):
    file = io.BytesIO()
    drawn(*made).save(file, format="PNG")
    answered(network, decode(file.getvalue()))


def answered(network, seen: Picture):
    """Checks that what is said of a picture fits together."""
    page = read(network, seen)
    verdicts = {0: {"no ink", "unclear", "not like a digit"}, 1: {"digit"}}
    assert page.verdict in verdicts.get(len(page.digits), {"several digits"})
    if page.verdict == "no ink":
        assert page.best is None
    if page.best is None:  # no ink, or too many parts to draw
        assert not page.digits
    height, width = (side * seen.scale for side in seen.alpha.shape)
    for digit in page.digits:
        left, top, right, bottom = digit.box
        assert 0 <= left < right <= width + seen.scale
        assert 0 <= top < bottom <= height + seen.scale
