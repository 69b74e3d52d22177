import contextlib
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_flax.errors import UserError
from mnist_flax.training.checkpoint import Checkpoints, find, read, read_metadata
from mnist_flax.training.checkpoint_files import DELETED, SUMS, checksums, delete

STATE = {"weights": np.arange(5000, dtype=np.float32), "key": jax.random.key(1)}


def saved(directory, *steps):
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.save(step, STATE, {"step": step, "histories": []})


def restored(directory, read_only=False):
    """The step that is restored, with the arrays that were saved: by the run itself, or by somebody else."""
    found = read(find(directory), STATE) if read_only else Checkpoints(directory).restore(STATE)
    if found is None:
        return None
    arrays, metadata = found
    np.testing.assert_array_equal(arrays["weights"], STATE["weights"])
    assert (jax.random.key_data(arrays["key"]) == jax.random.key_data(STATE["key"])).all()
    return metadata["step"]


def contents(directory):
    """Every file's bytes, by its path."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def names(directory):
    return {path.name for path in directory.iterdir()}


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
    assert restored(tmp_path) == 20


def test_what_another_version_wrote_is_said(two):
    with pytest.raises(UserError, match="another version of mnist_flax wrote it"):
        Checkpoints(two).restore({"weights": [STATE["weights"]], "key": STATE["key"]})


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
        if (damage, file.name) == ("missing", SUMS):
            continue  # see the next test
        before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
        with pytest.warns(UserWarning, match="20 is damaged .* passed over"):
            assert restored(directory, read_only=True) == 10
        assert before == {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
        with pytest.warns(UserWarning, match="20 is damaged .* set aside as damaged-20"):
            checkpoints = Checkpoints(directory)
        assert {path.name for path in directory.iterdir()} == {"10", "damaged-20"}
        if number == 0:  # the number is free again
            checkpoints.save(20, STATE, {"step": 20, "histories": []})
            assert restored(directory, read_only=True) == 20
            DAMAGE[damage](directory / file)
            with pytest.warns(UserWarning, match="20 is damaged .* set aside as damaged-20-2"):
                assert restored(directory) == 10
            assert {path.name for path in directory.iterdir()} == {"10", "damaged-20", "damaged-20-2"}


def test_without_its_sums_a_checkpoint_is_used_if_all_of_it_can_be_read(two, tmp_path):
    """A copy or a synchroniser may lose them, and other files with them; whatever is left is kept."""
    files = [path.relative_to(two) for path in sorted((two / "20").rglob("*")) if path.is_file() and path.name != SUMS]
    used = set()
    for number, file in enumerate([None, *files]):
        directory = tmp_path / str(number)
        shutil.copytree(two, directory)
        (directory / "20" / SUMS).unlink()
        if file is not None:
            (directory / file).unlink()
        left = sorted(contents(directory).values())
        if file == Path("20/metadata/metadata"):  # nothing says any more that it is ours
            assert restored(directory, read_only=True) == restored(directory) == 10
        else:
            with pytest.warns(
                UserWarning, match=f"20 has lost its {SUMS}.* so it is used|20 is damaged .* passed over"
            ):
                step = restored(directory, read_only=True)
            assert sorted(contents(directory).values()) == left
            with pytest.warns(UserWarning, match=f"20 has lost its {SUMS}.* written anew|20 is damaged .* set aside"):
                assert restored(directory) == step
            if step == 20:
                used.add(file)
                assert (directory / "20" / SUMS).read_text() == checksums(directory / "20")
                (directory / "20" / SUMS).unlink()
        assert sorted(contents(directory).values()) == left
    assert None in used
    assert len(used) < len(files)  # some cannot be done without


def test_with_none_left_all_stay_and_others_are_told(two, tmp_path):
    directory = tmp_path / "both"
    shutil.copytree(two, directory)
    for step in ("10", "20"):
        (directory / step / "metadata/metadata").write_text("{}")
    left = sorted(contents(directory).values())
    with pytest.raises(UserError, match="no sound checkpoint left: restore"), pytest.warns(match="is damaged"):
        restored(directory, read_only=True)
    with pytest.warns(match="is damaged"):
        assert restored(directory) is None
    with pytest.raises(UserError, match="no sound checkpoint left: restore"):  # they are set aside by now
        restored(directory, read_only=True)
    assert restored(directory) is None
    assert names(directory) == {"damaged-10", "damaged-20"}
    assert sorted(contents(directory).values()) == left
    shutil.copytree(two / "10", directory / "10")
    assert restored(directory, read_only=True) == restored(directory) == 10


def test_what_a_killed_process_left_is_deleted(two, tmp_path, monkeypatch):
    """Whatever it had written of a checkpoint: in Orbax's folder, in ours, with the sums half written."""
    directory = tmp_path / "killed"
    shutil.copytree(two, directory)
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            saved(directory, 30)
    [unfinished] = directory.glob("30*")  # the second start has deleted that of the first
    (unfinished / ".0123456789ab-SHA256SUMS").touch()
    shutil.copytree(unfinished, directory / f"{unfinished.name}.orbax-checkpoint-tmp")
    (unfinished / "state/photo.jpg").write_text("somebody else's")
    assert restored(directory, read_only=True) == 20
    assert restored(directory) == 20
    assert names(directory) == {"10", "20", unfinished.name}
    (directory / f"{unfinished.name}.orbax-checkpoint-tmp").mkdir()
    (directory / f"{unfinished.name}.orbax-checkpoint-tmp/_CHECKPOINT_METADATA").touch()  # not announced: not ours
    assert contents(unfinished) == {"state/photo.jpg": b"somebody else's"}
    monkeypatch.undo()
    saved(directory, 30)
    assert restored(directory) == 30
    assert names(directory) == {"20", "30", unfinished.name, f"{unfinished.name}.orbax-checkpoint-tmp"}


