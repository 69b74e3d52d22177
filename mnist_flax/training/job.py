"""A run as one process of a job: how it joins the others, and how all end together."""

import concurrent.futures
import errno
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from mnist_flax.errors import StoppedError, UserError
from mnist_flax.training.coordination import ONE_DAY, in_thread, state, wait
from mnist_flax.training.signals import end

# How long a process waits for all others to start.
JOIN_SECONDS = 120
# A process that has sent no heartbeat for so long counts as dead, and JAX ends the others.
HEARTBEAT_SECONDS = 30
# How long a process that fails waits until the others know.
LEAVE_SECONDS = 5

_ENDED = "mnist_flax/ended"


def join() -> None:
    """Join the other processes of the job to which JAX finds that this one belongs; end this one if they do not come.

    Raises:
        UserError: there is no job, or this machine cannot take part in it.
    """
    import jax

    address, num_processes, process = wait(_find)
    # JAX's preemption service would handle SIGTERM in place of our own handler, and Ctrl-C not at all.
    jax.config.update("jax_enable_preemption_service", False)
    if process == 0:
        _require_free_port(address)

    def initialize() -> None:
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=num_processes,
            process_id=process,
            initialization_timeout=2 * JOIN_SECONDS,  # at JAX's own time-out it aborts and prints C++ frames
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )

    where = f"the job's {num_processes} processes to meet at {address}"
    try:
        wait(initialize, JOIN_SECONDS)
    except StoppedError as error:  # a thread is still inside JAX, which aborts whatever else one does
        _leave(str(error), 128 + error.signal)
    except TimeoutError:
        _leave(f"process {process} waited {JOIN_SECONDS} s for {where}: {_why_alone(address, process)}", 2)
    except (ValueError, RuntimeError) as error:
        _leave(f"process {process} cannot wait for {where} ({_one_line(error)})", 2)
    in_thread(_end_with_the_others)
    _require_host_name()


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """If this process of several fails, end it at once and tell the others why: they cannot go on without it.

    Not by a normal exit: JAX then waits for all processes.
    """
    import jax

    try:
        yield
    except SystemExit:
        _tell("")
        raise
    except StoppedError as error:
        reason, status = str(error), 128 + error.signal
    except (UserError, OSError) as error:
        reason, status = str(error), 2
    except jax.errors.JaxRuntimeError as error:
        _leave(_ended(_one_line(error)), 1)
    except Exception:  # noqa: BLE001 - a mistake of ours; the others must not wait for this process then either
        reason, status = traceback.format_exc(), 1
    else:
        _tell("")
        return
    _tell(reason.splitlines()[-1])
    _leave(reason, status)


def _find() -> tuple[str, int, int]:
    """The coordinator's address, the number of processes, and this one's number, as JAX finds them.

    They are needed before `jax.distributed.initialize`, which crashes on a port that is taken or without coordinator.
    """
    from jax._src.clusters import ClusterEnv

    address, reason = os.environ.get("JAX_COORDINATOR_ADDRESS"), "JAX recognises none of them here"
    try:
        address, num_processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
            address, None, None, [], None, JOIN_SECONDS
        )
        if address is not None and num_processes is not None and process is not None:
            return address, num_processes, process
    except (ValueError, RuntimeError) as error:
        reason = _one_line(error)
    raise UserError(
        "--distributed found no job to join: start one process for each host, or GPU, under Slurm, Open MPI, "
        f"Kubernetes or on a TPU pod ({reason})"
    )


def _require_free_port(address: str) -> None:
    """Check that process 0 can listen: on a port that is taken, JAX 0.10 and 0.12 end with a segmentation fault."""
    port = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", address).rpartition(":")[2]
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.create_server(("", int(port)), family=family).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port}, on which process 0 is to wait for the others, is in use by another program; end "
                    "that, or give all processes another port in JAX_COORDINATOR_PORT"
                ) from error


def _require_host_name() -> None:
    """Check what Gloo needs, which JAX sets up for CPU devices, also beside GPUs: an address of this machine's name."""
    import jax

    platforms: str | None = jax.config.values["jax_platforms"]
    if platforms and "cpu" not in platforms.split(","):
        return
    if jax.config.values["jax_cpu_collectives_implementation"] != "gloo":
        return
    name = socket.gethostname()
    if not _names_this_machine(name):
        raise UserError(
            f"this machine's host name {name!r} does not resolve to an address that it has, and JAX's CPU processes "
            "find each other by it; add it to /etc/hosts, with an address by which the job's other machines reach "
            f"this one (127.0.1.1 {name} does if there are none)"
        )


def _names_this_machine(name: str) -> bool:
    with suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family) as probe:
                probe.bind(address)
                return True
    return False


def _why_alone(address: str, process: int) -> str:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except socket.gaierror:
        return f"the name {host!r} does not resolve; put it into /etc/hosts or the DNS"
    except OSError as error:
        return f"it does not answer ({error.strerror or error}); is process 0 running, and can its machine be reached?"
    if process == 0:
        return "some did not come; see what became of them, or start as many as were announced"
    return "process 0 did not let it in; see whether all others run, and whether another program has that port"


def _tell(reason: str) -> None:
    """Tell all processes of the job why this one ends, and wait until they know; "" is a normal end."""

    def tell() -> None:
        with suppress(RuntimeError):  # another process has told before
            state().client.key_value_set(_ENDED, f"{state().process_id} {reason}")
        if reason:
            _wait_until_all_know()

    if state().client is not None and (reason or state().process_id == 0):
        concurrent.futures.wait([in_thread(tell)], timeout=LEAVE_SECONDS)


def _end_with_the_others() -> None:
    """Wait for what `_tell` tells, and end this process with a sentence."""
    with suppress(RuntimeError):
        process, _, reason = state().client.blocking_key_value_get(_ENDED, ONE_DAY).partition(" ")
        if reason and int(process) != state().process_id:
            time.sleep(1)  # if all processes fail for the same reason, each says so itself
            print(f"error: {_ended(f'process {process}: {reason}')}", file=sys.stderr, flush=True)
            _wait_until_all_know()
            os._exit(1)


def _wait_until_all_know() -> None:
    with suppress(RuntimeError):
        state().client.wait_at_barrier(_ENDED, LEAVE_SECONDS * 1000)
    if state().process_id == 0:
        time.sleep(0.5)  # JAX's service ends with it, and JAX aborts a process that finds the service gone


def _ended(reason: str) -> str:
    return f"another process of the job has ended ({reason}); start the job again to go on"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _leave(reason: str, status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    end(reason, status)
