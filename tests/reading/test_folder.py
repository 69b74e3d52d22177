"""Folders of image files as data sets: how they are laid out, what is wrong with them, what is seen of each image."""

import io
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

import mnist_flax
from mnist_flax.data.folder import SPLITS, find
from mnist_flax.errors import UserError
from mnist_flax.reading.answers import answer, inputs
from mnist_flax.reading.folder import load
from mnist_flax.reading.image import SUFFIXES

pytestmark = pytest.mark.filterwarnings("ignore:.* has no test split")
NAMES = st.text("0123456789 abß-_é", min_size=1, max_size=6).filter(lambda name: name.strip() not in SPLITS)
CLASSES = st.lists(NAMES, min_size=2, max_size=10, unique=True)


def write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@st.composite
def layouts(draw):
    """The image files of a good folder, by split and class, as paths below it."""
    classes = draw(CLASSES)
    kinds = draw(st.sampled_from([[], ["train"], ["train", "validation"], ["train", "test", "validation"]]))
    spelling = draw(st.sampled_from([str.lower, str.upper, str.title]))
    called = {kind: st.sampled_from([name for name in SPLITS if SPLITS[name] == kind]) for kind in kinds}
    splits = [spelling(draw(name)) for name in called.values()] or [None]
    top = draw(st.sampled_from(["", "mnist", "a/b"]))  # a zip file's own folder
    files = st.lists(st.sampled_from([f"{name}{suffix}" for name in "aB9" for suffix in (".png", ".JPG", ".jfif")]))
    return {
        SPLITS[(split or "train").lower()]: {
            name: sorted(Path(top, split or "", name, file) for file in draw(files.filter(bool).map(set)))
            for name in (classes if split == splits[0] else draw(st.sets(st.sampled_from(classes), min_size=1)))
        }
        for split in splits
    }


def make(root: Path, layout) -> Path:
    shutil.rmtree(root, ignore_errors=True)
    for path in [file for classes in layout.values() for files in classes.values() for file in files]:
        write(root / path)
    return root


@settings(max_examples=30)
@given(layouts())
def test_every_image_is_found_under_its_split_and_class(tmp_path_factory, layout):
    root = make(tmp_path_factory.getbasetemp() / "good", layout)
    write(root / ".DS_Store")
    write(root / ".thumbnails/a.png")
    write(root / "__MACOSX/train/0/._a.png")
    for path in sorted({path.parent for classes in layout.values() for files in classes.values() for path in files}):
        write(root / path / "@eaDir/a.png/thumbnail.jpg")
    write(root / "README.txt")
    expected = {
        split: {name: [root / path for path in files] for name, files in classes.items()}
        for split, classes in layout.items()
    }
    assert find(root, SUFFIXES) == expected


def move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


# What can be wrong with a folder: each takes a split's folder and a class's folder in it, breaks something, and returns
# the path that the message must name.
DEFECTS = {
    "a class without images": lambda split, label: [file.unlink() for file in label.iterdir()] and label,
    "a class with other files only": lambda split, label: write(split / "more" / "a.txt").parent,
    "an image in no class": lambda split, label: write(split / "a.png"),
    "a folder in a class": lambda split, label: write(label / "inner" / "a.png").parent,
    "one class": lambda split, label: [shutil.rmtree(p) for p in split.iterdir() if p != label] and split,
    "eleven classes": lambda split, label: [write(split / f"{i} more" / "a.png") for i in range(10)] and split,
    "no class": lambda split, label: [shutil.rmtree(p) for p in split.iterdir()] and split,
}
DEFECTS_OF_SPLITS = {
    "another split": lambda root: write(root / "extra" / "a" / "a.png").parents[1],
    "an image in no split": lambda root: write(root / "a.png"),
    "two validation splits": lambda root: [write(root / s / "a" / "a.png") for s in ("val", "validation")] and root,
    "two training splits": lambda root: write(root / "Training" / "0" / "a.png") and root,
    "an empty split": lambda root: (root / "test").mkdir() or root / "test",
    "a split without classes": lambda root: write(root / "test" / "a.png"),
    "no training split": lambda root: move(root / "train", root / "test") or root,
    "a class only in the test split": lambda root: write(root / "test" / "a new one" / "a.png").parent,
}