def test_a_deletion_that_was_cut_short_is_ended(two, tmp_path, monkeypatch):
    unlink, left = Path.unlink, []

    def die_later(path, **options):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        unlink(path, **options)

    number = sum(path.is_file() for path in (two / "20").rglob("*"))
    for count in range(number):
        directory = tmp_path / str(count)
        shutil.copytree(two, directory)
        left[:] = [None] * count
        monkeypatch.setattr(Path, "unlink", die_later)
        with pytest.raises(KeyboardInterrupt):
            delete(directory / "20")
        monkeypatch.undo()
        assert (directory / "20" / DELETED).exists()
        assert restored(directory, read_only=True) == restored(directory) == 10
        assert names(directory) == {"10"}


def test_what_others_put_into_a_checkpoint_stays_where_it_is(two, tmp_path):
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    photos = {f"{folder}/{name}": name.encode() for folder in ("10", "10/state", "20/mine") for name in ("_a", "b.jpg")}
    for name, data in photos.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "10/state/.DS_Store").touch()  # which goes with the checkpoint
    (tmp_path / "20/metadata/metadata").write_text("{}")
    with pytest.warns(match="20 is damaged"):
        saved(tmp_path, 30, 40)
    found = contents(tmp_path)
    assert photos.items() <= found.items()
    assert {name for name in found if name.startswith(("10/", "20/"))} == set(photos)
    with pytest.raises(UserError, match="20 is in the way, and this run did not write it: move it away"):
        Checkpoints(tmp_path).discard_after(15)
    Checkpoints(tmp_path).discard_after(40)


def orbax(path):
    """Another program's checkpoint, with names such as ours."""
    with ocp.CheckpointManager(path.parent.absolute()) as manager:
        items = {"state": ocp.args.StandardSave({"x": np.zeros(3)}), "metadata": ocp.args.JsonSave({"step": 7})}
        manager.save(int(path.name), args=ocp.args.Composite(**items), force=True)


def of_another_run(path):
    Checkpoints(path.parent).save(int(path.name), STATE, {"step": 7, "histories": [], "config": "another"})


def photos(path):
    path.mkdir()
    (path / "photo.jpg").write_text("x")


def photos_with_sums(path):
    photos(path)
    (path / SUMS).write_text(f"{'0' * 64}  photo.jpg\n{'0' * 64}  ../10/{SUMS}\n")


@pytest.mark.parametrize("put", [orbax, of_another_run, photos, photos_with_sums, Path.touch])
def test_a_number_does_not_make_a_checkpoint_of_this_run(two, tmp_path, put):
    other = tmp_path / "other/1000"
    other.parent.mkdir()
    put(other)
    directory = tmp_path / "run"
    shutil.copytree(two, directory)
    os.rename(other, directory / "1000")
    before = contents(tmp_path)
    checkpoints = Checkpoints(directory, lambda metadata: metadata.get("config") != "another")
    assert checkpoints.latest_step() == 20
    if put is not of_another_run:  # which `evaluate` may be asked for
        assert restored(directory, read_only=True) == 20
    with pytest.raises(UserError, match="1000 is in the way, and this run did not write it: move it away"):
        checkpoints.discard_after(20)
    assert contents(tmp_path) == before
    checkpoints.save(30, STATE, {"step": 30})
    assert checkpoints.latest_step() == 30
    assert names(directory) == {"20", "30", "1000"}


def test_another_networks_checkpoint_is_refused(two):
    with pytest.raises(UserError, match="cannot read"):
        read(find(two), {"weights": np.zeros(3, np.float32), "key": STATE["key"], "more": np.zeros(1)})


def test_one_checkpoint_by_its_number(two, tmp_path):
    assert read_metadata(find(two / "10"))["step"] == 10
    shutil.copytree(two / "10", tmp_path / "kept")  # whatever it is called
    assert read_metadata(find(tmp_path / "kept"))["step"] == 10
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
