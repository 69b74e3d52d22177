"""Devices: one mesh over all of them, be they CPU cores, GPUs or a TPU slice."""

import functools
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mnist_flax.data import Examples
from mnist_flax.errors import UserError
from mnist_flax.step import DATA, REPLICA

# Cores that share a batch as devices wait for each other 18 times a step. With fewer images each, XLA's own threads do
# better: two cores take 11.1 ms for a step of 64 images, as two devices 13.3; at 124 images it is 23 and 24.
MIN_IMAGES_PER_CORE = 48

# How arrays lie on the mesh: the same everywhere; a replica's share of a leading axis; batches split along the second.
EVERYWHERE = PartitionSpec()
BY_REPLICA = PartitionSpec(REPLICA)
BY_EXAMPLE = PartitionSpec(None, DATA)


def num_cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_mesh(batch_size: int, num_devices: int | None = None, num_replicas: int = 1) -> Mesh:
    """The mesh to train on: REPLICA by DATA, of `num_devices` devices or as many of those there are as fit.

    Replicas have devices of their own as far as they divide evenly, since they need not wait for each other; what
    devices are left over share each batch. Without an accelerator the CPU's cores are the devices, as many as get a
    replica or `MIN_IMAGES_PER_CORE` each (XLA's threads use the others), unless JAX's devices have been made before, by
    whoever calls this from a program of their own: then it is those there are.

    Raises:
        UserError: there are fewer devices, or they cannot share the work evenly.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not forced and not jax.distributed.is_initialized():
        worthwhile = num_replicas * max(1, batch_size // MIN_IMAGES_PER_CORE)
        with suppress(RuntimeError):  # they have been made
            jax.config.update("jax_num_cpu_devices", num_devices or min(num_cores(), worthwhile))
    available = jax.device_count()
    if num_devices is not None and num_devices > available:
        raise UserError(f"--num-devices {num_devices} asks for more devices than there are ({available})")
    shapes = [
        (replica, data)
        for replica in range(1, num_replicas + 1)
        for data in range(1, available // replica + 1)
        if num_replicas % replica == 0 and batch_size % data == 0
    ]
    if num_devices is None and jax.process_count() > 1:
        num_devices = available  # every process has to take part
    if num_devices is not None:
        shapes = [shape for shape in shapes if math.prod(shape) == num_devices]
    if not shapes:
        assert num_devices is not None  # one device always fits
        nearest = max(batch_size // num_devices, 1) * num_devices
        raise UserError(
            f"a batch of {batch_size} cannot be divided evenly among {num_devices} devices: "
            f"use --batch-size {nearest} or another multiple of {num_devices}, or fewer --num-devices"
        )
    shape = max(shapes, key=lambda shape: (math.prod(shape), shape))
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, (REPLICA, DATA), (AxisType.Auto, AxisType.Auto), devices=devices)


def describe(mesh: Mesh) -> str:
    """The mesh's devices, such as "1 x cpu (2 cores)" or "8 x NVIDIA H100 80GB HBM3"."""
    device = mesh.devices.flat[0]
    return f"{mesh.size} x {device.device_kind}" + (f" ({num_cores()} cores)" if device.platform == "cpu" else "")


def use_compilation_cache() -> None:
    """Keep compiled programs between runs, so that the next start does not compile; does nothing where it may not."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnist_flax"
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        if not os.access(directory, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # the many small programs add up to seconds


def place(tree: Any, mesh: Mesh, spec: PartitionSpec = EVERYWHERE) -> Any:
    """Every array on the mesh's devices, whole or as `spec` splits it."""
    return jax.device_put(tree, NamedSharding(mesh, spec))


def to_host(tree: Any) -> Any:
    """Every array, whole, in this process's memory, whichever processes hold its parts."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def wait_for_all(name: str) -> None:
    """Return when every process of the job has come here; `name` says where that is."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def split_batches(examples: Examples, batch_size: int, mesh: Mesh) -> Examples:
    """A split as `evaluate` takes it: `(batches, batch_size, ...)`, each over DATA, the last one padded."""
    num_shares = mesh.shape[DATA]
    batch_size = -(-min(batch_size, len(examples.labels)) // num_shares) * num_shares
    padding = -len(examples.labels) % batch_size
    images = np.pad(examples.images, ((0, padding), (0, 0), (0, 0)))
    labels = np.pad(examples.labels, (0, padding), constant_values=-1)
    batched = Examples(images.reshape(-1, batch_size, *images.shape[1:]), labels.reshape(-1, batch_size))
    return place(batched, mesh, BY_EXAMPLE)


def compile_per_device(
    function: Callable[..., Any], mesh: Mesh, in_specs: Any, out_specs: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """`jit` a function that runs on every device of the mesh with its share of the inputs and of the results."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate, compiler_options=cpu_compiler_options())


_YNN_REDUCTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


@functools.cache
def cpu_compiler_options() -> dict[str, str] | None:
    """The XLA option that chooses which operations run on its YNN kernels on a CPU, where XLA has it.

    By default they are dots, reductions and convolutions. Reductions gain (both moments of 64×22×22×16 numbers take
    0.06 ms instead of 0.5), but YNN's convolution is built for small kernels and the weight gradient is one with a
    kernel as large as the image: 1.4 ms without it instead of 3.9 for block4 (64 images, one core). The option is
    experimental, and an XLA that does not know it refuses to compile: then training is slower and nothing else changes.
    """
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_YNN_REDUCTIONS).lower(0.0).compile()
    except Exception:  # noqa: BLE001 - whatever the type, it means "not with these options"
        return None
    return _YNN_REDUCTIONS