def assert_refused(root: Path, named: Path) -> None:
    with pytest.raises(UserError) as raised:
        find(root, SUFFIXES)
    message = str(raised.value)
    assert re.search(rf"(^|\s){re.escape(str(named))}[\s:]", message)
    assert "\n" not in message


@settings(max_examples=60)
@given(layouts(), st.sampled_from(list(DEFECTS)), st.data())
def test_what_is_out_of_place_is_named(tmp_path_factory, layout, defect, data):
    root = make(tmp_path_factory.getbasetemp() / "bad", layout)
    classes = layout["train"]
    label = root / classes[data.draw(st.sampled_from(sorted(classes)))][0].parent
    split = label.parent
    assert_refused(root, DEFECTS[defect](split, label))


@pytest.mark.parametrize("defect", DEFECTS_OF_SPLITS)
def test_splits_that_are_out_of_place_are_named(tmp_path, defect):
    for name in "01":
        write(tmp_path / "train" / name / "a.png")
    assert_refused(tmp_path, DEFECTS_OF_SPLITS[defect](tmp_path))


HIGH = {
    "splits of another name": [("a/learn", "a/exam")],
    "two data sets": [("a/train", "a/test"), ("b/train", "b/test")],
    "as Kaggle's mnist-as-jpg": [("trainingSet/trainingSet", "trainingSample/trainingSample")],
}
FOUND = {"splits of another name": "learn", "two data sets": "a", "as Kaggle's mnist-as-jpg": "trainingSet/trainingSet"}


@pytest.mark.parametrize("layout", HIGH)
def test_a_level_too_high_the_data_set_that_is_meant_is_named(tmp_path, layout):
    """To move images up, as was once advised, would mix all digits."""
    for pair in HIGH[layout]:
        for split, name in itertools.product(pair, "01"):
            write(tmp_path / split / name / "a.png")
    with pytest.raises(UserError, match="if a data set is deeper, name it by --dataset: ") as raised:
        find(tmp_path, SUFFIXES)
    meant = str(raised.value).split("--dataset: ")[1].split(", ")
    assert any(path.endswith(FOUND[layout]) for path in meant)
    for path in meant:
        assert sorted(find(Path(path), SUFFIXES)["train"]) == ["0", "1"]
    assert "move" not in str(raised.value)


def test_an_image_beside_the_classes_of_an_unpacked_zip_file_is_named(tmp_path):
    for name in "01":
        write(tmp_path / "mnist" / name / "a.png")
    assert_refused(tmp_path, write(tmp_path / "mnist/a.png"))


def test_a_level_too_deep_is_told(tmp_path):
    path = write(tmp_path / "own/0/a.png")
    with pytest.raises(UserError, match=f"if {path.parent} is one, name the folder above it by --dataset"):
        find(path.parent, SUFFIXES)


def test_other_files_are_left_out_with_a_word(tmp_path):
    for name in "01":
        write(tmp_path / name / "a.png")
    write(tmp_path / "1" / "labels.csv")
    with pytest.warns(match=f"not those of images: {tmp_path}/1/labels.csv"):
        find(tmp_path, SUFFIXES)


DIGITS = load_digits()


