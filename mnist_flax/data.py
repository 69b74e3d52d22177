"""Datasets as uint8 arrays: found, fetched and verified by TFDS, decoded by NumPy. No TensorFlow.

TFDS knows each dataset's URLs, checksums and class names and keeps its files in a data directory; none of that
imports TensorFlow. Its record format would, and MNIST is 47 MB: decoded straight from the IDX files it is in memory
within a second (`tfds.load` takes 25 s the first time) and stays on the device from then on.
"""

import dataclasses
import gzip
import math
import struct
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from mnist_flax.errors import UserError

SIDE = 28
NUM_CLASSES = 10
CONNECT_SECONDS = 8.0


class DataUnavailableError(UserError):
    """A dataset is neither on disk nor to be had from the network (as opposed to being there and damaged)."""

    def __init__(self, reason: str, ways_out: str) -> None:
        super().__init__(f"{reason}: {ways_out}")
        self.reason = reason


class Examples(NamedTuple):
    """Images and labels; NumPy arrays here, device arrays in a training program. Label -1 marks padding."""

    images: UInt8[Any, "n 28 28"]
    labels: Int[Any, " n"]


class Normalization(NamedTuple):
    """Mean and standard deviation of a training set's pixels, on the scale 0..1."""

    mean: float
    std: float

    def __call__(self, images: Any) -> Any:
        """`(..., 28, 28)` images in 0..255 as network input `(..., 28, 28, 1)`."""
        return (images * (1 / (255 * self.std)) - self.mean / self.std)[..., None]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset split three ways.

    Attributes:
        selection_split: "validation", or "test" where nothing is held out and `validation` is the test set itself.
        note: why this is not the dataset that was asked for, if so.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    selection_split: str
    note: str | None = None

    @property
    def normalization(self) -> Normalization:
        """Moments of the training images, from exact integer sums."""
        images = self.train.images
        total = int(images.sum(dtype=np.uint64))
        squares = int(np.square(images, dtype=np.uint16).sum(dtype=np.uint64))
        mean = total / (255 * images.size)
        variance = squares / (255**2 * images.size) - mean**2
        return Normalization(mean, math.sqrt(max(variance, 0.0)) or 1.0)


def load(name: str, data_dir: Path | None, val_size: int | None) -> Dataset:
    """Load a dataset and hold out `val_size` of its training images (default one twelfth; 0: select on test).

    Which images are held out depends on nothing but their number, so that networks of all seeds compare, and join to
    ensembles, on images that none of them was trained on.

    "auto" is MNIST, or `digits` with a note if MNIST is neither on disk nor to be had; if it is there but damaged,
    that is an error.

    Raises:
        DataUnavailableError: it is not on disk and cannot be downloaded.
        UserError: a file is damaged, or `val_size` leaves nothing to train on.
    """
    if name == "auto":
        try:
            return load("mnist", data_dir, val_size)
        except DataUnavailableError as error:
            return dataclasses.replace(load("digits", data_dir, val_size), note=error.reason)
    class_names, train, test = _load_digits() if name == "digits" else _load_tfds(name, data_dir)
    num_train = len(train.labels)
    val_size = num_train // 12 if val_size is None else val_size
    if val_size == 0:
        return Dataset(name, class_names, train, test, test, "test")
    if val_size >= num_train:
        raise UserError(f"--val-size {val_size} leaves none of {name}'s {num_train} training images to train on")
    held_out = stratified_choice(train.labels, val_size, seed=0)
    validation = Examples(train.images[held_out], train.labels[held_out])
    rest = Examples(train.images[~held_out], train.labels[~held_out])
    return Dataset(name, class_names, rest, validation, test, "validation")


def stratified_choice(labels: Int[np.ndarray, " n"], size: int, seed: int) -> Shaped[np.ndarray, " n"]:
    """A boolean mask of `size` random examples with the classes in proportion (largest remainders), fixed by `seed`."""
    # RandomState, because NumPy promises its stream never changes; default_rng's may (NEP 19).
    rng = np.random.RandomState(seed)
    classes, counts = np.unique(labels, return_counts=True)
    shares = size * counts / len(labels)
    quotas = np.floor(shares).astype(int)
    by_remainder = np.argsort(quotas - shares, kind="stable")
    quotas[by_remainder[: size - quotas.sum()]] += 1
    chosen = np.zeros(len(labels), bool)
    for class_, quota in zip(classes, quotas, strict=True):
        chosen[rng.permutation(np.flatnonzero(labels == class_))[:quota]] = True
    return chosen


