"""Wall time of whole commands, each in a new process."""

import os
import subprocess
import sys
import tempfile

from benchmarks.speed.suite import Work

KEPT = tempfile.TemporaryDirectory()  # compiled programs, for all rounds


def _python(*arguments: str, until: str | None = None, cache: str = KEPT.name) -> None:
    """Run Python to its end, or until it prints a line that begins with `until`; XLA's programs are kept in `cache`."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        reached = any(line.startswith(until) for line in process.stdout) if until else process.wait() == 0
        process.kill()
    if not reached:
        raise RuntimeError(f"python {' '.join(arguments)} failed")


def _train(cached: bool) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        options = "--dataset", "digits", "--epochs", "1", "--workdir", f"{scratch}/run"
        cache = KEPT.name if cached else f"{scratch}/cache"
        _python("-m", "mnist_flax.train", *options, until="Compiled in", cache=cache)


def startup(name: str) -> dict[str, Work]:
    """The training command until its step is compiled, with XLA's programs of the run before and with none."""
    return {
        "train, compiled before": Work(lambda: _train(cached=True)),
        "train, nothing cached": Work(lambda: _train(cached=False)),
        "train --help": Work(lambda: _python("-m", "mnist_flax.train", "--help")),
        "summary": Work(lambda: _python("-m", "mnist_flax.summary")),
    }
