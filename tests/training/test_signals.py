"""Signals at moments of every kind, in processes that import no JAX."""

import signal
import subprocess
import sys
import threading

import pytest

from mnist_flax.errors import StoppedError
from mnist_flax.training import signals

BEGIN = """
import hashlib, os, signal, sys, time
from contextlib import suppress
from mnist_flax import cli
from mnist_flax.training import signals

number = int(sys.argv[1])

def kill():
    os.kill(os.getpid(), number)

def soon():
    "While the main thread does something else."
    import threading
    threading.Timer(0.1, kill).start()

def train(arguments):
    with signals.answered(0.3) as interruption:
"""
END = """
cli.command(train)()
print("went on")
"""
STOPPED = "error: stopped by {}; run the same command again to go on\n"
# What the process is doing: its code, and the answer.
MOMENTS = {
    "waiting": ("soon(); time.sleep(30)", STOPPED),
    "in a long call that Python cannot cut short": ("soon(); hashlib.pbkdf2_hmac('md5', b'', b'', 1 << 30)", STOPPED),
    "where every error is caught": ("with suppress(Exception):\n            kill()", STOPPED),
    "where even that is caught": ("with suppress(BaseException):\n            kill()\n        time.sleep(30)", STOPPED),
    "where another error is made of it": (
        "try: kill()\n        except BaseException as e: raise ImportError('cut off') from e",
        STOPPED,
    ),
    "writing to standard error": (
        "soon()\n        while True: print('.' * 99, end='', file=sys.stderr, flush=True)",
        STOPPED,
    ),
    "training, and about to end": ("with interruption.note():\n            kill()", STOPPED),
    "training, and it saves": (
        "with interruption.note():\n            kill()\n            sys.exit(128 + interruption.signal)",
        "",
    ),
    "asked once more": (
        "with interruption.note():\n            kill(); kill(); time.sleep(30 * (number == 2))",
        STOPPED,
    ),
}


@pytest.mark.parametrize("number", signals.ANSWERED)
@pytest.mark.parametrize("moment", MOMENTS)
def test_it_ends_in_time_with_the_status_of_the_signal(moment, number):
    body, answer = MOMENTS[moment]
    program = f"{BEGIN}        {body}\n{END}"
    command = [sys.executable, "-W", "error", "-c", program, str(int(number))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if moment == "asked once more" and number == signal.SIGINT:
        answer = "error: interrupted\n"
    assert (ended.returncode, ended.stdout) == (128 + number, "")
    assert "Traceback" not in ended.stderr
    assert ended.stderr.endswith(answer.format(number.name))
    assert ended.stderr.count("error: ") == (answer != "")


def test_who_was_not_stopped_has_the_handlers_of_before():
    before = [signal.getsignal(number) for number in signals.ANSWERED], signal.set_wakeup_fd(-1)
    with signals.answered() as interruption, interruption.note():
        assert signal.getsignal(signal.SIGTERM) is not before[0][1]
    assert ([signal.getsignal(number) for number in signals.ANSWERED], signal.set_wakeup_fd(-1)) == before


@pytest.mark.parametrize("swallowed", [True, False])
def test_in_somebodys_program_it_is_raised_at_the_latest_when_the_command_ends(swallowed):
    def train():
        with signals.answered():
            try:
                signal.raise_signal(signal.SIGINT)
            except StoppedError as error:
                if not swallowed:
                    raise ImportError from error

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="stopped by SIGINT"):
        train()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thread_that_may_handle_no_signals_does_without():
    seen = []

    def train():
        with signals.answered() as interruption, interruption.note():
            seen.append(interruption.signal)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [None]
