"""`python -m benchmarks`: runs each implementation in its own warm process, in turns, and prints a table."""

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.common import parser_of
from benchmarks.speed.suite import SUITE, Benchmark, why_skipped
from mnist_flax.cli import command
from mnist_flax.errors import UserError

Round = dict[str, float]  # figures by row of the table


class Worker:
    """A process that holds one implementation ready and times a round of it when asked."""

    def __init__(self, name: str, peer: str, function: str) -> None:
        self.description = f"{peer} in {name}"
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in __exit__
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.worker", function, peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            # A GPU is shared with the other workers. The last line of an error is what went wrong, not JAX's hint.
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_TRACEBACK_FILTERING": "off"},
        )

    def answer(self) -> Round:
        """Its next answer, in seconds per unit of work; the first is empty and comes when it is warm.

        Raises:
            UserError: it has failed.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            reason = self.errors.read().strip().rpartition("\n")[2] or f"exit status {self.process.wait()}"
            raise UserError(f"measuring {self.description} failed: {reason}")
        return json.loads(line)

    def ask(self) -> Round:
        """Time a round."""
        with contextlib.suppress(BrokenPipeError):  # it has failed, as its answer will say
            print(file=self.process.stdin, flush=True)
        return self.answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self.process.communicate(timeout=10)  # its input ends, and so does it
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.errors.close()


def measure(name: str, benchmark: Benchmark, num_rounds: int) -> tuple[list[Round], dict[str, str]]:
    """The figures of every round, in the benchmark's unit, and the peers that were skipped with the reason."""
    reasons = {peer: why_skipped(peer) for peer in benchmark.peers}
    skipped = {peer: reason for peer, reason in reasons.items() if reason}
    rounds, workers = [], []
    with contextlib.ExitStack() as stack:
        for peer, function in benchmark.peers.items():
            if peer not in skipped:
                workers.append(stack.enter_context(Worker(name, peer, function)))
                workers[-1].answer()
        for _ in tqdm(range(num_rounds if workers else 0), desc=name, leave=False, disable=None):
            seconds = {row: value for worker in workers for row, value in worker.ask().items()}
            scale = benchmark.scale
            rounds.append({row: value * scale if scale else 1 / value for row, value in seconds.items()})
    return rounds, skipped


class Row(NamedTuple):
    """A row of the table; `ratio` is the median over the rounds of its figure over the first row's."""

    name: str
    median: float
    smallest: float
    largest: float
    ratio: float


def summarise(rounds: list[Round]) -> list[Row]:
    """The table's rows. Ratios are taken within a round, so that what slows a whole round does not count."""

    def row(name: str, first: str) -> Row:
        figures = [figures[name] for figures in rounds]
        ratio = statistics.median(figures[name] / figures[first] for figures in rounds)
        return Row(name, statistics.median(figures), min(figures), max(figures), ratio)

    names = list(rounds[0]) if rounds else []
    return [row(name, names[0]) for name in names]


def table(name: str, benchmark: Benchmark, rows: list[Row], skipped: dict[str, str]) -> str:
    """The table as text."""

    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

    first = rows[0].name if rows else ""
    lines = [f"{name}: {benchmark.title}"]
    if rows:
        lines.append(f"{'':<25}{benchmark.unit:>14}{'min–max':>20}   × {first}")
    for row in rows:
        spread = f"{number(row.smallest)}–{number(row.largest)}"
        lines.append(f"{row.name:<25}{number(row.median):>14}{spread:>20}{row.ratio:>10.2f}")
    return "\n".join(lines + [f"{peer:<25}skipped: {reason}" for peer, reason in skipped.items()])


def _load(cores: int) -> str:
    """The load of the last minute, which should be nobody else's.

    One busy core in two makes the threads of PyTorch's OpenMP wait for each other: 1.3 s a step instead of 0.06.
    """
    if not hasattr(os, "getloadavg"):
        return "unknown"
    load = os.getloadavg()[0]
    return f"{load:.1f}" + (" (BUSY: other programs distort these figures, ratios too)" if load > 0.25 * cores else "")


def machine() -> dict[str, str]:
    """What the figures depend on."""
    from mnist_flax.ops import native  # with JAX, which refusing an option need not wait for
    from mnist_flax.training.mesh import num_cores

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    cpuinfo = Path("/proc/cpuinfo")
    model = cpuinfo.read_text().partition("model name")[2].partition("\n")[0].strip("\t: ") if cpuinfo.exists() else ""
    facts = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "CPU": f"{model or platform.processor() or platform.machine()}, {num_cores()} cores",
        "CPU kernels": f"none: {reason}" if (reason := native.unavailable_reason()) else "compiled",
        "load": _load(num_cores()),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{package: installed(package) for package in ("jax", "flax", "torch", "tensorflow", "pillow")},
    }
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        gpus = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")
        facts["GPU"] = ", ".join(filter(None, gpus)) or "none"
    return facts


def plot(rows: list[Row], path: Path) -> None:
    """Draw the `scaling` benchmark: medians with their range against batch size and number of devices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, kind in zip(figure.subplots(1, 2), ("batch", "devices"), strict=True):
        chosen = [row for row in rows if row.name.startswith(kind)]
        sizes = [int(row.name.split()[1]) for row in chosen]
        spread = [[row.median - row.smallest for row in chosen], [row.largest - row.median for row in chosen]]
        axes.errorbar(sizes, [row.median for row in chosen], spread, marker="o", capsize=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, list(map(str, sizes)))
        axes.set_ylim(bottom=0)
        axes.set(xlabel="batch size, on one device" if kind == "batch" else "devices, at batch size 128")
        axes.set(ylabel="training images per second")
    figure.savefig(path)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options.

    Raises:
        UserError: they ask for what cannot be measured.
    """
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(SUITE)}; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each implementation (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw `scaling` (PNG, SVG or PDF)")
    options = parser.parse_args(arguments)
    options.names = list(dict.fromkeys(options.names)) or list(SUITE)
    for name in options.names:
        if name not in SUITE:
            raise UserError(f"there is no benchmark {name!r}; choose from {', '.join(SUITE)}")
    if options.rounds < 1:
        raise UserError(f"--rounds is {options.rounds}; it must be at least 1")
    if options.plot and "scaling" not in options.names:
        raise UserError("--plot draws the benchmark `scaling`, which is not among those named")
    if options.plot and not find_spec("matplotlib"):
        raise UserError("--plot needs matplotlib: pip install 'mnist-flax[bench]'")
    for path in filter(None, (options.json, options.plot)):
        path.touch()  # refused now rather than after the measurements
    return options


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    facts = machine()
    print("\n".join(f"{key:<12}{value}" for key, value in facts.items()))
    print(f"{'rounds':<12}{options.rounds}, the implementations taking turns")
    results = {}
    for name in options.names:
        rounds, skipped = measure(name, SUITE[name], options.rounds)
        rows = summarise(rounds)
        print("\n" + table(name, SUITE[name], rows, skipped), flush=True)
        results[name] = {"unit": SUITE[name].unit, "rounds": rounds, "skipped": skipped}
        if name == "scaling" and options.plot:
            plot(rows, options.plot)
        if options.json:
            options.json.write_text(json.dumps({"machine": facts, "benchmarks": results}, indent=2) + "\n")
