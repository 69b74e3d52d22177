"""The four IDX files of a TFDS data set: found, fetched and verified by TFDS, decoded by NumPy. No TensorFlow.

TFDS knows a file by the sum of its packed form. One that is unpacked or packed anew is known by its content (`idx`).

TFDS knows each data set's URLs, checksums and class names and keeps its files in a data directory; none of that
imports TensorFlow. Its record format would, and MNIST is 47 MB: decoded straight from the IDX files it is in memory
within a second (`tfds.load` takes 25 s the first time).
"""

import gzip
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mnist_flax.data.examples import Examples
from mnist_flax.data.idx import FILES, candidates, complaint, decode_idx, find, num_dimensions
from mnist_flax.errors import UserError

CONNECT_SECONDS = 8.0


class DataUnavailableError(UserError):
    """A data set is neither on disk nor on the network; one that is on disk but damaged is another error."""

    def __init__(self, reason: str, ways_out: str) -> None:
        super().__init__(f"{reason}: {ways_out}")
        self.reason = reason


def load_tfds(name: str, data_dir: Path | None) -> tuple[tuple[str, ...], Examples, Examples]:
    """Class names, training and test examples of a data set that TFDS knows.

    Raises:
        DataUnavailableError: it is not on disk and cannot be downloaded.
        UserError: a file is damaged.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import constants

    builder_class: Any = tfds.builder_cls(name)
    urls = {file: f"{builder_class.URL}{file}-ubyte.gz" for file in FILES}
    url_infos = builder_class.url_infos
    try:
        root = Path(data_dir or constants.get_default_data_dir()).expanduser()
    except RuntimeError as error:  # the user, of a container perhaps, has no home directory
        ways_out = "name a TFDS data directory by --data-dir or TFDS_DATA_DIR, or train on --dataset digits"
        reason = f"{name} would be in the home directory, and this user has none"
        raise DataUnavailableError(reason, ways_out) from error
    arrays = {}
    for file, url in urls.items():
        if not _is_listed(root, url_infos[url]) and (found := find(name, file, _folders(root))) is not None:
            arrays[file] = found
    others = [file for file in FILES if file not in arrays]
    paths = fetch(name, [urls[file] for file in others], url_infos, root) if others else []
    for file, path in zip(others, paths, strict=True):
        arrays[file] = decode_verified(path, url_infos[urls[file]], num_dimensions(file))
    train, test = (
        Examples(arrays[f"{part}-images-idx3"], arrays[f"{part}-labels-idx1"].astype(np.int32))
        for part in ("train", "t10k")
    )
    return _class_names(builder_class, root), train, test


def _folders(root: Path) -> tuple[Path, Path]:
    """Where files may lie that the user has put there: TFDS's own place for them, and the data directory itself."""
    return root / "downloads/manual", root


def _is_listed(root: Path, url_info: Any) -> bool:
    """Whether the user has put a file there just as TFDS lists it."""
    from tensorflow_datasets.core.download import checksums

    path = _folders(root)[0] / url_info.filename
    return path.is_file() and checksums.compute_url_info(path) == url_info


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
        # One after the other: if one fails, no thread goes on trying to get another, for which the exit would wait.
        return [Path(manager.download(url)) for url in urls]
    except NonMatchingChecksumError as error:
        url, path = _offenders(error)
        raise UserError(complaint(name, _file_of(url), path)) from error
    except (requests.RequestException, tfds.download.DownloadError, OSError) as error:
        missing = [_file_of(url) for url in urls if not _is_listed(root, url_infos[url])]
        unfit = [(file, path) for file in missing for path in candidates(file, _folders(root))]
        if unfit:
            raise UserError(f"{complaint(name, *unfit[0])} ({name} cannot be fetched: {error})") from error
        files = ", ".join(f"{file}-ubyte.gz" for file in missing)
        ways_out = (
            f"(1) connect to the network and run again, (2) put {files} into {root}/downloads/manual, or name another "
            "TFDS data directory by --data-dir or TFDS_DATA_DIR, or (3) train on --dataset digits, which needs no files"
        )
        raise DataUnavailableError(f"{name} is not in {root} and cannot be fetched ({error})", ways_out) from error


def _file_of(url: str) -> str:
    """Which of `idx.FILES` a URL is of."""
    return url.rpartition("/")[2].removesuffix("-ubyte.gz")


def _offenders(error: Exception) -> tuple[str, Path]:
    """URL and path in TFDS's message 'Artifact URL, downloaded to PATH, has wrong checksum'."""
    url, _, rest = str(error).removeprefix("Artifact ").partition(", downloaded to ")
    return url, Path(rest.partition(", has wrong checksum")[0])


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
        except Exception as error:  # noqa: BLE001 - the environment's, as a REQUESTS_CA_BUNDLE that is not there
            failure[:] = [str(error)]

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
