import shutil

import jax
import numpy as np
import pytest

from mnist_flax.errors import UserError
from mnist_flax.training.checkpoint import SUMS, Checkpoints

STATE = {"weights": np.arange(5000, dtype=np.float32), "key": jax.random.key(1)}


def saved(directory, *steps):
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.save(step, STATE, {"step": step})
    checkpoints.close()


def restored(directory, **options):
    """The step that is restored, and whether its arrays are the ones that were saved."""
    checkpoints = Checkpoints(directory, **options)
    try:
        arrays, metadata = checkpoints.restore(STATE) or (None, {"step": None})
    finally:
        checkpoints.close()
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
        with pytest.raises(UserError, match="holds only damaged checkpoints"), pytest.warns(match="is damaged"):
            restored(directory, read_only=read_only)
    with pytest.raises(UserError, match="holds only damaged checkpoints"):  # which are set aside by now
        restored(directory)


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
    checkpoints = Checkpoints(two, read_only=True)
    with pytest.raises(UserError, match="cannot read"):
        checkpoints.restore({"weights": np.zeros(3, np.float32), "key": STATE["key"], "more": np.zeros(1)})
    checkpoints.close()
