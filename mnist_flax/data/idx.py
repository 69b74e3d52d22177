"""IDX files: decoded by NumPy, and recognised by their content, however they are named and packed."""

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
# SHA-256 of the unpacked files. TFDS lists those of the packed ones only.
CONTENTS = {
    "mnist": {
        "train-images-idx3": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
}
MOST = 50_000_000  # bytes; MNIST's largest file has 47,040,016


def decode_idx(data: bytes, num_dimensions: int) -> UInt8[np.ndarray, "..."]:
    """Decode an uncompressed IDX file of unsigned bytes.

    Raises:
        ValueError: not such a file, or not the length its header announces.

    Format: http://yann.lecun.com/exdb/mnist/
    """
    header = 4 + 4 * num_dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 0x08, num_dimensions]):
        raise ValueError(f"it is not an IDX file of unsigned bytes with {num_dimensions} dimensions")
    shape = struct.unpack(f">{num_dimensions}I", data[4:header])
    if len(data) - header != math.prod(shape):
        raise ValueError(f"its header announces {math.prod(shape)} bytes of data, it has {len(data) - header}")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def num_dimensions(file: str) -> int:
    """The number of dimensions of one of `FILES`, with which its name ends."""
    return int(file[-1])


def candidates(file: str, folders: Iterable[Path]) -> Iterator[Path]:
    """The paths at which one of `FILES` may lie, packed or not, under either of the names that are common for it."""
    stems = f"{file}-ubyte", f"{file.replace('-idx', '.idx')}-ubyte"
    paths = (folder / f"{stem}{suffix}" for folder in folders for suffix in (".gz", "") for stem in stems)
    return (path for path in paths if path.is_file())


def find(dataset: str, file: str, folders: Iterable[Path]) -> UInt8[np.ndarray, "..."] | None:
    """One of a data set's `FILES`, from the first candidate with the right content; None if there is none."""
    wanted = CONTENTS.get(dataset, {}).get(file)
    for path in candidates(file, folders) if wanted else ():
        try:
            data = unpacked(path)
        except (ValueError, OSError):
            continue  # `complaint` says what is wrong with it, if no other has what is wanted
        if hashlib.sha256(data).hexdigest() == wanted:
            return decode_idx(data, num_dimensions(file))
    return None


def unpacked(path: Path, most: int = MOST) -> bytes:
    """The content of a file, whether it is compressed by gzip or not, whatever its name says.

    Raises:
        ValueError: it is damaged, or has more than `most` bytes.
    """
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            data = (gzip.GzipFile(fileobj=raw) if is_gzip else raw).read(most + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"it is damaged: {error}") from error
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data


def complaint(dataset: str, file: str, path: Path) -> str:
    """A sentence on a file that cannot be used as one of a data set's `FILES`: what it is, and what to do."""
    try:
        data = unpacked(path)
        digest = hashlib.sha256(data).hexdigest()
        known = [f"{other}'s {name}" for other, sums in CONTENTS.items() for name in sums if sums[name] == digest]
        decode_idx(data, num_dimensions(file))
        what = "its content is another" if dataset in CONTENTS else "it is not packed as TFDS lists it"
        what = f"it is {known[0]}" if known else what
    except (ValueError, OSError) as error:
        what = str(error)
    return f"{path} is not {dataset}'s file: {what}; replace it, or move it away and run again"
