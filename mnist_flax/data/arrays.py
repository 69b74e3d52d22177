"""Data sets in files of arrays, which NumPy reads: MNIST's four IDX files, Keras's .npz, tables such as Kaggle's .csv.

Images are taken as they are: 28×28 grey levels from 0 to 255, light ink on a dark ground.
"""

import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped
from tqdm import tqdm

from mnist_flax.data import idx
from mnist_flax.data.examples import Examples
from mnist_flax.data.folder import SPLITS, folders_in, listed, some
from mnist_flax.data.geometry import NUM_CLASSES, SIDE
from mnist_flax.errors import UserError

TABLES = (".csv", ".csv.gz", ".arff")
SUFFIXES = (*TABLES, ".npz")
LABELS = {"label", "labels", "class", "target", "digit", "y"}  # what a table's header calls that column
_MOST = 2_000_000_000  # bytes of a file, unpacked; MNIST as a table has 128 million
_NPZ = "numpy.savez('mnist.npz', x_train={}, y_train={})"
# How to make an .npz of files that other programs read.
_OTHERS = {
    ".parquet": "import io, numpy, pandas, PIL.Image; d = pandas.read_parquet('{path}'); "
    + _NPZ.format("[numpy.array(PIL.Image.open(io.BytesIO(i['bytes']))) for i in d.image]", "d.label"),
    ".mat": "import numpy, scipy.io; d = scipy.io.loadmat('{path}'); " + _NPZ.format("d['data'].T", "d['label']"),
}


class Arrays(NamedTuple):
    """Images and labels as a file has them."""

    images: Shaped[np.ndarray, "..."]
    labels: Shaped[np.ndarray, "..."]


def is_there(root: Path) -> bool:
    """Whether a path is a file, or a folder of IDX files or tables, and not one of images."""
    return root.is_file() or (root.is_dir() and bool(_idx_folders(root) or _files(root)))


def read(root: Path) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The class names and splits in a file, or in a folder of files, for which `is_there` holds.

    Raises:
        UserError: a file is damaged or missing, of another type, or holds something else.
    """
    if root.is_file():
        found = _of_file(root)
    elif folders := _idx_folders(root):
        found = _of_idx(folders)
    else:
        found = _of_files(root, _files(root))
    return _numbered({split: _examples(*arrays, f"{root} ({split})") for split, arrays in found.items()}, root)


def _of_file(path: Path) -> dict[str, Arrays]:
    try:
        if path.name.lower().endswith(TABLES):
            return {"train": read_table(path)}
        if path.suffix.lower() == ".npz":
            return read_npz(path)
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise whatever a damaged file makes them raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): is it damaged?") from error
    way = _OTHERS.get(path.suffix.lower(), "").format(path=path)
    raise UserError(
        f"--dataset reads {', '.join(SUFFIXES)} and folders of images or IDX files, and {path} is none: "
        + (f'convert it by python -c "{way}"' if way else "unpack it, or save x_train and y_train by numpy.savez")
    )


def read_npz(path: Path) -> dict[str, Arrays]:
    """The splits of a file such as Keras's mnist.npz: x_train, y_train, x_test, y_test (x_val, y_val)."""
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # which leaves a damaged file open
        names = {split: (f"x_{split}", f"y_{split}") for split in SPLITS}
        found = {split: pair for split, pair in names.items() if set(pair) <= set(file.files)}
        if "train" not in found:
            raise UserError(f"{path} has no arrays x_train and y_train, but {', '.join(file.files) or 'none'}")
        if sum(file.zip.getinfo(f"{name}.npy").file_size for pair in found.values() for name in pair) > _MOST:
            raise UserError(f"{path} has more than {_MOST:,} bytes of images")
        return {SPLITS[split]: Arrays(*(file[name] for name in pair)) for split, pair in found.items()}


def read_table(path: Path) -> Arrays:
    """A table with a row for each image: its label, first or last or named by a header, and its 784 pixels."""
    text = idx.unpacked(path, _MOST).decode("utf-8-sig")
    lines = [
        line for line in text.splitlines() if line.strip() and line[0] not in "@%"
    ]  # these two begin ARFF's header
    header = [field.strip(" \"'").lower() for field in lines[0].split(",")] if lines else []
    if len(header) != SIDE**2 + 1:
        raise UserError(
            f"{path} has {len(header)} columns, separated by commas, and a table of digits {SIDE**2 + 1}: "
            f"a label and {SIDE}×{SIDE} pixels"
        )
    if all(map(_is_number, header)):
        header = []
    rows = lines[1:] if header else lines
    if not rows:
        raise UserError(f"{path} has no images")
    table = np.loadtxt(
        tqdm(rows, desc=f"Reading {path.name}", unit=" images", leave=False, disable=None),
        np.float32 if "." in rows[0] else np.int16,  # a sixth of the time
        delimiter=",",
        quotechar='"',
        comments=None,
        ndmin=2,
    )
    column = _label_column(table, header, path)
    return Arrays(np.delete(table, column, axis=1), table[:, column])


