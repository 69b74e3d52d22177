"""Which kernels a program uses, and what is said where there are none."""

import stat

import pytest

from mnist_flax import kernels
from mnist_flax.errors import UserError
from mnist_flax.kernels import native


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
    choice = kernels.choose("auto", "cpu")
    assert choice == ("xla", "no C++ compiler was found (c++, g++, clang++)")
    assert not native.must_compile()
    with pytest.raises(UserError, match="--kernels native: no C\\+\\+ compiler was found"):
        kernels.choose("native", "cpu")


def test_a_compiler_that_fails(fresh, script, tmp_path):
    fresh(script("echo 'kernels.cc:1: error: not today' >&2; exit 1"))
    assert native.must_compile()
    assert kernels.choose("auto", "cpu").why.endswith("could not compile them (kernels.cc:1: error: not today)")
    assert not list((tmp_path / "cache").rglob("*.so"))
    native.outcome.clear()
    fresh("/nowhere/c++")
    assert "could not be compiled" in kernels.choose("auto", "cpu").why


def test_a_compiler_that_makes_something_else(fresh, script):
    fresh(script('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"'))
    assert "could not be compiled" in kernels.choose("auto", "cpu").why


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_have_their_own(platform):
    assert kernels.choose("auto", platform) == kernels.choose("xla", platform) == ("xla", "")
    with pytest.raises(UserError, match=f"they are for CPUs, and this is a {platform}"):
        kernels.choose("native", platform)


@pytest.mark.usefixtures("cpu_kernels")
def test_they_are_compiled_once(fresh, tmp_path, monkeypatch):
    assert native.must_compile()
    assert kernels.choose("native", "cpu") == ("native", "")
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 1
    assert not native.must_compile()
    native.outcome.clear()
    monkeypatch.setattr("subprocess.run", None)
    assert kernels.choose("auto", "cpu").name == "native"


@pytest.mark.usefixtures("cpu_kernels")
def test_where_nothing_can_be_kept(fresh, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kernels.choose("auto", "cpu").name == "native"