def decode_idx(data: bytes, num_dimensions: int) -> UInt8[np.ndarray, "..."]:
    """An uncompressed IDX file of unsigned bytes as an array.

    Raises:
        ValueError: not such a file, or not the length its header announces.

    Format: http://yann.lecun.com/exdb/mnist/
    """
    header = 4 + 4 * num_dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 0x08, num_dimensions]):
        raise ValueError(f"not an IDX file of unsigned bytes with {num_dimensions} dimensions")
    shape = struct.unpack(f">{num_dimensions}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise ValueError(f"its header announces {math.prod(shape)} bytes of data, it has {len(data) - header}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _load_tfds(name: str, data_dir: Path | None) -> tuple[tuple[str, ...], Examples, Examples]:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    builder_class: Any = tfds.builder_cls(name)
    files = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    urls = [f"{builder_class.URL}{file}-ubyte.gz" for file in files]
    root = Path(data_dir or constants.get_default_data_dir()).expanduser()
    paths = _fetch(name, urls, builder_class.url_infos, root)
    arrays = [
        _decode(path, builder_class.url_infos[url], num_dimensions=3 if "images" in url else 1)
        for path, url in zip(paths, urls, strict=True)
    ]
    train, test = Examples(arrays[0], arrays[1].astype(np.int32)), Examples(arrays[2], arrays[3].astype(np.int32))
    class_names = builder_class(data_dir=str(root)).info.features["label"].names
    return tuple(class_names), train, test


def _fetch(name: str, urls: list[str], url_infos: dict[str, Any], root: Path) -> list[Path]:
    """Local paths of `urls`, downloaded where they are neither in TFDS's cache nor in its manual directory."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    class Manager(tfds.download.DownloadManager):
        """TFDS's manager, which would go on trying to connect for minutes without a word."""

        def _download(self, resource: Any) -> Any:  # called for a file that is not on disk
            tfds.enable_progress_bar()
            _require_connection(resource.url)
            return super()._download(resource)

    ways_out = (
        f"(1) connect to the network and run again, (2) put {', '.join(url.rsplit('/', 1)[1] for url in urls)} into "
        f"{root}/downloads/manual, or name another TFDS data directory by --data-dir or TFDS_DATA_DIR, or "
        "(3) train on --dataset digits, which needs no files"
    )
    tfds.disable_progress_bar()
    downloads = root / "downloads"
    try:
        manager = Manager(
            download_dir=downloads,
            extract_dir=downloads,  # nothing is extracted, and the default would be created beside read-only files
            manual_dir=downloads / "manual",
            url_infos=url_infos,
            dataset_name=name,
        )
        paths: Any = manager.download(urls)
        return [Path(path) for path in paths]
    except NonMatchingChecksumError as error:
        raise UserError(
            f"{_offending_path(error)} is not {name}'s file: its SHA-256 differs from the one TFDS lists, so it is "
            "corrupt, truncated or another dataset's; delete it and run again, or replace it"
        ) from error
    except (requests.RequestException, tfds.download.DownloadError, OSError) as error:
        raise DataUnavailableError(f"{name} is not in {root} and cannot be fetched ({error})", ways_out) from error


def _offending_path(error: Exception) -> str:
    """The path in TFDS's message 'Artifact URL, downloaded to PATH, has wrong checksum'."""
    return str(error).partition("downloaded to ")[2].partition(", has wrong")[0] or "a downloaded file"


def _require_connection(url: str) -> None:
    """Check that `url` answers, once, within ten seconds (name lookup included, which no timeout of `requests` bounds).

    Raises:
        OSError: it does not; the message says why in a few words.
    """
    import requests

    failure: list[str] = ["no answer"]

    def attempt() -> None:
        try:
            with requests.get(url, stream=True, timeout=CONNECT_SECONDS / 2) as response:
                failure[:] = [] if response.ok else [f"HTTP status {response.status_code}"]
        except requests.RequestException as error:
            failure[:] = [type(error).__name__]

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if failure:
        raise OSError(f"{url}: {failure[0]}")


def _decode(path: Path, url_info: Any, num_dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Verify and decode one file; TFDS checks what it downloads, but not again what it finds in its cache."""
    from tensorflow_datasets.core.download import checksums

    try:
        if checksums.compute_url_info(path) != url_info:
            raise ValueError("its SHA-256 differs from the one TFDS lists")
        return decode_idx(gzip.decompress(path.read_bytes()), num_dimensions)
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again, or replace it") from error


def _load_digits() -> tuple[tuple[str, ...], Examples, Examples]:
    """The 1,797 digits of scikit-learn (UCI, 43 writers) in MNIST's geometry, a fifth of them as a fixed test set.

    https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = np.stack([to_mnist_geometry(image / 16) for image in digits.images])
    labels = digits.target.astype(np.int32)
    test = stratified_choice(labels, len(labels) // 5, seed=0)
    names = tuple(str(digit) for digit in range(NUM_CLASSES))
    return names, Examples(images[~test], labels[~test]), Examples(images[test], labels[test])


def to_mnist_geometry(ink: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"]:
    """Ink in 0..1 on nothing, as MNIST draws it: scaled to fit 20×20, centred by mass in 28×28, uint8.

    http://yann.lecun.com/exdb/mnist/
    """
    from scipy import ndimage

    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    enlarged = ndimage.zoom(ink, 20 / max(ink.shape), order=1, mode="grid-constant", grid_mode=True)
    return centred_by_mass(np.asarray(enlarged))


def centred_by_mass(ink: Shaped[np.ndarray, "h w"]) -> UInt8[np.ndarray, "28 28"]:
    """Ink in 0..1 of at most 28×28 pixels with its centre of mass in the middle of 28×28, as near as it fits."""
    from scipy import ndimage

    centre: Any = ndimage.center_of_mass(ink)
    corners = (round(SIDE / 2 - 0.5 - mass) for mass in centre)
    top, left = (min(max(corner, 0), SIDE - size) for corner, size in zip(corners, ink.shape, strict=True))
    canvas = np.zeros((SIDE, SIDE))
    canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)