def write_digits(root: Path, names: str, count: int) -> Path:
    """The first images of some digits, dark on white."""
    for name in names:
        (root / name).mkdir(parents=True)
        for i, image in enumerate(DIGITS.images[DIGITS.target == int(name)][:count]):
            Image.fromarray(np.rint(255 * (1 - image / 16)).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.filterwarnings("ignore:of .* the shipped network recognises no digit")
def test_images_are_what_predict_sees_and_splits_are_in_proportion(tmp_path):
    root, network = write_digits(tmp_path / "own", "013", 10), mnist_flax.load()
    dataset = load(f"{root}/", None, 3)
    assert (dataset.name, dataset.class_names, dataset.selection_split) == (str(root), tuple("013"), "validation")
    splits = dataset.train, dataset.validation, dataset.test
    assert [np.bincount(split.labels).tolist() for split in splits] == [[7, 7, 7], [1, 1, 1], [2, 2, 2]]
    seen = {
        inputs(answer(network, path).page)[0].tobytes(): dataset.class_names.index(path.parent.name)
        for path in root.glob("*/*")
    }
    for images, labels in splits:
        assert [seen[image.tobytes()] for image in images] == labels.tolist()
    assert load(str(root), None, 3).digest == dataset.digest
    (root / "3/9.png").rename(root / "0/10.png")
    assert load(str(root), None, 3).digest != dataset.digest
    for path in sorted((root / "0").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match="own has too few images of 0: none is left to train on"):
        load(str(root), None, 12)


def test_a_folder_with_splits_keeps_them(tmp_path, monkeypatch):
    for split, count in {"train": 4, "val": 2, "test": 3}.items():
        write_digits(tmp_path / "digits" / split, "38", count)
    monkeypatch.chdir(tmp_path)
    for val_size, expected in {None: ("validation", 8, 4), 4: ("validation", 8, 4), 0: ("test", 12, 6)}.items():
        dataset = load("./digits", None, val_size)
        assert dataset.name == str(tmp_path / "digits")  # not the data set of that name; found from any directory
        held_out = len(dataset.validation.labels)
        assert (dataset.selection_split, len(dataset.train.labels), held_out) == expected
        assert np.bincount(dataset.test.labels).tolist() == [3, 3]
    with pytest.raises(UserError, match=r"--val-size 3: .*/digits has a validation split, of 4 images"):
        load("./digits", None, 3)


def blank() -> Image.Image:
    return Image.new("L", (100, 100), 230)


def several_digits() -> Image.Image:
    page = Image.new("L", (300, 200), 240)
    for x in (60, 150, 240):
        ImageDraw.Draw(page).line([(x + 10, 40), (x, 160)], fill=30, width=10)
    return page


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


UNUSABLE = {
    "is not an image": b"no image",
    "not an image": b"",
    "is damaged": png(several_digits())[:300],
    "no digit is found in it: nothing is clearly darker": png(blank()),
    "several digits are found in it, 1 1 1": png(several_digits()),
}


def test_unusable_images_are_named(tmp_path):
    root = write_digits(tmp_path / "own", "01", 2)
    for i, (fault, content) in enumerate(UNUSABLE.items()):
        path = write(root / "1" / f"bad {i}.png", content)
        with pytest.raises(UserError) as raised:
            load(str(root), None, None)
        assert str(raised.value).startswith(f"cannot be trained on: {path} (")
        assert fault in str(raised.value)
        assert "\n" not in str(raised.value)
        path.unlink()
    for i, content in enumerate(UNUSABLE.values()):
        write(root / "1" / f"bad {i}.png", content)
    with pytest.raises(UserError, match=r"bad 0.png \(.*bad 1.png \(.*bad 2.png \(.*\) and 2 more; replace or remove"):
        load(str(root), None, None)


def test_what_is_not_recognised_is_trained_on_and_that_is_said(tmp_path):
    root, star = write_digits(tmp_path / "own", "02", 3), Image.new("L", (300, 300), 255)
    for end in ((30, 150), (270, 150), (150, 30), (150, 270), (60, 60), (240, 240), (60, 240), (240, 60)):
        ImageDraw.Draw(star).line([(150, 150), end], fill=0, width=14)
    path = write(root / "2" / "star.png", png(star))
    with pytest.warns(
        match=f"of 7 images, the shipped network recognises no digit in {path}; the likeliest part of it"
    ):
        dataset = load(str(root), None, 1)
    assert sum(len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)) == 7


def test_a_name_that_is_none_is_refused(tmp_path):
    for name in ("cifar", str(tmp_path / "nowhere")):
        with pytest.raises(
            UserError, match=f"{name} is neither a file or folder here nor one of the data sets auto, mnist"
        ):
            load(name, None, None)
