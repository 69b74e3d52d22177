import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

import mnist_flax
from benchmarks.reading import photographs
from benchmarks.reading.photographs import Answer, Picture, ask, named, outcome, pictures, table
from benchmarks.reading.synthetic.kinds import INK, KINDS, NONE, ONLY_FITTED, SEVERAL, STROKES, family, is_fitted
from benchmarks.reading.synthetic.strokes import Digits, strokes, thinned
from benchmarks.release import reading_weights
from benchmarks.release.reading_weights import Ways, cross_validated, fit, strongest, surprise
from mnist_flax import data
from mnist_flax.reading.scoring import WEIGHTS


@pytest.fixture(scope="module")
def digits():
    return Digits(data.load("digits", None, None))


@pytest.fixture(scope="module")
def mnist_digits(mnist_dir):
    return Digits(data.load("mnist", mnist_dir, None), clear=True)


@pytest.mark.parametrize("kind", [*KINDS, *ONLY_FITTED])
def test_each_kind_makes_images_with_their_labels(digits, kind):
    [picture] = pictures(kind, digits, seed=0, count=1)
    with Image.open(io.BytesIO(picture.data)) as image:
        assert picture.suffix in Image.registered_extensions()
        assert image.format == Image.registered_extensions()[picture.suffix]
        image.draft("L", (400, 400))
        image.load()
    assert set(picture.labels) <= set("0123456789")
    assert (len(picture.labels) == 0) == (kind in NONE or "shapes" in kind)
    assert (len(picture.labels) > 1) == (kind in SEVERAL or kind.startswith(("digits", "exponent")))


# Kinds that simpler readers answer badly: they name a line, an edge or a shadow, find no ink, or give up.
HARD = [
    *("graph paper, dark, pen", "graph paper, pale, pencil", "blank dotted paper", "typed text", "equal squares"),
    *("crumbs", "3 % salt and pepper", "red margin line and rules", "red margin line", "black vertical rule"),
    *("book gutter", "dark strip at an edge", "line below", "underlined", "shadow 0.5, pen", "shadow 0.6, ballpoint"),
    *("shadow 0.7, pencil", "light falls to 0.3", "one above the other", "grid of 3×3 images", "exponent"),
    *("sheet on a dark desk", "figure with a white margin", "screenshot of a window", "card on nothing"),
    *("turned page with transparent corners", "rounded corners", "float TIFF, 0 to 1.02", "float TIFF, 0 to 3"),
    *("float TIFF, standardised", *INK, "JPEG of 50 megapixels", "animated GIF, first frame empty", *STROKES),
    *("form box", "form box touched by the digit", "form box, left and bottom line", "frame at the image's edge"),
    *("8 to 12 pixels", "touching pair", "printed digit", "printed row", "stripes"),
    *("telephone number", "scan with black borders", "figure with axes"),
]
HARDEST = ("one above the other", "form box touched by the digit", "touching pair")  # of two, one is read


@pytest.mark.parametrize("kind", HARD)
def test_hard_kinds_are_read(mnist_digits, kind, tmp_path):
    network = mnist_flax.load()
    first, second = (ask(network, picture, tmp_path) for picture in pictures(kind, mnist_digits, seed=22, count=2))
    outcomes = [first.outcome, second.outcome]
    assert "right" in outcomes if kind in HARDEST else outcomes == ["right", "right"]


def test_the_weights_tell_right_ways_from_others():
    """On these pages the right way, if there is one, has the highest first feature; the second says nothing."""
    rng, count = np.random.default_rng(0), len(WEIGHTS)
    pages = []
    for i in range(60):
        features = np.zeros((4, count + 1))
        features[:3, :2], features[:3, -1] = rng.standard_normal((3, 2)), 1
        right = np.arange(4) == (3 if i % 3 == 0 else features[:3, 0].argmax())
        features[:3, 0] += 3 * right[:3]
        pages.append(Ways(features, right))
    weights = fit(pages, penalty=0.05)
    assert weights[0] > 1 > abs(weights[1])
    assert weights[-1] < 0  # without its bonus no way is as good as naming nothing
    chosen = [page.right[(page.features @ weights).argmax()] for page in pages]
    assert np.mean(chosen) > 0.9


