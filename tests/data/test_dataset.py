import gzip
import shutil
import socket
import struct
import threading
import time

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mnist_flax import data
from mnist_flax.data import idx, tfds_files
from mnist_flax.data.examples import stratified_choice
from mnist_flax.errors import UserError


def encode_idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3)))
def test_idx_round_trip(array):
    np.testing.assert_array_equal(idx.decode_idx(encode_idx(array), array.ndim), array)


@given(st.binary(max_size=200), st.integers(1, 3))
def test_fuzz_idx_files(garbage, num_dimensions):
    with pytest.raises(ValueError, match=r"not an IDX file|header announces"):
        idx.decode_idx(b"\x00\x00\x08" + bytes([num_dimensions]) + garbage + b"\x00", num_dimensions)


@given(
    hnp.arrays(np.int32, st.integers(1, 300), elements=st.integers(0, 9)),
    st.data(),
    st.integers(0, 2**32 - 1),
)
def test_stratified_choice(labels, draw, seed):
    size = draw.draw(st.integers(0, len(labels)))
    chosen = stratified_choice(labels, size, seed)
    assert chosen.sum() == size
    for class_, count in zip(*np.unique(labels, return_counts=True), strict=True):
        assert abs((labels[chosen] == class_).sum() - size * count / len(labels)) < 1
    np.testing.assert_array_equal(chosen, stratified_choice(labels, size, seed))


def test_digits():
    digits = data.load("digits", None, None)
    assert (len(digits.train.labels), len(digits.validation.labels), len(digits.test.labels)) == (1319, 119, 359)
    everything = np.concatenate([digits.train.labels, digits.validation.labels, digits.test.labels])
    np.testing.assert_array_equal(np.bincount(everything), np.bincount(sklearn.datasets.load_digits().target))
    for images, labels in (digits.train, digits.test):
        assert images.dtype == np.uint8
        assert set(labels) == set(range(10))
        rows, columns = images.any(axis=2), images.any(axis=1)
        assert max(rows.sum(1).max(), columns.sum(1).max()) == 20
        position = np.arange(28)
        mass = images.astype(float)
        centre = (mass * position[:, None]).sum((1, 2)) / mass.sum((1, 2))
        assert np.abs(centre - 13.5).max() < 1.5
    again = data.load("digits", None, None)
    for split in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(again, split).images, getattr(digits, split).images)


def test_normalization_is_exact():
    digits = data.load("digits", None, 0)
    pixels = digits.train.images / 255
    assert digits.normalization.mean == pytest.approx(pixels.mean(), rel=1e-12)
    assert digits.normalization.std == pytest.approx(pixels.std(), rel=1e-12)
    normalized = digits.normalization(digits.train.images.astype(np.float64))  # of integers it makes float32
    assert normalized.shape == (*digits.train.images.shape, 1)
    assert normalized.mean() == pytest.approx(0, abs=1e-9)


def test_validation_size_zero_selects_on_test_and_all_is_refused():
    digits = data.load("digits", None, 0)
    assert digits.selection_split == "test"
    assert len(digits.train.labels) == 1438
    with pytest.raises(UserError, match="--val-size 1438 leaves none"):
        data.load("digits", None, 1438)


