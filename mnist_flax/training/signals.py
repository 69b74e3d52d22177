"""How a run answers SIGTERM and Ctrl-C, whatever it is doing."""

import concurrent.futures
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NoReturn

from mnist_flax.errors import StoppedError

ANSWERED = (signal.SIGINT, signal.SIGTERM)
# How long a process goes on after a signal, in which temporary files are removed. XLA compiles for longer.
GRACE = 1.5
# How much longer a process of a job may take: until the others know why it ends.
LEAVE_SECONDS = 5


class Interruption:
    """Which signal, if any, has asked the run to stop, and who acts on it.

    Attributes:
        signal: its number.
        noted: whether it is only noted now, for the code that runs to act on; else it raises `StoppedError`.
        raised: its number too, if it has done so.
    """

    signal: int | None = None
    noted = False
    raised: int | None = None

    @contextmanager
    def note(self) -> Iterator[None]:
        """Let the code within act on `signal` when it can save.

        Raises:
            StoppedError: a signal came, and the code within has come to its end without acting on it.
        """
        self.noted = True
        try:
            yield
        finally:
            self.noted = False
        if self.signal:
            raise StoppedError(self.signal)


@contextmanager
def answered(grace: float | None = None) -> Iterator[Interruption]:
    """Answer SIGTERM and Ctrl-C: the training loop notes them and saves first; elsewhere they raise `StoppedError`.

    Python lets only the main thread handle signals: in another one nothing changes.

    Args:
        grace: if this process has no other work, how long it may take to end, in seconds, while temporary files are
            removed. It ends then whatever it is doing: Python raises nothing while XLA compiles. And it says nothing
            more: NumPy and others, if they are being imported, print tracebacks. A second Ctrl-C ends it at once.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def answer(number: int, frame: Any) -> None:
        if interruption.signal:
            return  # the first is being acted on
        interruption.signal = number
        if interruption.noted:
            _say("\nstopping as soon as the steps under way are done; Ctrl-C to stop at once")
            return
        interruption.raised = number
        if grace is not None:
            _say(f"error: {StoppedError(number)}")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        raise StoppedError(number)

    previous = {number: signal.signal(number, answer) for number in ANSWERED}
    try:
        with nullcontext() if grace is None else _in_time(interruption, grace):
            yield interruption
    finally:
        if grace is None or not interruption.signal:  # else this process is about to end
            for number, handler in previous.items():
                signal.signal(number, handler)
        if interruption.raised:  # C code may have dropped it, or made another error of it
            raise StoppedError(interruption.raised)


@contextmanager
def _in_time(interruption: Interruption, grace: float) -> Iterator[None]:
    """End this process if a signal has not done so after `grace` seconds; it is one that Python has no time to handle.

    The numbers of signals come through a pipe, into which Python writes them whatever its main thread is doing.
    """
    arrived, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    threading.Thread(target=_watch, args=(arrived, interruption, grace), daemon=True).start()
    previous = signal.set_wakeup_fd(wakeup)
    try:
        yield
    finally:
        if interruption.raised:
            os._exit(128 + interruption.raised)  # all is closed; Python's own end takes seconds after JAX
        if not interruption.signal:
            signal.set_wakeup_fd(previous)
            os.close(wakeup)


def _watch(arrived: int, interruption: Interruption, grace: float) -> None:
    """In a thread, end this process `grace` seconds after a signal that nobody notes, or at a second Ctrl-C.

    Not by an exception: Orbax's threads, cut off in the middle of a save, would print tracebacks.
    """
    first = None
    for byte in iter(functools.partial(os.read, arrived, 1), b""):
        if byte[0] not in ANSWERED:
            continue
        if first and byte[0] == signal.SIGINT:
            end("interrupted", 128 + signal.SIGINT)
        if first is None and not interruption.noted:
            threading.Thread(target=_end_late, args=(byte[0], interruption, grace), daemon=True).start()
        first = first or byte[0]
    os.close(arrived)


def _end_late(number: int, interruption: Interruption, grace: float) -> None:
    time.sleep(grace)
    if not interruption.noted:  # as it is if the training loop began before Python's handler was called
        end(str(StoppedError(number)), 128 + number)


def in_thread(call: Callable[[], Any]) -> concurrent.futures.Future[Any]:
    """Make a call in a thread that does not keep the process alive, unlike those of an executor."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def make() -> None:
        try:
            future.set_result(call())
        except Exception as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)

    threading.Thread(target=make, daemon=True).start()
    return future


def wait(call: Callable[[], Any], seconds: float | None = None) -> Any:
    """Make a blocking call in a thread, so that this process can answer signals meanwhile.

    Raises:
        TimeoutError: the call took more than `seconds`.
    """
    return in_thread(call).result(seconds)


def end(reason: str, status: int) -> NoReturn:
    """End this process at once with a sentence; whatever else it is doing is cut off."""
    _say(f"error: {reason}")
    os._exit(status)


def _say(text: str) -> None:
    """Print to standard error, past Python's stream: the thread that was interrupted may be writing to it."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
