"""The mesh of devices that a run trains on, be they CPU cores, GPUs or a TPU slice, and programs compiled for it."""

import functools
import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mnist_flax.data import Examples
from mnist_flax.errors import UserError
from mnist_flax.ops import Kernels
from mnist_flax.step import DATA, REPLICA
from mnist_flax.training import devices
from mnist_flax.training.devices import num_cores, platform_of

# Three ways in which an array lies on the mesh: whole on every device; its leading axis, of replicas, split over
# REPLICA; its second axis, the examples of batches, split over DATA.
EVERYWHERE = PartitionSpec()
BY_REPLICA = PartitionSpec(REPLICA)
BY_EXAMPLE = PartitionSpec(None, DATA)


def make_mesh(batch_size: int, num_devices: int | None = None, num_replicas: int = 1) -> Mesh:
    """The mesh to train on: REPLICA by DATA, of `num_devices` devices, by default as many as can share the work evenly.

    Replicas are spread over REPLICA and each batch over DATA, both evenly. Of the shapes that use equally many devices
    it has the one with the most replicas side by side: replicas need not wait for each other.

    Without an accelerator, the CPU is one device, whose cores share the work, unless more are asked for. A program that
    has used JAX before has fixed the number of devices; then those are used.

    Raises:
        UserError: there are fewer devices, or none of the kind that the environment asks for, or they cannot share the
            work evenly.
    """
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if num_devices is not None and not forced and not jax.distributed.is_initialized():
        with suppress(RuntimeError):  # they have been made
            jax.config.update("jax_num_cpu_devices", num_devices)
    found = devices.devices()
    available = len(found)
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
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(shape, (REPLICA, DATA), axis_types, devices=found[: math.prod(shape)])


def describe(mesh: Mesh) -> str:
    """The mesh's devices, such as "1 x cpu (2 cores)" or "8 x NVIDIA H100 80GB HBM3"."""
    device = mesh.devices.flat[0]
    return f"{mesh.size} x {device.device_kind}" + (f" ({num_cores()} cores)" if platform_of(mesh) == "cpu" else "")


def resources(mesh: Mesh) -> str:
    """An accelerator's memory and the precision of its products, such as "80 GB each, float32 products in TF32"."""
    platform, device = platform_of(mesh), mesh.devices.flat[0]
    if platform == "cpu":
        return ""
    limit = (device.memory_stats() or {}).get("bytes_limit")
    chosen = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    usual = {"tpu": "one pass of bfloat16", "gpu": "TF32, where the card has it"}.get(platform, "its default precision")
    memory = f"{limit / 1e9:.0f} GB each to use, " if limit else ""
    return f"{memory}float32 products in {chosen or usual}"


def shares_batches(mesh: Mesh) -> bool:
    """Whether devices of several processes share a batch."""
    return any(len({device.process_index for device in devices}) > 1 for devices in mesh.devices)


def place(tree: Any, mesh: Mesh, spec: PartitionSpec = EVERYWHERE) -> Any:
    """Every array on the mesh's devices, whole or as `spec` splits it. A shape stays one, and says where it lies.

    All processes of a job give the same arrays.
    """
    sharding = NamedSharding(mesh, spec)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def own_part(array: Any) -> jax.Array:
        return jax.make_array_from_callback(np.shape(array), sharding, np.asarray(array).__getitem__)

    return jax.tree.map(own_part, tree)  # by `device_put` all processes would compare every array, each time


def to_host(tree: Any) -> Any:
    """Every array, whole, in this process's memory. In a job of several processes it is a collective."""
    if jax.process_count() == 1:
        return jax.device_get(tree)

    def whole(array: Any) -> Any:
        if isinstance(array, jax.Array) and array.is_fully_replicated:  # there is nothing to be sent
            return jax.device_get(array.addressable_data(0))
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(whole, tree)


def process_values(array: np.ndarray) -> np.ndarray:
    """The arrays that the processes of the job call this with, stacked along a new first axis. A collective."""
    return multihost_utils.process_allgather(array) if jax.process_count() > 1 else array[None]


def wait_for_all(name: str) -> None:
    """Return when every process of the job has come here; `name` says where that is. If one is lost, this fails."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def split_batches(examples: Examples, batch_size: int, mesh: Mesh, size: int) -> Examples:
    """Up to `size` examples as `evaluate` takes them: `(batches, batch_size, ...)`, each over DATA, padded."""
    num_shares = mesh.shape[DATA]
    batch_size = -(-min(batch_size, size) // num_shares) * num_shares
    padding = -(-size // batch_size) * batch_size - len(examples.labels)
    images = np.pad(examples.images, ((0, padding), (0, 0), (0, 0)))
    labels = np.pad(examples.labels, (0, padding), constant_values=-1)
    batched = Examples(images.reshape(-1, batch_size, *images.shape[1:]), labels.reshape(-1, batch_size))
    return place(batched, mesh, BY_EXAMPLE)


def compile_per_device(
    function: Callable[..., Any],
    mesh: Mesh,
    in_specs: Any,
    out_specs: Any,
    *,
    donate: tuple[int, ...] = (),
    kernels: Kernels = "xla",
    **xla_options: Any,
) -> Callable[..., Any]:
    """`jit` a function that runs on every device of the mesh with its share of the inputs and of the results.

    `xla_options` are given to the compiler, besides those that our operations need.
    """
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    xla_options |= compiler_options(platform_of(mesh), kernels) or {}
    return jax.jit(mapped, donate_argnums=donate, compiler_options=xla_options)


def compile_for_one_device(function: Callable[..., Any], *, platform: str | None = None, **options: Any) -> Any:
    """`jit` a function for one device of a platform, by default that of the device that JAX uses by default."""
    return jax.jit(function, compiler_options=compiler_options(platform or devices.devices()[0].platform), **options)


# For programs that run once, once an epoch, or on a few images. Random numbers are slow to compile and quick to run:
# the initial state takes 17 s to compile on two cores with XLA's optimizations and 1.3 s without, and its numbers are
# the same to 2e-8.
FAST_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 0}

YNN = "xla_cpu_experimental_ynn_fusion_type"
# Dots alone: XLA of JAX 0.10.0 and 0.10.1 crashes when it fuses Muon's dots with their neighbours.
YNN_DOT = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
YNN_FUSIONS = {"xla": f"{YNN_DOT},LIBRARY_FUSION_TYPE_REDUCE", "native": YNN_DOT}


@functools.cache
def compiler_options(platform: str, kernels: Kernels = "xla") -> dict[str, str] | None:
    """The XLA option that chooses which operations run on its YNN kernels; None except on a CPU whose XLA has it.

    By default they are dots, reductions and convolutions. Reductions gain: both moments of 64×22×22×16 numbers take
    0.06 ms instead of 0.5. But how YNN divides a sum depends on the number of cores. With our own kernels few
    reductions are left, so they do without it, and a run's bits do not depend on the cores. YNN's convolution is built
    for small kernels, and the weight gradient is a convolution with a kernel as large as the image: block4's takes 3.9
    ms with YNN and 1.4 without (64 images, one core). A whole step of training on XLA's operations takes 1.3 times as
    long without the option. It is experimental. An XLA that does not know it refuses to compile; then training is
    slower, and nothing else changes.
    """
    if platform != "cpu":
        return None
    options = {YNN: YNN_FUSIONS[kernels]}
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except Exception:  # noqa: BLE001 - whatever the type, it means "not with these options"
        return None
    return options
