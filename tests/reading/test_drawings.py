"""What a network is to see of image files: the same by however many cores, and kept for the next command."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from mnist_flax.reading import drawings as module
from mnist_flax.reading.answers import answer, inputs
from mnist_flax.reading.drawings import drawings


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint(255 * (1 - image / 16)).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def paths(tmp_path, monkeypatch):
    """Images, one of them damaged, in a home of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = load_digits().images
    paths = [write(tmp_path / "own" / f"{i}.png", images[i]) for i in range(20)]
    paths[7].write_bytes(b"no image")
    return paths


@pytest.fixture
def read(monkeypatch):
    """The files that were read, not only looked up."""
    read = []
    monkeypatch.setattr(module, "answer", lambda network, path: read.append(path) or answer(network, path))
    return read


def same(some, others):
    return len(some) == len(others) and all(
        np.array_equal(a.pixels, b.pixels) and a[1:] == b[1:] for a, b in zip(some, others, strict=True)
    )


def test_they_are_in_order_and_a_bad_file_costs_no_other(paths, monkeypatch):
    found = drawings(paths[0].parent, paths)
    network = module.classifier.load()
    for i, (path, drawing) in enumerate(zip(paths, found, strict=True)):
        assert bool(drawing.fault) == (i == 7)
        if i != 7:
            np.testing.assert_array_equal(drawing.pixels, inputs(answer(network, path).page)[0])
    for threads in (1, 5):
        monkeypatch.setattr(module, "_THREADS", threads)
        assert same(found, drawings(paths[0].parents[1], paths))


def test_only_what_is_new_is_read(paths, read):
    root = paths[0].parent
    found = drawings(root, paths)
    assert sorted(read) == sorted(paths)
    read.clear()
    assert same(found, drawings(root, paths))
    assert read == [paths[7]]
    paths[3].write_bytes(paths[4].read_bytes())  # known by its content, whatever its name and time
    paths[7].unlink()
    read.clear()
    assert same([found[i] for i in (0, 1, 2, 4, 4)], drawings(root, paths[:5]))
    assert read == []
    write(paths[5], load_digits().images[50])
    drawings(root, paths[:6])
    assert read == [paths[5]]


def test_of_another_version_nothing_is_taken(paths, read, monkeypatch):
    found = drawings(paths[0].parent, paths)
    read.clear()
    monkeypatch.setattr(module, "code_digest", lambda: "another")
    assert same(found, drawings(paths[0].parent, paths))
    assert sorted(read) == sorted(paths)


def test_it_works_where_nothing_can_be_kept(paths, read, monkeypatch):
    for broken in (lambda: None, lambda: paths[0]):  # no home; a folder in which no file can be written
        monkeypatch.setattr(module, "cache_directory", broken)
        read.clear()
        drawings(paths[0].parent, paths[:3])
        assert sorted(read) == paths[:3]


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=8)), max_size=3), st.integers(0, 2**14))
def test_fuzz_what_is_kept(tmp_path_factory, edits, cut):
    root = tmp_path_factory.getbasetemp() / "kept"
    images = load_digits().images[:3]
    paths = [write(root / f"{i}.png", image) for i, image in enumerate(images)]
    found = drawings(root, paths)
    file = module.kept_in(root)
    content = bytearray(file.read_bytes())
    for position, noise in edits:
        position %= len(content)
        content[position : position + len(noise)] = noise
    file.write_bytes(bytes(content[: cut or None]))
    assert same(found, drawings(root, paths))
