"""A run as one process of a job: how it joins the others, agrees with them, waits for them, and ends with them.

Messages go through JAX's coordination service, which works before, and without, any exchange between devices.
"""

import errno
import functools
import json
import os
import secrets
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from mnist_flax.config import Config, flag
from mnist_flax.data import Dataset
from mnist_flax.errors import StoppedError, UserError
from mnist_flax.files import code_digest
from mnist_flax.training.signals import LEAVE_SECONDS, end, in_thread, wait

JOIN_SECONDS = 120  # how long a process waits for all others to start
HEARTBEAT_SECONDS = 30  # a process that has sent no heartbeat for so long counts as dead, and JAX ends the others
ONE_DAY = 24 * 3600 * 1000  # in milliseconds: the others may be downloading their data; if one dies, JAX ends the wait
_ENDED = "mnist_flax/ended"
_LOST = "another process of the job has ended ({}); start the job again to go on"


def _private() -> Any:
    """JAX's module of jobs, the one private import of this package.

    The public `multihost_utils` waits and talks by exchanges between devices: if a process fails before one, the others
    hang until JAX aborts them, without its reason. The coordination service's client has no public name; Orbax uses
    this one, and XLA's "Megascale Hang Playbook" advises it. `ClusterEnv` finds the address for a check of its port.
    """
    try:
        from jax._src import distributed

        module: Any = distributed
        _ = module.global_state.client, module.clusters.ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError) as error:
        raise UserError(f"--distributed does not know JAX {jax.__version__} ({error}): use JAX 0.10 to 0.12") from error
    return module


def join() -> None:
    """Join the other processes of the job to which JAX finds that this one belongs; end this one if they do not come.

    Raises:
        UserError: there is no job, or this machine cannot take part in it.
    """
    address, num_processes, process = wait(_find_job)
    # JAX's preemption service would handle SIGTERM in place of our own handler, and Ctrl-C not at all.
    jax.config.update("jax_enable_preemption_service", False)
    if process == 0:
        _require_free_port(address)
    where = f"the job's {num_processes} processes to meet at {address}"
    # At its own time-out JAX aborts and prints C++ frames.
    times = {"initialization_timeout": 2 * JOIN_SECONDS, "heartbeat_timeout_seconds": HEARTBEAT_SECONDS}
    try:
        wait(functools.partial(jax.distributed.initialize, address, num_processes, process, **times), JOIN_SECONDS)
    except StoppedError as error:  # a thread is still inside JAX, which aborts whatever else one does
        end(str(error), 128 + error.signal)
    except TimeoutError:
        hint = "see whether all of them run, and whether this machine knows and reaches that address"
        end(f"process {process} waited {JOIN_SECONDS} s for {where}: {hint}", 2)
    except (ValueError, RuntimeError) as error:
        end(f"process {process} cannot wait for {where} ({_one_line(error)})", 2)
    in_thread(_end_with_the_others)
    _require_host_name()


def _find_job() -> tuple[str, int, int]:
    """The coordinator's address, the number of processes, and this one's number, as JAX finds them."""
    detect = _private().clusters.ClusterEnv.auto_detect_unset_distributed_params
    address, reason = os.environ.get("JAX_COORDINATOR_ADDRESS"), "JAX recognises none of them here"
    try:
        address, num_processes, process, _ = detect(address, None, None, [], None, JOIN_SECONDS)
        if None not in (address, num_processes, process):
            return address, num_processes, process
    except (ValueError, RuntimeError) as error:
        reason = _one_line(error)
    raise UserError(
        "--distributed found no job to join: start one process for each host, or GPU, under Slurm, Open MPI, "
        f"Kubernetes or on a TPU pod ({reason})"
    )


def _require_free_port(address: str) -> None:
    """Check that process 0 can listen: on a port that is taken, JAX 0.10 and 0.12 end with a segmentation fault."""
    port, both = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", address).rpartition(":")[2], socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", int(port)), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port}, on which process 0 is to wait for the others, is in use by another program; end that, "
                "or give all processes another port in JAX_COORDINATOR_PORT"
            ) from error


def _require_host_name() -> None:
    """Check what Gloo needs, which JAX sets up for CPU devices, also beside GPUs: an address of this machine's name."""
    options: Any = jax.config
    platforms, name = options.jax_platforms or "cpu", socket.gethostname()
    if "cpu" not in platforms.split(",") or options.jax_cpu_collectives_implementation != "gloo":
        return
    with suppress(OSError):
        for family, _, _, _, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
            with suppress(OSError), socket.socket(family) as probe:
                probe.bind(address)
                return
    raise UserError(
        f"this machine's host name {name!r} does not resolve to an address that it has, and JAX's CPU processes "
        "find each other by it; add it to /etc/hosts, with an address by which the job's other machines reach "
        f"this one (127.0.1.1 {name} does if there are none)"
    )


