"""Training runs on a file system that fails: what they say, what they lose, and whether they go on.

A run on `digits` is made again and again in one process. Each time a call
that changes a file of the run (open, write, sync, rename, make a directory) fails, by turns with each of `ERRORS`: the
n-th call alone, or all from the n-th on, n evenly spread over the run. Or files may grow to so many bytes, or so many
files may be open. The command must say so in one sentence and exit with status 2, or do without that file. Then the
file system is whole again, and the same command must end with the bits of a run that nothing befell.
"""

import ctypes
import errno
import gc
import os
import resource
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from mnist_flax.ops.library import compiler

from .kills import NO_REPORT, OPTIONS, latest_step, records

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES)
SOURCE = Path(__file__).with_name("failing_files.c")
EVER = 2**31


class Said(NamedTuple):
    """What the command said: its exit status, standard output, standard error."""

    status: int
    out: str
    err: str


def train(workdir: Path) -> Said:
    """The training command as a process runs it, in this one; standard error also as C++ and threads write it."""
    from mnist_flax import train as command

    sys.argv = ["mnist-flax", *OPTIONS, NO_REPORT, "--epochs", "3", "--workdir", str(workdir)]
    reader, writer = os.pipe()
    terminal, out, err = os.dup(2), StringIO(), list[bytes]()
    os.dup2(writer, 2)
    os.close(writer)
    reading = threading.Thread(target=lambda: err.extend(iter(lambda: os.read(reader, 65536), b"")))
    reading.start()
    status = 0
    try:
        with redirect_stdout(out):
            command.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except Exception as error:  # noqa: BLE001 - what must not be
        err.append(f"Traceback: {error!r}".encode())
        status = 1
    finally:
        gc.collect()  # what destructors say is said now
        os.dup2(terminal, 2)
        os.close(terminal)
        reading.join()
        os.close(reader)
    return Said(status, out.getvalue(), b"".join(err).decode(errors="replace"))


@contextmanager
def limited(kind: int, limit: int) -> Iterator[None]:
    """A limit of the system for this process."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def failing(library: ctypes.CDLL, workdir: Path, first: int, last: int, error: int) -> Iterator[None]:
    """Calls that change files of a run fail, from the `first` to the `last`."""
    library.fail(str(workdir).encode(), ctypes.c_long(first), ctypes.c_long(last), error)
    try:
        yield
    finally:
        library.fail(b"", ctypes.c_long(0), ctypes.c_long(0), 0)


def faults(library: ctypes.CDLL, count: int, num_calls: int) -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What befalls each run: a name, and what makes a context of it."""
    for i in range(count):
        at = 1 + i * num_calls // count
        if i % 8 == 6:  # as `ulimit -f`: the largest file has 60 kB
            size = 70_000 * i // count
            yield f"files of {size} bytes at most", lambda _, size=size: limited(resource.RLIMIT_FSIZE, size)
        elif i % 8 == 7:  # as `ulimit -n`: so many more than are open
            number = len(os.listdir("/proc/self/fd")) + 24 * i // count
            yield f"{number} open files at most", lambda _, number=number: limited(resource.RLIMIT_NOFILE, number)
        else:
            error, last = ERRORS[i % len(ERRORS)], at if i // 2 % 2 else EVER
            name = f"{errno.errorcode[error]} at call {at}{'' if last == at else ' and all that follow'}"
            yield name, lambda path, at=at, last=last, error=error: failing(library, path, at, last, error)


def sweep(count: int, directory: Path) -> Counter[str]:
    """How many runs were tried, and what became of them.

    Raises:
        AssertionError: a run did not end as the one that nothing befell.
    """
    library = ctypes.CDLL(None)
    with failing(library, directory / "whole", 0, 0, 0):
        assert train(directory / "whole").status == 0
        num_calls = library.num_calls()
    expected, outcome = records(directory / "whole"), Counter(tried=count)
    for i, (name, fault) in enumerate(faults(library, count, num_calls)):
        workdir = directory / f"run{i}"
        with fault(workdir):  # pyright: ignore[reportGeneralTypeIssues]
            said = train(workdir)
        saved = latest_step(workdir)
        lines = said.err.splitlines()
        well = (said.status, len(lines)) in ((0, 0), (2, 1))
        outcome[
            "refused in one sentence" if said.status == 2 and well else "done without" if well else "badly said"
        ] += 1
        again = train(workdir)
        lost = again.status != 0 or (saved > 0 and said.status != 0 and "Resuming after" not in again.out)
        lost = lost or records(workdir) != expected
        outcome["lost something"] += lost
        print(f"{i + 1}: {name}: status {said.status}, {lines[-1] if lines else 'nothing said'}", flush=True)
        if not well or lost:
            print(said.err, again, sep="\n", flush=True)
    return outcome


def run(program: str, *arguments: str) -> str:
    """Run a Python program in a process whose calls can be made to fail; what it printed to standard error.

    Raises:
        subprocess.CalledProcessError: the C compiler, or the program, failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "failing_files.so"
        subprocess.run(
            [*(compiler() or ["cc"]), "-x", "c", "-O1", "-shared", "-fPIC", SOURCE, "-o", library], check=True
        )
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(
            command, env={**environment, "LD_PRELOAD": str(library)}, stderr=subprocess.PIPE, text=True
        )
    sys.stderr.write(done.stderr)
    done.check_returncode()
    return done.stderr


def main(count: int, directory: Path) -> None:
    """Sweep, and print what came out."""
    run("import sys; from tests.faults import failing_writes as f; f.report(*sys.argv[1:])", str(count), str(directory))


def report(count: str, directory: str) -> None:
    """Print what a sweep in this process gives."""
    for name, number in sweep(int(count), Path(directory)).items():
        print(f"{number} {name}")
