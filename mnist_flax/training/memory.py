"""Whether a run plainly does not fit into its devices' memory."""

import os

from jax.sharding import Mesh

from mnist_flax.errors import UserError
from mnist_flax.step import DATA, REPLICA
from mnist_flax.training.mesh import platform_of

# At least so many bytes a device needs: the blocks' outputs, which the gradient takes, for each image of a batch (XLA
# takes 180,000 with the CPU kernels, else 280,000); for each replica its parameters and the optimizer's, and for each
# image of an epoch its `EpochPlan`.
IMAGE_BYTES, REPLICA_BYTES, PLAN_BYTES = 136_000, 100_000, 28


def require_memory(mesh: Mesh, batch_size: int, num_replicas: int, num_train: int) -> None:
    """Refuse what plainly does not fit into the devices' memory, before it is compiled. What passes may still not fit.

    Raises:
        UserError: naming what would fit.
    """
    available = memory(mesh)
    replicas, share = num_replicas // mesh.shape[REPLICA], batch_size // mesh.shape[DATA]
    each = REPLICA_BYTES + PLAN_BYTES * num_train
    at_once = 1 if platform_of(mesh) == "cpu" else replicas
    images = at_once * share * IMAGE_BYTES
    gigabytes = (
        f"at least {(replicas * each + images) / 1e9:,.1f} GB of memory a device, which has {available / 1e9:,.1f}"
    )
    if replicas * each > available:
        fitting = max(int(available / 4 / each), 1) * mesh.shape[REPLICA]
        raise UserError(f"--num-seeds {num_replicas:,} needs {gigabytes}; {fitting:,} would fit")
    if replicas * each + images > available:
        fitting = max(int(available / 4 / (at_once * IMAGE_BYTES)), 1) * mesh.shape[DATA]
        fitting = 1 << fitting.bit_length() - 1
        raise UserError(f"--batch-size {batch_size:,} needs {gigabytes}; {fitting:,} would fit")


def memory(mesh: Mesh) -> int:
    """The bytes of memory that each device can use. Those of a CPU share the machine's."""
    device = mesh.local_devices[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None:
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(mesh.local_devices)
    return limit