def test_weights_are_judged_by_families_that_they_were_not_fitted_to():
    """A feature that each family has for itself tells its right ways, and nothing of those of others."""
    pages = {}
    for i in range(5):
        features = np.zeros((2, len(WEIGHTS) + 1))
        features[0, i] = 1
        pages[f"family {i}"] = pages[f"family {i}, again"] = [Ways(features, np.array([True, False]))] * 20
    every = [page for kind in pages.values() for page in kind]
    assert surprise(fit(every, penalty=0.01), every)[0].mean() < 0.05
    assert cross_validated(pages, penalty=0.01) == pytest.approx(np.log(2))


def test_the_strongest_penalty_within_a_standard_error_is_taken():
    around = np.array([-1.0, 1.0] * 50)
    assert strongest({0.1: 2 + around, 0.2: 1.95 + around, 0.4: 2.04 + around, 0.8: 2.06 + around}) == 0.4


def test_nothing_that_measures_the_weights_is_fitted_to(monkeypatch, capsys):
    """Only kinds of the fitted half, digits that the network was not trained on, and no test image."""
    dataset, fitted = data.load("digits", None, None), []

    def drawn(kind, digits, seed, count):
        assert digits.images is dataset.validation.images
        assert not digits.clear
        assert seed != photographs.parse([]).seed
        fitted.append(kind)
        yield Picture(kind, "one digit", b"", ".png", ("3",))

    page = Ways(np.eye(2, len(WEIGHTS) + 1), np.array([True, False]))
    monkeypatch.setattr(reading_weights.data, "load", lambda name, folder, val_size: dataset)
    monkeypatch.setattr(reading_weights, "pictures", drawn)
    monkeypatch.setattr(reading_weights, "ways_to_read", lambda *_: page)
    reading_weights.main([])
    assert fitted == [*filter(is_fitted, KINDS), *ONLY_FITTED]
    assert not KINDS.keys() & ONLY_FITTED.keys()
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{len(fitted)} of {len(fitted)} pictures")


def test_variants_of_a_kind_stay_together_and_each_group_is_on_both_sides():
    sides = {}
    for kind in KINDS:
        sides.setdefault(family(kind), set()).add(is_fitted(kind))
    assert all(len(side) == 1 for side in sides.values())
    for group in (NONE, SEVERAL, KINDS.keys() - NONE.keys() - SEVERAL.keys()):
        assert 0.3 < np.mean([is_fitted(kind) for kind in group]) < 0.7


@pytest.mark.parametrize(("split", "clear"), [("validation", False), ("test", False), ("test", True)])
def test_any_digit_of_the_split_is_dealt_or_only_clear_ones(split, clear):
    """Every second label is wrong: its image is not clearly of its class."""
    dataset = data.load("digits", None, None)
    images, labels = getattr(dataset, split)
    is_wrong = np.arange(len(labels), dtype=labels.dtype) % 2
    dataset = dataclasses.replace(dataset, **{split: data.Examples(images, (labels + is_wrong) % 10)})
    places = {image.tobytes(): i for i, image in enumerate(images)}
    rng, digits = np.random.RandomState(0), Digits(dataset, split, clear=clear)
    wrong = sum(is_wrong[places[digits.deal(rng)[0].tobytes()]] for _ in range(20))
    assert wrong == 0 if clear else wrong > 3


def test_a_kind_depends_on_its_seed_alone(digits):
    first, second = pictures("shadow of a hand", digits, seed=0, count=2)
    list(pictures("row", digits, seed=0, count=1))
    assert list(pictures("shadow of a hand", digits, seed=0, count=1)) == [first]
    [other] = pictures("shadow of a hand", digits, seed=1, count=1)
    assert len({first.data, second.data, other.data}) == 3


def test_each_class_is_dealt_once_in_ten(digits):
    rng = np.random.RandomState(0)
    digits.shuffle()
    for _ in range(2):
        assert sorted(digits.deal(rng)[1] for _ in range(10)) == list("0123456789")


