"""A run among the processes of a job: joining it, being asked to stop, and not leaving the others waiting."""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mnist_flax.errors import UserError

# A process of a job that has shown no sign of life for so long is taken for dead, and the others end.
HEARTBEAT_SECONDS = 30


class Interruption:
    """Which signal, if any, has asked the run to stop at the next opportunity."""

    signal: int | None = None


@contextmanager
def signals() -> Iterator[Interruption]:
    """Note SIGTERM and Ctrl-C for the loop to act on; a second Ctrl-C acts at once."""
    interruption = Interruption()

    def note(number: int, frame: Any) -> None:
        interruption.signal = number
        signal.signal(signal.SIGINT, leave)
        print("\nstopping as soon as the steps under way are done; Ctrl-C to stop at once", file=sys.stderr)

    def leave(number: int, frame: Any) -> None:
        # Not by an exception: Orbax's threads, cut off in the middle of a save, would print tracebacks.
        print("error: interrupted", file=sys.stderr, flush=True)
        os._exit(128 + number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def join() -> None:
    """Join the other processes of the job to which JAX finds that this one belongs.

    Raises:
        UserError: there is no such job.
    """
    import jax

    # That service would handle SIGTERM in place of our own handler, and Ctrl-C not at all.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "--distributed found no job to join: start one process for each host, or GPU, under Slurm, Open MPI, "
            f"Kubernetes or on a TPU pod ({' '.join(str(error).split())[:200]})"
        ) from error


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """If one process of several fails or is killed, end this one at once: none can go on, or wait, without the others.

    A normal exit would say goodbye to the others, and that waits for every one of them.
    """
    import jax

    try:
        yield
        return
    except (UserError, OSError) as error:
        message, status = str(error), 2
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        message, status = f"another process of the job has ended ({reason}); start the job again to go on", 1
    except Exception:  # noqa: BLE001 - a mistake of ours: the others must not wait for this process either
        message, status = traceback.format_exc(), 1
    print(f"error: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
