"""The four IDX files of a TFDS data set: found, fetched and verified by TFDS, decoded by NumPy. No TensorFlow.

TFDS knows each data set's URLs, checksums and class names and keeps its files in a data directory; none of that
imports TensorFlow. Its record format would, and MNIST is 47 MB: decoded straight from the IDX files it is in memory
within a second (`tfds.load` takes 25 s the first time).
"""

import gzip
import math
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mnist_flax.data.examples import Examples
from mnist_flax.errors import UserError

CONNECT_SECONDS = 8.0


class DataUnavailableError(UserError):
    """A data set is neither on disk nor on the network; one that is on disk but damaged is another error."""

    def __init__(self, reason: str, ways_out: str) -> None:
        super().__init__(f"{reason}: {ways_out}")
        self.reason = reason


def decode_idx(data: bytes, num_dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Decode an uncompressed IDX file of unsigned bytes.

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


def load_tfds(name: str, data_dir: Path | None) -> tuple[tuple[str, ...], Examples, Examples]:
    """Class names, training and test examples of a data set that TFDS knows.

    Raises:
        DataUnavailableError: it is not on disk and cannot be downloaded.
        UserError: a file is damaged.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    builder_class: Any = tfds.builder_cls(name)
    files = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    urls = [f"{builder_class.URL}{file}-ubyte.gz" for file in files]
    root = Path(data_dir or constants.get_default_data_dir()).expanduser()
    paths = fetch(name, urls, builder_class.url_infos, root)
    arrays = [
        decode_verified(path, builder_class.url_infos[url], num_dimensions=3 if "images" in url else 1)
        for path, url in zip(paths, urls, strict=True)
    ]
    train, test = Examples(arrays[0], arrays[1].astype(np.int32)), Examples(arrays[2], arrays[3].astype(np.int32))
    return _class_names(builder_class, root), train, test


def _class_names(builder_class: Any, root: Path) -> tuple[str, ...]:
    """The names of a data set's classes, which TFDS tells a builder only.

    Each builder leaves an empty temporary directory behind (`DatasetInfo.initialize_from_bucket`): here in a directory
    that is deleted.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch
        try:
            return tuple(builder_class(data_dir=str(root)).info.features["label"].names)
        finally:
            tempfile.tempdir = before


def fetch(name: str, urls: list[str], url_infos: dict[str, Any], root: Path) -> list[Path]:
    """Local paths of `urls`; those in neither TFDS's cache nor its manual directory are downloaded."""
    import requests
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    class Manager(tfds.download.DownloadManager):
        """TFDS's manager tries to connect for minutes and prints nothing; this one asks first."""

        def _download(self, resource: Any) -> Any:  # called for a file that is not on disk
            tfds.enable_progress_bar()
            require_connection(resource.url)
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


def require_connection(url: str) -> None:
    """Check that `url` answers, once, within `CONNECT_SECONDS`.

    In a thread, because no time-out of `requests` bounds the look-up of a host name.

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


def decode_verified(path: Path, url_info: Any, num_dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Verify and decode one file: TFDS checks what it downloads, but not what it finds in its cache."""
    from tensorflow_datasets.core.download import checksums

    try:
        if checksums.compute_url_info(path) != url_info:
            raise ValueError("its SHA-256 differs from the one TFDS lists")
        return decode_idx(gzip.decompress(path.read_bytes()), num_dimensions)
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again, or replace it") from error
