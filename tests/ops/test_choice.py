"""Which kernels a program uses, and what is said where there are none."""

import ctypes
import stat

import pytest

from mnist_flax import ops
from mnist_flax.errors import UserError
from mnist_flax.ops import library, native


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing loaded, nothing kept; returns what sets the compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("jax.ffi.register_ffi_target", lambda *_, **__: None)  # once for each process
    monkeypatch.setattr(native, "outcome", [])
    return lambda command: monkeypatch.setenv("CXX", command)


@pytest.fixture
def script(tmp_path):
    """Makes a program of a few lines of shell."""

    def make(text):
        path = tmp_path / "compiler"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


def test_without_a_compiler(fresh, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    choice = ops.choose("auto", "cpu")
    assert choice == ("xla", "no C++ compiler was found (c++, g++, clang++)")
    with pytest.raises(UserError, match="--kernels native: no C\\+\\+ compiler was found"):
        ops.choose("native", "cpu")


def test_a_compiler_that_fails(fresh, script, tmp_path):
    fresh(script("echo 'kernels.cc:1: error: not today' >&2; exit 1"))
    assert ops.choose("auto", "cpu").why.endswith("could not compile them (kernels.cc:1: error: not today)")
    assert not list((tmp_path / "cache").rglob("*.so"))
    native.outcome.clear()
    fresh("/nowhere/c++")
    assert "could not be compiled" in ops.choose("auto", "cpu").why


@pytest.mark.parametrize(
    ("said", "reason"),
    [  # by a disk that is full: under the library, under the compiler's own files, under the assembler's
        (
            "/usr/bin/ld: final link failed: No space left on device\ncollect2: error: ld returned 1 exit status",
            "/usr/bin/ld: final link failed: No space left on device",
        ),
        (
            "In function 'f':\nkernels.cc:508: fatal error: error writing to a.s: No space left on device",
            "kernels.cc:508: fatal error: error writing to a.s: No space left on device",
        ),
        (
            "/tmp/a.s: Assembler messages:\n/tmp/a.s: Fatal error: can't close /tmp/a.o: No space left on device",
            "/tmp/a.s: Fatal error: can't close /tmp/a.o: No space left on device",
        ),
        ("", "it said nothing"),
    ],
)
def test_the_compilers_own_reason_is_said(fresh, script, tmp_path, said, reason):
    (tmp_path / "said").write_text(said)
    fresh(script(f"cat '{tmp_path}/said' >&2; exit 1"))
    assert ops.choose("auto", "cpu").why.endswith(f"could not compile them ({reason})")


def test_a_compiler_that_makes_something_else(fresh, script, tmp_path):
    fresh(script('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"'))
    assert "compiled and cannot be loaded" in ops.choose("auto", "cpu").why
    assert not list((tmp_path / "cache").rglob("*.so"))


@pytest.mark.parametrize("command", ["", " ", "\t"])
def test_a_compiler_that_is_left_blank(fresh, monkeypatch, command):
    fresh(command)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "no C++ compiler was found" in ops.choose("auto", "cpu").why


@pytest.mark.parametrize("command", ["g++ '", '"', "g++ \\"])
def test_a_compiler_that_is_no_command(fresh, command):
    fresh(command)
    assert ops.choose("auto", "cpu").why.startswith(f"CXX={command} cannot be read as a command (No ")
    with pytest.raises(UserError, match="--kernels native: CXX="):
        ops.choose("native", "cpu")


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_have_their_own(platform):
    assert ops.choose("auto", platform) == ops.choose("xla", platform) == ("xla", "")
    with pytest.raises(UserError, match=f"they are for CPUs, and this is a {platform}"):
        ops.choose("native", platform)


@pytest.fixture
def ready(cpu_kernels):
    """The library of this process."""
    return native.outcome[0]._name


@pytest.fixture
def said(ready, fresh, script):
    """Chooses as a new process would, and returns what that says; its compiler copies the library, in no time."""
    fresh(script(f'while [ "$1" != -o ]; do shift; done; cp {ready} "$2"'))

    def choose():
        native.outcome.clear()
        library.own_directory.cache_clear()
        sentences = []
        assert ops.choose("native", "cpu", say=sentences.append) == ("native", "")
        return sentences

    return choose


ONCE = "Compiling the CPU kernels, once on this machine ..."


def kept(tmp_path):
    [library] = (tmp_path / "cache").rglob("*.so")
    return library


def test_they_are_compiled_once(said, tmp_path):
    assert said() == [ONCE]
    before = kept(tmp_path).stat()
    assert said() == []
    assert kept(tmp_path).stat() == before


def test_a_good_library_is_used_where_nothing_can_be_written(said, monkeypatch):
    said()
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr(library, "write_bytes", None)
    assert said() == []


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "of another program"])
def test_a_damaged_library_is_made_anew(said, tmp_path, damage):
    said()
    data = kept(tmp_path).read_bytes()
    flipped = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    contents = {"truncated": data[: len(data) // 2], "emptied": b"", "flipped": flipped}
    kept(tmp_path).write_bytes(contents.get(damage, b"nonsense"))
    anew = f"The kept CPU kernels cannot be used, and are compiled anew: {kept(tmp_path)}: it is damaged"
    assert said() == [anew, ONCE]
    assert said() == []


def test_a_library_that_can_be_neither_read_nor_replaced(said, tmp_path):
    """As another user's in a directory that all share; here it is a directory, which stops root too."""
    said()
    path = kept(tmp_path)
    path.unlink()
    path.mkdir()
    for _ in range(2):
        anew, _, unkept = said()
        assert anew.startswith(f"The kept CPU kernels cannot be used, and are compiled anew: {path}: ")
        assert unkept.startswith(f"Every start compiles the CPU kernels, for they cannot be kept: {path}: ")


@pytest.mark.parametrize("place", ["cache", "own"])
def test_where_nothing_may_be_executed(said, tmp_path, monkeypatch, place):
    """Neither in a home nor among temporary files, as they may be mounted."""

    class Mounted(ctypes.CDLL):
        def __init__(self, path):
            if path.startswith(str(tmp_path / "cache")) == (place == "cache"):
                raise OSError(f"{path}: failed to map segment from shared object")
            super().__init__(path)

    monkeypatch.setattr("ctypes.CDLL", Mounted)
    assert said() == [ONCE]
    assert said() == []


def test_where_nothing_can_be_kept(said, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    first, second = said()
    assert first == "Compiling the CPU kernels ..."
    assert second.startswith("Every start compiles the CPU kernels, for they cannot be kept: ")


def test_where_there_is_no_home(said, monkeypatch):
    monkeypatch.setattr(library, "cache_path", lambda: None)
    assert said() == ["Compiling the CPU kernels ..."]
