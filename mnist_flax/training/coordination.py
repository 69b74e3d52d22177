"""How the processes of a job exchange messages and wait for each other: JAX's coordination service.

It works before, and without, any exchange between devices. JAX has no public name for its client; Orbax uses the same
private one.
"""

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

# The others may still be loading, or downloading, their data. If one of them dies, JAX ends the wait.
ONE_DAY = 24 * 3600 * 1000  # milliseconds


def state() -> Any:
    """JAX's record of the job: `client` (None outside a job), `process_id`, `num_processes`."""
    from jax._src import distributed

    return distributed.global_state


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


def meet(where: str) -> None:
    """Return when every process of the job has come to this place in the program, whose name is `where`."""
    wait(lambda: state().client.wait_at_barrier(f"mnist_flax/{where}", ONE_DAY))


def from_process_0(name: str, value: str) -> str:
    """Return the `value` that process 0 calls this with."""
    key = f"mnist_flax/{name}"
    if state().process_id == 0:
        state().client.key_value_set(key, value)
        return value
    return wait(lambda: state().client.blocking_key_value_get(key, ONE_DAY))