def test_nothing_is_left_in_the_temporary_directory(mnist_dir, tmp_path, monkeypatch):
    """TFDS would leave a directory there for each builder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data.load("mnist", mnist_dir, None)
    assert list(tmp_path.iterdir()) == []


def test_mnist(mnist_dir):
    mnist = data.load("mnist", mnist_dir, None)
    assert (len(mnist.train.labels), len(mnist.validation.labels), len(mnist.test.labels)) == (55_000, 5_000, 10_000)
    assert mnist.class_names == tuple("0123456789")
    whole = data.load("mnist", mnist_dir, 0)
    assert whole.normalization == pytest.approx((0.1307, 0.3081), abs=5e-5)
    np.testing.assert_array_equal(whole.train.labels[:5], [5, 0, 4, 1, 9])
    assert data.load("auto", mnist_dir, None).name == "mnist"


@pytest.fixture
def copied(mnist_dir, tmp_path):
    shutil.copytree(mnist_dir / "downloads/manual", tmp_path / "downloads/manual")
    return tmp_path


@pytest.mark.parametrize("damage", ["truncated", "emptied", "bit-flipped", "not gzip"])
@pytest.mark.parametrize("dataset", ["mnist", "auto"])
def test_a_damaged_file_is_an_error_that_names_it(copied, damage, dataset):
    path = copied / "downloads/manual/t10k-images-idx3-ubyte.gz"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes({"truncated": content[:1000], "emptied": b"", "bit-flipped": content, "not gzip": b"x"}[damage])
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.gz is not mnist's file.*replace it") as raised:
        data.load(dataset, copied, None)
    assert not isinstance(raised.value, data.DataUnavailableError)


def test_another_datasets_files_are_refused(mnist_dir):
    with pytest.raises(UserError, match="is not fashion_mnist's file: it is mnist's"):
        data.load("fashion_mnist", mnist_dir, None)


def unpack(path, name):
    """Replace a packed file by what is in it, in a file of that name."""
    content = gzip.decompress(path.read_bytes())
    path.unlink()
    return path.parent / name, content


PACKINGS = {
    "unpacked": ("t10k-images-idx3-ubyte", lambda content: content),
    "unpacked, other name": ("t10k-images.idx3-ubyte", lambda content: content),
    "unpacked, packed name": ("t10k-images-idx3-ubyte.gz", lambda content: content),
    "packed anew": ("t10k-images-idx3-ubyte.gz", lambda content: gzip.compress(content, 1)),
    "packed anew, other name": ("t10k-images.idx3-ubyte.gz", gzip.compress),
    "packed, unpacked name": ("t10k-images-idx3-ubyte", gzip.compress),
    "in the data directory": ("../../t10k-images-idx3-ubyte", lambda content: content),
    "as listed, in the data directory": ("../../t10k-images-idx3-ubyte.gz", None),
}


def test_a_folder_of_unpacked_files_is_enough_and_left_as_it_is(mnist_dir, tmp_path):
    for file in idx.FILES:
        path = mnist_dir / f"downloads/manual/{file}-ubyte.gz"
        (tmp_path / f"{file}-ubyte").write_bytes(gzip.decompress(path.read_bytes()))
    assert len(data.load("mnist", tmp_path, None).train.labels) == 55_000
    assert {path.name for path in tmp_path.iterdir()} == {f"{file}-ubyte" for file in idx.FILES}


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_is_known_by_its_content(copied, mnist_dir, packing, monkeypatch):
    monkeypatch.setattr(tfds_files, "require_connection", refuse)
    name, pack = PACKINGS[packing]
    listed = copied / "downloads/manual/t10k-images-idx3-ubyte.gz"
    if pack:
        path, content = unpack(listed, name)
        path.write_bytes(pack(content))
    else:
        listed.rename(listed.parent / name)
    ours, expected = (data.load("mnist", directory, 0).test.images for directory in (copied, mnist_dir))
    np.testing.assert_array_equal(ours, expected)


def test_the_table_of_contents_is_that_of_the_listed_files(mnist_dir):
    folder = mnist_dir / "downloads/manual"
    for file in idx.FILES:
        assert idx.find("mnist", file, [folder]) is not None
    assert idx.find("mnist", "t10k-images-idx3", [folder.parent]) is None
    assert idx.find("kmnist", "t10k-images-idx3", [folder]) is None


WRONG = {
    "flipped": (lambda content: content[:-1] + b"\1", "its content is another"),
    "other images": (lambda content: content[:16] + bytes(len(content) - 16), "its content is another"),
    "cut off": (lambda content: content[:5000], "its header announces 10000 bytes of data, it has 4992"),
    "text": (lambda content: b"<html>", "it is not an IDX file"),
    "empty": (lambda content: b"", "it is not an IDX file"),
    "packed and cut off": (lambda content: gzip.compress(content)[:-9], "it is damaged: Compressed file ended"),
    "packed and flipped": (lambda content: gzip.compress(content)[:-5] + bytes(5), "it is damaged: CRC check failed"),
    "packed and broken": (lambda content: gzip.compress(content)[:10] + b"\xff" * 80, "it is damaged: Error -3"),
    "huge": (lambda content: gzip.compress(bytes(60_000_000)), "it has more than 50,000,000 bytes"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("dataset", ["mnist", "auto"])
def test_an_unpacked_file_with_other_content_is_an_error_that_says_so(copied, dataset, wrong, monkeypatch):
    monkeypatch.setattr(tfds_files, "require_connection", refuse)
    change, what = WRONG[wrong]
    path, content = unpack(copied / "downloads/manual/t10k-labels-idx1-ubyte.gz", "t10k-labels.idx1-ubyte")
    path.write_bytes(change(content))
    with pytest.raises(UserError) as raised:
        data.load(dataset, copied, None)
    assert f"{path} is not mnist's file: {what}" in str(raised.value)
    assert "replace it, or move it away and run again" in str(raised.value)
    assert "no network" in str(raised.value)
    assert not isinstance(raised.value, data.DataUnavailableError)


def test_files_that_were_exchanged_are_named(copied, monkeypatch):
    monkeypatch.setattr(tfds_files, "require_connection", refuse)
    folder = copied / "downloads/manual"
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes((folder / "train-images-idx3-ubyte.gz").read_bytes())
    with pytest.raises(
        UserError, match=r"t10k-images-idx3-ubyte.gz is not mnist's file: it is mnist's train-images-idx3"
    ):
        data.load("mnist", copied, None)


def test_files_whose_content_is_not_known_must_be_as_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_files, "require_connection", refuse)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(encode_idx(np.zeros((2, 28, 28), np.uint8)))
    with pytest.raises(UserError, match="is not kmnist's file: it is not packed as TFDS lists it"):
        data.load("kmnist", tmp_path, None)


@given(st.binary(max_size=300), st.sampled_from(idx.FILES), st.booleans())
def test_fuzz_files_in_the_data_directory(tmp_path_factory, content, file, packed):
    path = tmp_path_factory.getbasetemp() / f"{file}-ubyte"
    path.write_bytes(gzip.compress(content)[: len(content)] if packed else content)
    assert idx.find("mnist", file, [path.parent]) is None
    assert idx.complaint("mnist", file, path).startswith(f"{path} is not mnist's file: it")


def test_a_file_damaged_in_tfds_cache_is_found_out(tmp_path):
    """TFDS trusts its cache by file name; a file that rots there must still be noticed."""
    path = tmp_path / "cached.gz"
    path.write_bytes(gzip.compress(encode_idx(np.zeros((2, 28, 28), np.uint8))))
    wrong = type("UrlInfo", (), {"__eq__": lambda *_: False, "__hash__": None})()
    with pytest.raises(UserError, match=r"cached.gz is damaged \(its SHA-256"):
        tfds_files.decode_verified(path, wrong, 3)


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "kmnist"])
def test_absence_says_the_three_ways_out(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(tfds_files, "require_connection", refuse)
    with pytest.raises(data.DataUnavailableError, match=r"\(1\) connect.*\(2\) put train-images.*\(3\).*digits"):
        data.load(dataset, tmp_path, None)


def test_auto_falls_back_to_digits_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_files, "require_connection", refuse)
    digits = data.load("auto", tmp_path, None)
    assert digits.name == "digits"
    assert "mnist is not in" in digits.note
    assert "no network" in digits.note


def refuse(url):
    raise OSError("no network")


def test_a_server_that_never_answers_is_given_up_in_time(monkeypatch):
    """A listening socket that accepts and stays silent: what a dead proxy or captive portal looks like."""
    monkeypatch.setattr(tfds_files, "CONNECT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(OSError, match=r"ReadTimeout|no answer"):
            tfds_files.require_connection(f"http://127.0.0.1:{server.getsockname()[1]}/file")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_are_not_there(tmp_path, monkeypatch, name):
    """`requests` has an error of another type for that, which must not end as a thread's traceback."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(name, str(tmp_path / "away"))
    with pytest.raises(OSError, match=f"invalid path: {tmp_path}/away"):
        tfds_files.require_connection("https://127.0.0.1:9/file")


@pytest.mark.parametrize(("status", "served"), [("503 Service Unavailable", b""), ("200 OK", b"half a file")])
def test_a_failed_download_is_not_retried_and_leaves_nothing_trusted(tmp_path, monkeypatch, status, served):
    requests = []

    def serve(server):
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                requests.append(connection.recv(4096))
                connection.sendall(f"HTTP/1.0 {status}\r\nContent-Length: {len(served)}\r\n\r\n".encode() + served)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        import tensorflow_datasets as tfds

        builder = tfds.builder_cls("mnist")
        infos = {url + info.filename: info for info in builder.url_infos.values()}
        with pytest.raises(UserError):
            tfds_files.fetch("mnist", list(infos), infos, tmp_path)
        asked = len(requests)
        assert asked == (1 if served == b"" else 2)  # whether it answers, and the file; no other file after that
        with pytest.raises(UserError):
            tfds_files.fetch("mnist", list(infos), infos, tmp_path)
        assert len(requests) > asked  # asked again: nothing of the first attempt was taken for the file
        server.shutdown(socket.SHUT_RDWR)