def barrier(where: str) -> None:
    """Return when every process of the job has come to this place in the program, without an exchange of devices."""
    wait(lambda: _private().global_state.client.wait_at_barrier(f"mnist_flax/{where}", ONE_DAY))


def _from_process_0(name: str, value: str) -> str:
    """The `value` that process 0 calls this with."""
    job, key = _private().global_state, f"mnist_flax/{name}"
    if job.process_id == 0:
        job.client.key_value_set(key, value)
        return value
    return wait(lambda: job.client.blocking_key_value_get(key, ONE_DAY))


def require_agreement(config: Config, dataset: Dataset) -> None:
    """Compare this process's options, data, software, run directory and number of devices with the others'.

    Raises:
        UserError: they differ; the message says in what.
    """
    host = socket.gethostname()
    ours = {flag(name): value for name, value in config.to_json().items() if name != "data_dir"}
    ours |= {"SHA-256 of the images": dataset.digest, "SHA-256 of mnist_flax": code_digest()[:8]}
    ours |= {package: version(package) for package in ("jax", "jaxlib", "flax", "optax")}
    theirs = json.loads(_from_process_0("options", json.dumps(ours)))
    changed = [
        f"{name} is {json.dumps(ours.get(name))} instead of {json.dumps(theirs.get(name))}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if changed:
        raise UserError(
            f"this process, on {host}, differs from process 0 ({'; '.join(changed)}): start all processes of a job "
            "with the same options and the same software"
        )
    barrier("options agree")
    if not _is_shared(config.workdir):
        raise UserError(
            f"--workdir {config.workdir} on {host} is not the directory that process 0 has there; choose one on "
            "storage that all machines of the job share"
        )
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError(
            f"{jax.local_device_count()} of the job's {jax.device_count()} devices are on {host}; give each of the "
            f"{jax.process_count()} processes as many as the others"
        )
    barrier("all agree")


def _is_shared(workdir: Path) -> bool:
    """Whether a file of process 0 is there for this one: under a new name, which no machine can have in its cache."""
    name, is_main = f".shared-{secrets.token_hex(8)}", _private().global_state.process_id == 0
    try:
        if is_main:
            (workdir / name).touch()
        found = (workdir / _from_process_0("token", name)).exists()
        barrier("token was looked for")
    finally:
        if is_main:
            (workdir / name).unlink(missing_ok=True)
    return found


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """If this process of several fails, end it at once and tell the others why: they cannot go on without it.

    Not by a normal exit: JAX then waits for all processes.
    """
    reason, status = "", 0
    try:
        yield
    except StoppedError as error:
        reason, status = str(error), 128 + error.signal
    except (UserError, OSError) as error:
        reason, status = str(error), 2
    except jax.errors.JaxRuntimeError as error:
        end(_LOST.format(_one_line(error)), 1)
    except Exception:  # noqa: BLE001 - a mistake of ours; the others must not wait for this process then either
        reason, status = traceback.format_exc().strip(), 1
    finally:
        _tell(reason.rpartition("\n")[2])
    if status:
        end(reason, status)


def _tell(reason: str) -> None:
    """Tell all processes of the job why this one ends, and wait until they know; "" is a normal end."""
    if not jax.distributed.is_initialized():
        return
    job = _private().global_state

    def tell() -> None:
        with suppress(RuntimeError):  # another process has told before
            job.client.key_value_set(_ENDED, f"{job.process_id} {reason}")
        if reason:
            _wait_until_all_know()

    if reason or job.process_id == 0:
        with suppress(TimeoutError):
            wait(tell, LEAVE_SECONDS)


def _end_with_the_others() -> None:
    """In a thread, end this process with a sentence when another one has told, by `_tell`, why it fails."""
    job = _private().global_state
    with suppress(RuntimeError):
        process, _, reason = job.client.blocking_key_value_get(_ENDED, ONE_DAY).partition(" ")
        if reason and int(process) != job.process_id:
            time.sleep(1)  # if all processes fail for the same reason, each says so itself
            _wait_until_all_know()
            end(_LOST.format(f"process {process}: {reason}"), 1)


def _wait_until_all_know() -> None:
    job = _private().global_state
    with suppress(RuntimeError):
        job.client.wait_at_barrier(_ENDED, LEAVE_SECONDS * 1000)
    if job.process_id == 0:
        time.sleep(0.5)  # JAX's service ends with it, and JAX aborts a process that finds the service gone


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
