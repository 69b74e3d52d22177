"""Image files as a network's inputs: drawn by all cores, and kept for the next command."""

import contextlib
import functools
import hashlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from mnist_flax.files import cache_directory, code_digest, write_bytes
from mnist_flax.inference import classifier
from mnist_flax.inference.classifier import Classifier
from mnist_flax.reading.answers import Answer, answer, hint, inputs

_THREADS = 8  # more wait for each other, and each may hold a photograph of 50 megapixels
_NOTHING = np.zeros((28, 28), np.uint8)


class Drawing(NamedTuple):
    """An image file as a network's input, or why it cannot be used.

    Attributes:
        fault: why it cannot be used; empty if it can.
        is_recognised: whether the shipped network names a digit in it.
    """

    pixels: UInt8[np.ndarray, "28 28"]
    is_recognised: bool
    fault: str = ""


Kept = dict[bytes, Drawing]  # by the SHA-256 of the image file


def drawings(root: Path, paths: list[Path]) -> list[Drawing]:
    """Draw the images in a folder, or take the drawings that a command before has kept.

    The shipped network judges what in an image is the digit, whichever network is trained: the same files always give
    the same drawings. A digit that it does not recognise is worth training on, and its best guess is taken.
    """
    file = kept_in(root)
    network, kept = classifier.load(), _read(file)
    pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
    try:
        with warnings.catch_warnings():  # `decode` does so in each thread, and they end in any order
            found = pool.map(functools.partial(_draw, network, kept), paths)
            pairs = list(tqdm(found, "Reading images", len(paths), unit=" images", leave=False, disable=None))
    finally:
        pool.shutdown(cancel_futures=True)
    usable = {digest: drawing for digest, drawing in pairs if not drawing.fault}
    if file and usable.keys() != kept.keys():
        with contextlib.suppress(OSError):  # a full disk: the next command reads them again
            _write(file, usable)
    return [drawing for _, drawing in pairs]


def kept_in(root: Path) -> Path | None:
    """The file in which the drawings of a folder's images are kept; None if there is no place for it."""
    directory = cache_directory()
    return directory and directory / f"drawings-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]}.npz"


def _draw(network: Classifier, kept: Kept, path: Path) -> tuple[bytes, Drawing]:
    """The SHA-256 of a file, and its drawing."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
    except OSError:  # `answer` says why
        digest = b""
    return digest, kept.get(digest) or _drawing(answer(network, path))


def _drawing(found: Answer) -> Drawing:
    if found.page is None or found.picture is None:
        return Drawing(_NOTHING, False, found.result["error"])
    if len(found.page.digits) > 1:
        several = " ".join(digit["digit"] for digit in found.result["digits"])
        return Drawing(_NOTHING, False, f"several digits are found in it, {several}")
    if found.page.best is None:
        return Drawing(_NOTHING, False, f"no digit is found in it: {hint(found.page, found.picture)}")
    return Drawing(inputs(found.page)[0], bool(found.page.digits))


def _read(file: Path | None) -> Kept:
    """The drawings that this very code has kept in a file."""
    try:
        if file is None:
            return {}
        with file.open("rb") as raw, np.load(raw) as arrays:
            if str(arrays["code"]) != code_digest():
                return {}
            digests = [row.tobytes() for row in arrays["digests"]]
            return dict(zip(digests, map(Drawing, arrays["pixels"], arrays["recognised"].tolist()), strict=True))
    except Exception:  # noqa: BLE001 - no file, or a damaged one, which may raise anything: the images are read again
        return {}


def _write(file: Path, kept: Kept) -> None:
    content = io.BytesIO()
    np.savez(
        content,
        code=np.array(code_digest()),
        digests=np.frombuffer(b"".join(kept), np.uint8).reshape(-1, 32),
        pixels=np.stack([drawing.pixels for drawing in kept.values()]),
        recognised=np.array([drawing.is_recognised for drawing in kept.values()]),
    )
    write_bytes(file, content.getvalue())
