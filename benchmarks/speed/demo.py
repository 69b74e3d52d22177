"""`python -m benchmarks.speed.demo`: predictions a second and their latency, as the demo's page asks for them.

Starts the command in a process of its own and sends it drawn digits, at a fixed rate whether or not answers have come
(so that a slow answer delays no other request), each connection's thread waiting for its own. The threads that ask run
on the same cores as the server, and what they take it lacks.
"""

import argparse
import concurrent.futures
import http.client
import io
import queue
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from benchmarks.common import parser_of
from benchmarks.speed.compare import machine
from mnist_flax.cli import command
from mnist_flax.errors import UserError

CONNECTIONS = 16


class Answer(NamedTuple):
    """Its HTTP status, 0 if there was none, and the seconds from when it was due to be asked for."""

    status: int
    seconds: float


def drawing() -> bytes:
    """A seven as the page sends it: a PNG of 140×140 pixels."""
    picture = Image.new("RGBA", (140, 140), (16, 21, 30))
    ImageDraw.Draw(picture).line([(40, 35), (100, 32), (82, 65), (65, 110)], "white", 12, "curve")
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def ask(address: str, rate: float, seconds: float) -> tuple[list[Answer], float]:
    """Every answer to `rate` requests a second, and how many came in a second."""
    body, due = drawing(), queue.SimpleQueue()
    started = time.perf_counter() + 0.1
    for i in range(int(rate * seconds)):
        due.put(started + i / rate)

    def work() -> list[Answer]:
        connection, answers = http.client.HTTPConnection(address, timeout=30), []
        while not due.empty():
            try:
                at = due.get_nowait()
            except queue.Empty:
                break
            time.sleep(max(0.0, at - time.perf_counter()))
            try:
                connection.request("POST", "/predict", body, {"Content-Type": "image/png"})
                response = connection.getresponse()
                response.read()
                answers.append(Answer(response.status, time.perf_counter() - at))
            except (OSError, http.client.HTTPException):
                connection.close()
                answers.append(Answer(0, time.perf_counter() - at))
        connection.close()
        return answers

    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
        threads = [pool.submit(work) for _ in range(CONNECTIONS)]
        answers = [answer for thread in threads for answer in thread.result()]
    return answers, len(answers) / (time.perf_counter() - started)


def describe(rate: float, answers: list[Answer], achieved: float) -> str:
    """One line."""
    times = sorted(1e3 * answer.seconds for answer in answers)
    failed = sum(answer.status != 200 for answer in answers)
    return (
        f"{rate:g} predictions a second asked for, {achieved:.0f} answered, {failed} of {len(answers)} with an error; "
        f"median {statistics.median(times):.1f} ms, 99 % within {times[int(0.99 * len(times))]:.1f} ms"
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options.

    Raises:
        UserError: they ask for what cannot be measured.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[20, 200], help="predictions a second")
    parser.add_argument("--seconds", type=float, default=20, help="for each rate (default: %(default)s)")
    options = parser.parse_args(arguments)
    if min(options.rates) * options.seconds < 1:
        raise UserError("that rate for so many seconds is not even one prediction")
    return options


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    print("\n".join(f"{key:<12}{value}" for key, value in machine().items()))
    server = [sys.executable, "-m", "mnist_flax.demo", "--no-browser", "--port", "0"]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            address = urllib.parse.urlsplit(process.stdout.readline().partition(" ")[0]).netloc
            if not address:
                raise UserError("the demo did not start")
            for rate in options.rates:
                ask(address, rate, 1)
                print(describe(rate, *ask(address, rate, options.seconds)), flush=True)
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
