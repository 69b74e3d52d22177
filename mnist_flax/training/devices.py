"""JAX as a machine and its user's environment give it: devices, their memory, the modes in which it computes."""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import backend
from jax.sharding import Mesh

from mnist_flax.errors import UserError

# What names a platform to JAX: options, which these environment variables set.
ASKED_BY = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """JAX in the modes that it has by default, whatever the environment or the caller has set: also as a decorator.

    Programs are the same then, and so are their bits. In double precision the types of a loop's values do not match,
    other generators draw other numbers, and operation by operation nothing is compiled ahead.
    """
    with (
        jax.enable_x64(False),
        jax.disable_jit(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.transfer_guard("allow"),
    ):
        yield


def devices() -> list[Any]:
    """JAX's devices. What needs them asks here first.

    Raises:
        UserError: there are none of the kind that the environment asks for.
    """
    try:
        return jax.devices()
    except Exception as error:  # JAX has several types for it, an AssertionError too
        reason = " ".join(re.split(r" \((?:set|you may)", str(error))[0].split()) or "no such device is visible"
        every = {name: getattr(jax.config, name.lower(), None) or os.environ.get(name) for name in ASKED_BY}
        asked = {name: value for name, value in every.items() if value}
        if not asked:
            raise UserError(
                f"JAX cannot use this machine's devices ({reason}): see what JAX_* variables and XLA_FLAGS say; "
                "JAX_PLATFORMS=cpu uses the CPU alone"
            ) from error
        settings = " ".join(f"{name}={value}" for name, value in asked.items())
        raise UserError(
            f"{settings}: JAX finds no such device here ({reason}); what it finds is {', '.join(_found())}. Unset "
            f"{' and '.join(asked)}; a GPU or TPU also needs JAX's package for it, such as jax[cuda13]"
        ) from error


def _found() -> list[str]:
    """The platforms that JAX finds here when no option names one."""
    wanted: str | None = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    backend.clear_backends()
    jax.config.update("jax_platforms", None)
    try:
        return list(backend.backends())
    finally:
        backend.clear_backends()
        jax.config.update("jax_platforms", wanted)


def platform_of(mesh: Mesh) -> str:
    """The platform of the mesh's devices: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def num_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# At least so many bytes a device needs: the blocks' outputs, which the gradient takes, for each image of a batch (XLA
# takes 180,000 with the CPU kernels, else 280,000); for each replica its parameters and the optimizer's, and for each
# image of an epoch its `EpochPlan`.
IMAGE_BYTES, REPLICA_BYTES, PLAN_BYTES = 136_000, 100_000, 28


def require_memory(mesh: Mesh, batch_size: int, num_replicas: int, num_train: int) -> None:
    """Refuse a run that plainly does not fit into the devices' memory. One that passes may still not fit.

    Raises:
        UserError: naming what would fit.
    """
    available = memory(mesh)
    side_by_side, shares = mesh.devices.shape
    replicas, share = num_replicas // side_by_side, batch_size // shares
    each = REPLICA_BYTES + PLAN_BYTES * num_train
    at_once = 1 if platform_of(mesh) == "cpu" else replicas
    images = at_once * share * IMAGE_BYTES
    gigabytes = (
        f"at least {(replicas * each + images) / 1e9:,.1f} GB of memory a device, which has {available / 1e9:,.1f}"
    )
    if replicas * each > available:
        fitting = max(int(available / 4 / each), 1) * side_by_side
        raise UserError(f"--num-seeds {num_replicas:,} needs {gigabytes}; {fitting:,} would fit")
    if replicas * each + images > available:
        fitting = max(int(available / 4 / (at_once * IMAGE_BYTES)), 1) * shares
        fitting = 1 << fitting.bit_length() - 1
        raise UserError(f"--batch-size {batch_size:,} needs {gigabytes}; {fitting:,} would fit")


def memory(mesh: Mesh) -> int:
    """The bytes of memory that each device can use. Those of a CPU share the machine's."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)
    return limit
