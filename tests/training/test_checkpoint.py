import contextlib
import shutil

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_flax.errors import UserError
from mnist_flax.training.checkpoint import Checkpoints, find, read, read_metadata
from mnist_flax.training.sums import SUMS, checksums

STATE = {"weights": np.arange(5000, dtype=np.float32), "key": jax.random.key(1)}


def saved(directory, *steps):
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.save(step, STATE, {"step": step})
    checkpoints.close()


def restored(directory, read_only=False):
    """The step that is restored, with the arrays that were saved: by the run itself, or by somebody else."""
    if read_only:
        arrays, metadata = read(find(directory), STATE)
    else:
        with contextlib.closing(Checkpoints(directory)) as checkpoints:
            arrays, metadata = checkpoints.restore(STATE) or (None, {"step": None})
    if arrays is not None:
        np.testing.assert_array_equal(arrays["weights"], STATE["weights"])
        assert (jax.random.key_data(arrays["key"]) == jax.random.key_data(STATE["key"])).all()
    return metadata["step"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A directory with checkpoints 10 and 20."""
    directory = tmp_path_factory.mktemp("two")
    saved(directory, 10, 20)
    return directory


def test_the_newest_two_are_kept(tmp_path):
    assert restored(tmp_path) is None
    saved(tmp_path, 10, 20, 30)
    assert restored(tmp_path) == restored(tmp_path, read_only=True) == 30
    assert {path.name for path in tmp_path.iterdir()} == {"20", "30"}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.discard_after(25)
    assert checkpoints.latest_step() == 20
    checkpoints.close()
    assert restored(tmp_path) == 20


def test_what_another_version_wrote_is_said(two):
    with (
        contextlib.closing(Checkpoints(two)) as checkpoints,
        pytest.raises(UserError, match="another version of mnist_flax wrote it"),
    ):
        checkpoints.restore({"weights": [STATE["weights"]], "key": STATE["key"]})


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 4]) + path.read_bytes()[1:]),
    "extended": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_whichever_file_is_damaged_the_older_checkpoint_is_used(two, tmp_path, damage):
    files = [path.relative_to(two) for path in sorted((two / "20").rglob("*")) if path.is_file()]
    assert len(files) > 10
    for number, file in enumerate(files):
        directory = tmp_path / str(number)
        shutil.copytree(two, directory)
        DAMAGE[damage](directory / file)
        if (damage, file.name) == ("missing", SUMS):  # as if killed before they were written: deleted without a word
            assert restored(directory) == 10
            assert {path.name for path in directory.iterdir()} == {"10"}
            continue
        before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
        with pytest.warns(UserWarning, match="20 is damaged .* passed over"):
            assert restored(directory, read_only=True) == 10
        assert before == {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
        with pytest.warns(UserWarning, match="20 is damaged .* set aside as damaged-20"):
            checkpoints = Checkpoints(directory)
        assert {path.name for path in directory.iterdir()} == {"10", "damaged-20"}
        if number == 0:  # the number is free again
            checkpoints.save(20, STATE, {"step": 20})
            assert restored(directory, read_only=True) == 20
        checkpoints.close()


def test_with_none_left_it_says_so(two, tmp_path):
    directory = tmp_path / "both"
    shutil.copytree(two, directory)
    for step in ("10", "20"):
        (directory / step / "metadata/metadata").write_text("{}")
    for read_only in (True, False):
        with pytest.raises(UserError, match="no sound checkpoint left: restore"), pytest.warns(match="is damaged"):
            restored(directory, read_only=read_only)
    for read_only in (True, False):  # which are set aside by now
        with pytest.raises(UserError, match="no sound checkpoint left: restore"):
            restored(directory, read_only=read_only)
    shutil.copytree(two / "10", directory / "10")
    assert restored(directory, read_only=True) == restored(directory) == 10


def test_what_a_killed_process_left_is_deleted(two, tmp_path):
    directory = tmp_path / "killed"
    shutil.copytree(two, directory)
    (directory / "30.orbax-checkpoint-tmp").mkdir()
    (directory / "30").mkdir()
    (directory / "30/state").touch()
    assert restored(directory, read_only=True) == 20
    assert restored(directory) == 20
    assert {path.name for path in directory.iterdir()} == {"10", "20"}


def test_another_networks_checkpoint_is_refused(two):
    with pytest.raises(UserError, match="cannot read"):
        read(find(two), {"weights": np.zeros(3, np.float32), "key": STATE["key"], "more": np.zeros(1)})


def test_one_checkpoint_by_its_number(two, tmp_path):
    assert read_metadata(find(two / "10")) == {"step": 10}
    shutil.copytree(two / "10", tmp_path / "kept")  # whatever it is called
    assert read_metadata(find(tmp_path / "kept")) == {"step": 10}
    (tmp_path / "kept/metadata/metadata").write_text("{}")
    with pytest.raises(UserError, match=r"kept is damaged .*: restore it from a copy"):
        find(tmp_path / "kept")
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        find(tmp_path)


ADDED = st.sampled_from([".DS_Store", "desktop.ini", "Thumbs.db", "Icon\r", "~$a.tmp", "SHA256SUMS (conflicted copy)"])
ANY_NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=40)
IN_THE_DIRECTORY = st.sampled_from(["20 (1)", "20 - Copy", "020", "-3", "٤٢", "20.orbax-checkpoint-tmp"]) | ANY_NAME


def add(path, name, is_folder):
    """Put a file or folder there, if nothing of that name is there, and it can be."""
    with contextlib.suppress(OSError, ValueError):
        (path / name).mkdir() if is_folder else (path / name).touch(exist_ok=False)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(0, 99), ADDED | ANY_NAME, st.booleans()), max_size=5),
    st.dictionaries(IN_THE_DIRECTORY.filter(lambda name: not name.isdecimal()), st.booleans(), max_size=4),
)
def test_what_others_add_damages_nothing(two, tmp_path_factory, within, beside):
    directory = tmp_path_factory.mktemp("added")
    shutil.copytree(two, directory, dirs_exist_ok=True)
    folders = [path for path in [directory / "20", *(directory / "20").rglob("*")] if path.is_dir()]
    for number, name, is_folder in within:
        add(folders[number % len(folders)], name, is_folder)
    for name, is_folder in beside.items():
        add(directory, name, is_folder)
    assert restored(directory, read_only=True) == restored(directory) == 20
    saved(directory, 30)
    assert restored(directory, read_only=True) == 30
    assert {path.name for path in directory.iterdir()} >= {"20", "30"}


@pytest.mark.parametrize("number", ["020", "٤٢"])
def test_a_folder_with_a_number_that_is_no_step_is_left_alone(two, tmp_path, number):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    (tmp_path / number).mkdir()
    assert restored(tmp_path) == 20
    assert (tmp_path / number).exists()


def test_what_a_file_manager_adds_before_the_sums_are_written_has_none(two, tmp_path):
    shutil.copytree(two / "20", tmp_path, dirs_exist_ok=True)
    (tmp_path / "Desktop.ini").touch()
    (tmp_path / "state/.DS_Store").touch()
    assert checksums(tmp_path) == (two / "20" / SUMS).read_text()


@pytest.mark.parametrize("change", [lambda text: text.replace(b"\n", b"\r\n"), lambda text: b"\xef\xbb\xbf" + text])
def test_line_ends_and_a_byte_order_mark_do_not_change_the_sums(two, tmp_path, change):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    sums = tmp_path / "20" / SUMS
    sums.write_bytes(change(sums.read_bytes()))
    assert restored(tmp_path, read_only=True) == restored(tmp_path) == 20
    (tmp_path / "20/metadata/metadata").write_text("{}")
    with pytest.warns(match="20 is damaged"):
        assert restored(tmp_path, read_only=True) == 10