def _label_column(table: Shaped[np.ndarray, "n columns"], header: list[str], path: Path) -> int:
    """Which column has the labels: the header says it, or it is the first or last, with as many values as classes."""
    named = [i for i, name in enumerate(header) if name in LABELS]
    likely = [i for i in (0, table.shape[1] - 1) if 2 <= len(np.unique(table[:, i])) <= NUM_CLASSES]
    for columns in (named, likely):
        if len(columns) == 1:
            return columns[0]
    raise UserError(f"{path} does not tell which column is the label: give it a header with one column called label")


def _is_number(field: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", field))


def _files(root: Path) -> dict[str, Path]:
    """The tables and .npz in a folder that has no folders, by name."""
    inside = listed(root)
    return {} if any(map(Path.is_dir, inside)) else {p.name: p for p in inside if p.name.lower().endswith(SUFFIXES)}


def _of_files(root: Path, files: dict[str, Path]) -> dict[str, Arrays]:
    """One file, or tables of which each has a split's name in its own, as mnist_train.csv and mnist_test.csv."""
    if len(files) == 1:
        return _of_file(*files.values())
    splits = {name: {SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS} for name in files}
    tables = {split: [files[name] for name in files if splits[name] == {split}] for split in set(SPLITS.values())}
    tables = {split: paths for split, paths in tables.items() if paths}
    if "train" not in tables or sum(map(len, tables.values())) != len(files) or len(tables) != len(files):
        raise UserError(f"{root} has several files, {some(sorted(files))}: name the one that is meant by --dataset")
    return {split: _of_file(path)["train"] for split, [path] in tables.items()}


def _idx_folders(root: Path) -> list[Path]:
    """The folder with IDX files, or those that have some: the folder itself or one up to two deeper (MNIST/raw)."""
    level = [root]
    for _ in range(3):
        if found := [folder for folder in level if any(any(idx.candidates(file, [folder])) for file in idx.FILES)]:
            return found
        level = [inside for folder in level for inside in folders_in(folder)]
    return []


def _of_idx(folders: list[Path]) -> dict[str, Arrays]:
    paths = {file: list(idx.candidates(file, folders)) for file in idx.FILES}
    if any(len({path.parent for path in found}) > 1 for found in paths.values()):
        raise UserError(f"there are several data sets, in {some(folders)}: name the one that is meant by --dataset")
    if missing := [f"{file}-ubyte" for file, found in paths.items() if not found]:
        raise UserError(
            f"{some(folders)} lacks {' and '.join(missing)}, packed as .gz or not: put what is missing there"
        )
    arrays = {file: _of_idx_file(file, found) for file, found in paths.items()}
    parts = {"train": "train", "test": "t10k"}
    return {s: Arrays(arrays[f"{part}-images-idx3"], arrays[f"{part}-labels-idx1"]) for s, part in parts.items()}


def _of_idx_file(file: str, paths: list[Path]) -> Shaped[np.ndarray, "..."]:
    """One of `idx.FILES`, from the first path that is sound: torchvision leaves it packed and unpacked."""
    faults = []
    for path in paths:
        try:
            return idx.decode_idx(idx.unpacked(path, _MOST), idx.num_dimensions(file))
        except (ValueError, OSError) as error:
            faults.append(f"{path} cannot be used: {error}; replace it")
    raise UserError(faults[0])


def _examples(images: Shaped[np.ndarray, "..."], labels: Shaped[np.ndarray, "..."], where: str) -> Examples:
    """Images as (n, 28, 28) in 0..255 and their labels as whole numbers.

    Raises:
        UserError: they are not that; `where` says whose they are.
    """
    if images.ndim < 2 or math.prod(images.shape[1:]) != SIDE**2 or not images.size:
        raise UserError(f"{where} has images of shape {images.shape}: {SIDE}×{SIDE} grey levels each are needed")
    if labels.size != len(images):
        raise UserError(f"{where} has {len(images):,} images and {labels.size:,} labels")
    if not (_is_whole(images) and images.min() >= 0 and 1 < images.max() <= 255):
        raise UserError(f"{where} has pixels that are not whole numbers from 0, black, to 255, white")
    if not _is_whole(labels):
        raise UserError(f"{where} has labels that are not whole numbers")
    return Examples(images.reshape(-1, SIDE, SIDE).astype(np.uint8), labels.ravel().astype(np.int32))


def _is_whole(array: Shaped[np.ndarray, "..."]) -> bool:
    return array.dtype.kind in "iu" or (array.dtype.kind == "f" and bool((array == np.rint(array)).all()))


def _numbered(splits: dict[str, Examples], root: Path) -> tuple[tuple[str, ...], dict[str, Examples]]:
    """The class names, which are the labels of the training images, and the splits with labels from 0."""
    kinds = np.unique(splits["train"].labels)
    if not 2 <= len(kinds) <= NUM_CLASSES:
        raise UserError(f"{root} has {len(kinds)} labels: 2 to {NUM_CLASSES} are needed")
    for split, (_, labels) in splits.items():
        if unknown := sorted(set(labels.tolist()) - set(kinds.tolist())):
            raise UserError(f"{root} has label {unknown[0]} in its {split} split and not in that to train on")
    numbered = {s: Examples(i, np.searchsorted(kinds, labels).astype(np.int32)) for s, (i, labels) in splits.items()}
    return tuple(map(str, kinds.tolist())), numbered