def test_thinned_strokes_are_lines_with_the_same_ends():
    mask = np.zeros((20, 30), bool)
    mask[7:13, 4:26] = True
    thin = thinned(mask)
    assert (thin.sum(0) <= 1).all()
    assert np.ptp(np.flatnonzero(thin.any(0))) > 14
    assert not (thin & ~mask).any()


@pytest.mark.parametrize("width", [0.02, 0.1, 0.2])
def test_a_pen_is_as_wide_as_asked(width):
    image = np.zeros((28, 28), np.uint8)
    image[4:24, 12:15] = 255
    cover = strokes(image, 200, width)
    assert cover[50:150].sum(1) == pytest.approx(200 * width, abs=3)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"digit": "4", "digits": [{"digit": "4"}]}, ("4",)),
        ({"digit": None, "digits": [{"digit": "1"}, {"digit": "0"}]}, ("1", "0")),
        ({"digit": None, "digits": []}, ()),
    ],
)
def test_named_digits_are_found_in_an_answer(result, expected):
    assert named(result) == expected


@pytest.mark.parametrize(
    ("labels", "found", "expected"),
    [
        ("4", "4", "right"),
        ("4", "9", "wrong"),
        ("4", "41", "wrong"),
        ("4", "", "refused"),
        ("42", "42", "right"),
        ("42", "24", "partly"),
        ("42", "4", "partly"),
        ("42", "", "refused"),
        ("", "", "right"),
        ("", "1", "wrong"),
    ],
)
def test_outcome(labels, found, expected):
    assert outcome(tuple(labels), tuple(found)) == expected


def test_a_reader_that_raises_has_crashed(monkeypatch, tmp_path):
    def fail(data):
        raise ValueError(data)

    monkeypatch.setattr("mnist_flax.reading.answers.decode", fail)
    answer = ask(mnist_flax.load(), Picture("kind", "one digit", b"data", ".png", ("3",)), tmp_path)
    assert answer[1:3] == ((), "crashed")


def test_table_has_a_total_for_each_group_by_whether_weights_were_fitted_with_its_kinds():
    one, none = Picture("pen", "one digit", b"", ".png", ("3",)), Picture("noise", "no digit", b"", ".png", ())
    fitted = Picture("ballpoint", "one digit", b"", ".png", ("3",))
    answers = [Answer(one, ("3",), "right", 0.1), Answer(one, ("5",), "wrong", 0.3), Answer(none, (), "right", 0.1)]
    lines = table([*answers, Answer(fitted, (), "refused", 0.1)]).splitlines()
    assert lines[2] == "| ballpoint | yes | 1 |  |  |  | 1 |  | 100 |"
    assert lines[3] == "| **one digit** | yes | 1 |  |  |  | 1 (100.0%) |  | 100 |"
    assert lines[4] == "| pen | no | 2 | 1 |  | 1 |  |  | 200 |"
    assert lines[5] == "| **one digit** | no | 2 | 1 (50.0%) |  | 1 (50.0%) |  |  | 200 |"
    assert lines[7] == "| **no digit** | no | 1 | 1 (100.0%) |  |  |  |  | 100 |"
    assert len(lines) == 8


def test_command_writes_pictures_and_answers(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(photographs.data, "load", lambda *_: data.dataset.load("digits", None, None))
    arguments = [
        "--kinds",
        "pen",
        "noise",
        "--per-kind",
        "2",
        "--save",
        str(tmp_path),
        "--json",
        str(tmp_path / "a.json"),
    ]
    photographs.main(arguments)
    assert "| **one digit** | no | 2 |" in capsys.readouterr().out
    assert len(list(tmp_path.glob("*_label*"))) == 4
    assert (tmp_path / "a.json").read_text().count('"outcome"') == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--per-kind", "0"], "it must be at least 1"), (["--kinds", "fax"], "there is no kind 'fax'")],
)
def test_mistakes_are_answered_in_one_sentence(capsys, arguments, message):
    with pytest.raises(SystemExit):
        photographs.main(arguments)
    assert message in capsys.readouterr().err


def test_kinds_are_chosen_by_name_or_part():
    assert photographs.matching("pen") == ["pen"]
    assert photographs.matching("in two strokes") == ["4 in two strokes"]
    assert photographs.matching("") == list(KINDS)
