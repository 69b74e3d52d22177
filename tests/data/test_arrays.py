"""Data sets in files of arrays: what people have MNIST as, how it is laid out, and what is wrong with it."""

import contextlib
import gzip
import io
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st

from mnist_flax import data
from mnist_flax.data import arrays, idx
from mnist_flax.errors import UserError
from mnist_flax.reading.folder import load

RNG = np.random.default_rng(0)
LABELS = {"train": np.repeat(np.arange(10), 2).astype(np.uint8), "test": np.arange(10).astype(np.uint8)}
IMAGES = {s: RNG.integers(0, 256, (len(LABELS[s]), 28, 28)).astype(np.uint8) for s in LABELS}


def write(path: Path, content: bytes | str = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def assert_is_ours(path, *splits):
    assert arrays.is_there(path)
    names, found = arrays.read(path)
    assert (names, sorted(found)) == (tuple("0123456789"), sorted(splits))
    for split in splits:
        np.testing.assert_array_equal(found[split].images, IMAGES[split])
        np.testing.assert_array_equal(found[split].labels, LABELS[split])


def table(split="train", header="label", first=True, shown="{}", ink=IMAGES) -> str:
    pixels, labels = ink[split].reshape(len(LABELS[split]), -1), LABELS[split][:, None]
    rows = np.hstack([labels, pixels] if first else [pixels, labels]).tolist()
    names = [f"pixel{i}" for i in range(784)]
    head = [header, *names] if first else [*names, header]
    return "\n".join([*([",".join(head)] if header else []), *(",".join(map(shown.format, row)) for row in rows), ""])


def arff() -> str:
    attributes = "".join(f"@ATTRIBUTE pixel{i} real\n" for i in range(784)) + "@ATTRIBUTE class {0,1,2,3,4,5,6,7,8,9}\n"
    return f"% MNIST\n@RELATION mnist_784\n\n{attributes}\n@DATA\n{table(header='', first=False)}"


HEADERS, SHOWN = ("label", '"Label"', "class", ""), ("{}", "{}.0", '"{}"')
PACKINGS = {
    "csv": str.encode,
    "CSV": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "csv.gz": lambda t: gzip.compress(t.encode()),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("header", HEADERS)
def test_tables(tmp_path, header, first):
    for shown, (suffix, pack) in itertools.product(SHOWN, PACKINGS.items()):
        assert_is_ours(write(tmp_path / f"a.{suffix}", pack(table("train", header, first, shown))), "train")


def test_an_arff_file_is_a_table(tmp_path):
    assert_is_ours(write(tmp_path / "mnist_784.arff", arff()), "train")


def npz(change=lambda name, array: array, split_names=("train", "test")) -> bytes:
    file = io.BytesIO()
    ours = {f"x_{s}": IMAGES[s] for s in split_names} | {f"y_{s}": LABELS[s] for s in split_names}
    np.savez(file, **{name: change(name, array) for name, array in ours.items()})
    return file.getvalue()


SHAPES = {
    "as Keras": lambda name, array: array,
    "rows": lambda name, array: array.reshape(len(array), -1),
    "channels": lambda name, array: array[..., None],
    "int64": lambda name, array: array.astype(np.int64),
    "floats": lambda name, array: array.astype(np.float32),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_npz(tmp_path, shape):
    assert_is_ours(write(tmp_path / "mnist.npz", npz(SHAPES[shape])), "train", "test")
    assert_is_ours(tmp_path, "train", "test")  # alone in its folder


def idx_files(name: str) -> dict[str, bytes]:
    """The content of the four files, by name; `name` says how the first is called."""
    files = {}
    for file in idx.FILES:
        split = "test" if file.startswith("t10k") else "train"
        array = (IMAGES if "images" in file else LABELS)[split]
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        called = name.replace("train-images", file[: file.index("-idx")]).replace("idx3", file[-4:])
        files[called] = gzip.compress(content) if name.endswith(".gz") else content
    return files


def in_folder(root: Path, name: str, where: str) -> Path:
    for file, content in idx_files(name).items():
        write(root / where / file, content)
    return root


# Those of MNIST's page and torchvision, of Keras, and of Kaggle.
NAMES = [UBYTE := "train-images-idx3-ubyte", f"{UBYTE}.gz", DOTTED := "train-images.idx3-ubyte", f"{DOTTED}.gz"]


@pytest.mark.parametrize("where", [".", "raw", "MNIST/raw"])
@pytest.mark.parametrize("name", NAMES)
def test_idx_files_in_any_folder(tmp_path, name, where):
    assert_is_ours(in_folder(tmp_path, name, where), "train", "test")
    write(tmp_path / ".DS_Store")
    write(tmp_path / "__MACOSX" / where / UBYTE, b"resource fork")
    write(tmp_path / where / "README.md")
    assert_is_ours(tmp_path, "train", "test")


def test_a_sound_file_beside_a_damaged_one_is_taken(tmp_path):
    """As torchvision leaves them: packed and unpacked."""
    in_folder(in_folder(tmp_path, UBYTE, "raw"), f"{UBYTE}.gz", "raw")
    write(tmp_path / f"raw/{UBYTE}.gz", b"")
    assert_is_ours(tmp_path, "train", "test")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_only_what_is_missing_is_named(tmp_path, count):
    files = idx_files(UBYTE)
    for i, missing in enumerate(itertools.combinations(files, count)):
        for file in files.keys() - set(missing):
            write(tmp_path / str(i) / file, files[file])
        with pytest.raises(UserError) as raised:
            arrays.read(tmp_path / str(i))
        assert [file for file in files if file in str(raised.value)] == list(missing)


def test_of_several_data_sets_one_must_be_named(tmp_path):
    for dataset in ("MNIST", "FashionMNIST"):
        in_folder(tmp_path, UBYTE, f"{dataset}/raw")
    with pytest.raises(UserError, match=r"FashionMNIST/raw, .*/MNIST/raw: name the one that is meant by --dataset"):
        arrays.read(tmp_path)
    for name in ("a.csv", "b.csv"):
        write(tmp_path / "tables" / name, table())
    with pytest.raises(UserError, match=r"several files, a\.csv, b\.csv: name the one"):
        arrays.read(tmp_path / "tables")


@pytest.mark.parametrize("names", [("mnist_train.csv", "mnist_test.csv"), ("Training.csv", "testing.csv")])
def test_tables_of_splits(tmp_path, names):
    for split, name in zip(LABELS, names, strict=True):
        write(tmp_path / name, table(split))
    assert_is_ours(tmp_path, "train", "test")


def broken(name, array):
    """As if each image had another meaning."""
    return array / 255 if name.startswith("x") else array


DEFECTS = {
    "empty.csv": (b"", "0 columns"),
    "test.csv": (table().replace("label,", "").encode(), "784 columns|785"),
    "semicolons.csv": (table().replace(",", ";").encode(), "1 columns"),
    "words.csv": (table().replace("\n", "\nx", 2).encode(), "could not convert string 'x"),
    "large.csv": (table(shown="{}00").encode(), "cannot be read|not whole numbers from 0"),
    "one label.csv": ("\n".join(table().splitlines()[:3]).encode(), "1 labels: 2 to 10 are needed"),
    "ambiguous.csv": (table(header="", ink={"train": IMAGES["train"] % 2}).encode(), "which column is the label"),
    "header only.csv": (table().splitlines()[0].encode(), "has no images"),
    "bytes.csv": (bytes(range(256)), "cannot be read"),
    "packed.csv.gz": (gzip.compress(table().encode())[:-9], "damaged"),
    "empty.npz": (b"", "cannot be read"),
    "cut.npz": (npz()[:5000], "cannot be read"),
    "other.npz": (npz(split_names=("test",)), "no arrays x_train and y_train, but x_test, y_test"),
    "fractions.npz": (npz(broken), "not whole numbers from 0, black, to 255"),
    "binary.npz": (npz(lambda name, array: array > 9 if name[0] == "x" else array), "not whole numbers from 0"),
    "wide.npz": (npz(lambda name, array: np.pad(array, 2) if name == "x_train" else array), r"shape \(24, 32, 32\)"),
    "short.npz": (npz(lambda name, array: array[:9] if name == "y_train" else array), "20 images and 9 labels"),
    "one-hot.npz": (
        npz(lambda name, array: np.eye(10)[array] if name[0] == "y" else array),
        "20 images and 200 labels",
    ),
    "letters.npz": (npz(lambda name, array: np.arange(20) if name == "y_train" else array), "20 labels: 2 to 10"),
    "new.npz": (npz(lambda name, array: array + (name == "y_test")), "label 10 in its test split"),
    "objects.npz": (npz(lambda name, array: array.astype(object)), "cannot be read"),
    "mnist.parquet": (b"PAR1", r'python -c "import io, numpy, pandas'),
    "mnist.mat": (b"MATLAB", r'python -c "import numpy, scipy\.io'),
    "mnist.zip": (b"PK", "unpack it"),
    "mnist.pkl": (b"", "save x_train and y_train by numpy.savez"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_what_cannot_be_used_is_said_in_a_sentence(tmp_path, name):
    content, reason = DEFECTS[name]
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=reason) as raised:
        arrays.read(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


EDITS = st.lists(st.tuples(st.integers(0, 2**20), st.binary(max_size=8)), max_size=4)


@pytest.mark.filterwarnings("ignore")
@given(EDITS, st.integers(0, 40_000), st.sampled_from(["a.npz", "a.csv", "raw/train-images-idx3-ubyte"]))
def test_fuzz_files(tmp_path_factory, edits, cut, name):
    root = tmp_path_factory.getbasetemp() / "fuzz"
    file = root / name
    contents = {"a.npz": npz(), "a.csv": table().encode()} | {f"raw/{n}": c for n, c in idx_files(UBYTE).items()}
    for other in contents if name.startswith("raw") else ():
        write(root / other, contents[other])
    content = bytearray(contents[name])
    for position, noise in edits:
        content[position % len(content) : position % len(content) + len(noise)] = noise
    write(file, bytes(content[: cut or None]))
    with contextlib.suppress(UserError):
        arrays.read(root / "raw" if name.startswith("raw") else file)


def test_a_matlab_file_is_converted_as_the_sentence_says(tmp_path, monkeypatch):
    path = tmp_path / "mnist-original.mat"
    scipy.io.savemat(path, {"data": IMAGES["train"].reshape(20, -1).T, "label": LABELS["train"][None].astype(float)})
    with pytest.raises(UserError) as raised:
        arrays.read(path)
    monkeypatch.chdir(tmp_path)
    exec(str(raised.value).split('python -c "')[1].rstrip('"'))
    assert_is_ours(tmp_path / "mnist.npz", "train")


def test_mnist_is_the_same_whatever_it_is_in(mnist_dir, tmp_path):
    mnist = data.load("mnist", mnist_dir, None)
    (x_train, y_train), (x_test, y_test) = (getattr(data.load("mnist", mnist_dir, 0), s) for s in ("train", "test"))
    np.savez(tmp_path / "mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    for path in (tmp_path / "mnist.npz", mnist_dir / "downloads/manual"):
        dataset = load(os.path.relpath(path), None, None)
        assert (dataset.name, dataset.digest) == (str(path), mnist.digest)


def test_without_a_test_part_a_fifth_is_that_and_it_is_said(tmp_path):
    path = write(tmp_path / "train.csv", table())
    with pytest.warns(match=r"train\.csv has no test split: a fifth of its images, always the same 4, is the test set"):
        dataset = load(str(path), None, 1)
    assert [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] == [15, 1, 4]
