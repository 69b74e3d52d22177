"""The C++ kernels' library: compiled by this machine's compiler, for this machine, and kept for the next start."""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from mnist_flax.files import cache_directory, cache_path, write_bytes

SOURCE = Path(__file__).with_name("kernels.cc")
COMPILERS = ("c++", "g++", "clang++")
# The library never leaves this machine, so it may use all that its processor has.
OPTIONS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-Wno-psabi", "-Wno-ignored-attributes")
TIMEOUT = 120  # seconds; compiling takes ten
SUM = hashlib.sha256().digest_size  # bytes at a kept library's end: one that is cut short would crash when loaded


def load(keep: bool, say: Callable[[str], None]) -> ctypes.CDLL | str:
    """The library, or why there is none.

    Args:
        keep: whether to use, and leave, one in the user's cache directory.
        say: is told when it is compiled, and what is wrong with the one that is kept.
    """
    try:
        command = _command()
    except ValueError as error:
        return f"CXX={os.environ['CXX']} cannot be read as a command ({error})"
    if command is None:
        return f"no C++ compiler was found ({', '.join(COMPILERS)})"
    name, directory = _name(command), cache_path() if keep else None
    kept = directory / name if directory else None
    try:
        made = own_directory() / name
        if kept is not None and os.path.exists(kept):
            try:
                return _opened(kept, made)
            except OSError as error:
                say(f"The kept CPU kernels cannot be used, and are compiled anew: {_reason(error, kept)}")
        once = ", once on this machine" if directory and cache_directory() else ""
        say(f"Compiling the CPU kernels{once} ...")
        _compile(command, made)
    except subprocess.CalledProcessError as error:
        return f"{command[0]} could not compile them ({_first_error(error.stderr)})"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"they could not be compiled ({error})"
    try:
        loaded = ctypes.CDLL(str(made))
        if kept is not None:
            _keep(made, kept, say)
        return loaded
    except OSError as error:
        # Perhaps nothing may be executed where temporary files are; else it is no library, and not to be kept.
        if kept is not None and (loaded := _loaded_as_kept(made, kept, say)):
            return loaded
        return f"they were compiled and cannot be loaded ({error})"


def compiler() -> list[str] | None:
    """The C++ compiler: $CXX, which may have options, or the first of `COMPILERS` that there is.

    Raises:
        ValueError: $CXX has a quotation mark too many.
    """
    found = os.environ.get("CXX", "").strip() or next(filter(None, map(shutil.which, COMPILERS)), None)
    return None if found is None else shlex.split(found)


def _command() -> list[str] | None:
    """What compiles them, without the result's name; None if there is no compiler."""
    chosen = compiler()
    if not chosen:
        return None
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    return [chosen[0], *OPTIONS, *chosen[1:], native, "-isystem", jax.ffi.include_dir(), str(SOURCE)]


def _name(command: list[str]) -> str:
    """The file name of the library that a command makes on this machine."""
    made_from = (command, SUM, SOURCE.read_bytes(), jax.__version__, platform.machine(), processor())
    return f"kernels-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]}.so"


@functools.cache
def own_directory() -> Path:
    """A directory for this process alone."""
    directory = Path(tempfile.mkdtemp(prefix="mnist_flax"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _compile(command: list[str], made: Path) -> None:
    run = {"capture_output": True, "text": True, "errors": "replace", "check": True, "timeout": TIMEOUT}
    in_english = {**os.environ, "LC_ALL": "C"}
    subprocess.run([*command, "-o", str(made)], stdin=subprocess.DEVNULL, env=in_english, **run)


def _opened(kept: Path, copy: Path) -> ctypes.CDLL:
    """The library that is kept, loaded; from a copy if nothing may be executed where it is, as in some homes.

    Raises:
        OSError: it cannot be read, or it is damaged.
    """
    data = kept.read_bytes()
    if hashlib.sha256(data[:-SUM]).digest() != data[-SUM:]:
        raise OSError("it is damaged")
    try:
        return ctypes.CDLL(str(kept))
    except OSError:
        copy.write_bytes(data)
        return ctypes.CDLL(str(copy))


def _keep(made: Path, kept: Path, say: Callable[[str], None]) -> None:
    """Keep a library for the next start, if that is possible. Several processes may do so at once."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        data = made.read_bytes()
        write_bytes(kept, data + hashlib.sha256(data).digest())
    except OSError as error:
        say(f"Every start compiles the CPU kernels, for they cannot be kept: {_reason(error, kept)}")


def _loaded_as_kept(made: Path, kept: Path, say: Callable[[str], None]) -> ctypes.CDLL | None:
    _keep(made, kept, say)
    with contextlib.suppress(OSError):
        return ctypes.CDLL(str(kept))
    with contextlib.suppress(OSError):
        kept.unlink()
    return None


def _reason(error: OSError, path: Path) -> str:
    return f"{path}: {error.strerror or error}"


def processor() -> str:
    """What tells processors apart: a home directory may be shared by machines of several kinds."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    return platform.processor()


def _first_error(text: str) -> str:
    """What a compiler, or its linker, complains of first; not its last line, which is of the program around it."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = (line for line in lines if re.search("error|failed|fatal|cannot|No space left", line, re.IGNORECASE))
    return next(said, lines[-1] if lines else "it said nothing")
