"""`python -m benchmarks.compilers.accelerators`: compiles our programs for TPUs and GPUs that need not be there.

The compilers' own figures: nothing is run and nothing is measured. Compilers come with `pip install -e '.[tpu]'` and
`pip install -e '.[cuda13]'`; what is not installed is skipped.
"""

import argparse
import dataclasses
import datetime
import functools
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import markdown, parser_of
from benchmarks.compilers import hlo
from mnist_flax.cli import command
from mnist_flax.errors import UserError

# What XLA needs to know of the card. https://resources.nvidia.com/en-us-tensor-core (H100 SXM5), CUDA's programming
# guide (compute capability 9.0); the names are those of xla/backends/gpu/target_config/specs/h100_sxm.txtpb in
# https://github.com/openxla/xla.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 84942979072
}
platform_name: "CUDA"  device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }  runtime_version { major: 12 minor: 8 }
"""
TARGETS = ("v5e:1x1", "v5e:2x2", "v6e:2x2", "v5e:16x16", "h100:1", "h100:8")
PROGRAMS = ("training", "evaluation", "prediction")
NUM_TRAIN, NUM_TEST = 55_000, 10_000


@functools.cache
def devices_of(target: str) -> Any:
    """Descriptions of a target's devices.

    Raises:
        UserError: its compiler is not installed, or does not know it.
    """
    from jax.experimental.topologies import get_topology_desc

    kind, _, size = target.partition(":")
    extra = "cuda13" if kind == "h100" else "tpu"
    try:
        if kind == "h100":
            topology: Any = get_topology_desc("h100", "cuda", target_config=H100, topology=f"1x1x{int(size)}")
        else:
            one = {"chips_per_host_bounds": [1, 1, 1]} if size == "1x1" else {}
            topology = get_topology_desc(target, "tpu", **one)
    except Exception as error:  # the compilers raise what they like
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"no compiler for {target} (pip install -e '.[{extra}]'): {reason}") from error
    return topology.devices


def mesh_for(devices: Sequence[Any], num_replicas: int) -> Any:
    """All devices, as `make_mesh` would arrange them: as many replicas side by side as divide evenly."""
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from mnist_flax.step import DATA, REPLICA

    side = math.gcd(len(devices), num_replicas)
    return Mesh(np.array(devices).reshape(side, -1), (REPLICA, DATA), axis_types=(AxisType.Auto, AxisType.Auto))


def trace(program: str, mesh: Any, config: Any, num_replicas: int) -> Any:
    """Trace one of `PROGRAMS` for a mesh, from shapes alone: `lower()` and `compile()` come next."""
    import jax
    import numpy as np

    from mnist_flax.data import Examples, Normalization
    from mnist_flax.inference.classifier import compiled_log_probabilities
    from mnist_flax.model import variable_shapes
    from mnist_flax.training.mesh import BY_EXAMPLE, place, platform_of
    from mnist_flax.training.programs import (
        EVALUATION_BATCH,
        evaluation_program,
        shapes_of_states,
        step_options,
        training_program,
    )

    def examples(*sides: int) -> Examples:
        images = jax.ShapeDtypeStruct((*sides, 28, 28), np.uint8)
        return Examples(images, jax.ShapeDtypeStruct(sides, np.int32))

    normalization, size = Normalization(0.1307, 0.3081), config.batch_size
    if program == "training":
        total_steps = 10 * -(-NUM_TRAIN // size)
        training = training_program(mesh, step_options(config, normalization, total_steps), examples(NUM_TRAIN))
        return training.trace(shapes_of_states(num_replicas, mesh, config, total_steps))
    if program == "evaluation":
        state = shapes_of_states(num_replicas, mesh, config, 1)
        shares = mesh.devices.shape[1]
        size = -(-EVALUATION_BATCH // shares) * shares
        batches = place(examples(-(-NUM_TEST // size), size), mesh, BY_EXAMPLE)
        return evaluation_program(mesh, normalization).sums.trace(state.variables, batches)
    one = mesh_for(mesh.devices.flat[:1], 1)
    variables, temperature, images = place(
        (variable_shapes(), jax.ShapeDtypeStruct((), np.float32), examples(size).images), one
    )
    return compiled_log_probabilities(normalization, platform=platform_of(mesh)).trace(
        variables, temperature, images, shifts=0
    )


def figures_of(lowered: Any, platform: str, save: Callable[[str], Any]) -> dict[str, Any]:
    """Compile, and read what the compiler says. The time is the processor's: others may use the machine as well."""
    started = time.process_time()
    compiled = lowered.compile()
    figures: dict[str, Any] = {"CPU seconds to compile": round(time.process_time() - started, 1)}
    text, memory = compiled.as_text(), compiled.memory_analysis()
    save(text)
    figures["memory, MB"] = round((memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6, 1)
    figures["collectives"], figures["collective bytes"] = hlo.collectives(text)
    if platform == "tpu":
        cost = compiled.cost_analysis()
        # Of some large programs the compiler's time is negative: it has none for one of their operations.
        figures["ms"] = round(1e3 * cost["optimal_seconds"], 4) if cost["optimal_seconds"] > 0 else "–"
        figures["cycles"] = hlo.cycles(text)
        figures["Mflop"] = round(cost["flops"] / 1e6, 1)
        figures["MB accessed"] = round(cost["bytes accessed"] / 1e6, 1)
        figures["of it in HBM"] = round(hlo.hbm_bytes(text) / 1e6, 2)
        figures["gathers of single elements"] = hlo.pixel_gathers(text)
    else:
        kernels = hlo.kernels(text)
        figures["kernels"] = len(kernels)
        figures["by part"] = dict(Counter(map(hlo.part_of, kernels)).most_common())
        figures["by kind"] = dict(Counter(map(hlo.kind_of, kernels)).most_common())
    return figures


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of one platform in Markdown."""

    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {count}" for name, count in value.items())
        return f"{value:,}" if isinstance(value, int | float) else str(value)

    return markdown([*rows[0]], [[cell(row[column]) for column in rows[0]] for row in rows])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line's options."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--targets", nargs="+", default=TARGETS, help="TPU topologies, h100:NUMBER; default: %(default)s"
    )
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--replicas", nargs="+", type=int, default=(1, 8), help="networks side by side")
    parser.add_argument("--batch", nargs="+", type=int, default=(64, 1024), help="images a step")
    parser.add_argument("--optimizer", choices=("adam", "muon"), help="default: that of `train`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--text", type=Path, metavar="DIRECTORY", help="write the compiled programs (HLO)")
    return parser.parse_args(arguments)


@command
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    options = parse(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs; an accelerator that is there is left alone
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this is no TPU VM: do not ask its metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # by default one process on a machine locks libtpu
    import jax

    from mnist_flax.config import Config

    config = dataclasses.replace(Config(), **({"optimizer": options.optimizer} if options.optimizer else {}))
    print(f"JAX {jax.__version__}, {datetime.date.today()}: compilers' figures, not measurements", flush=True)
    rows: dict[str, list[dict[str, Any]]] = {"tpu": [], "gpu": []}
    for target, program in itertools.product(options.targets, options.programs):
        try:
            devices = devices_of(target)
        except UserError as error:
            if program == options.programs[0]:
                print(f"{target:<12}skipped: {error}", flush=True)
            continue
        replicas = (1,) if program == "prediction" else options.replicas
        sizes = options.batch if program != "evaluation" else options.batch[:1]
        for num_replicas, size in itertools.product(replicas, sizes):
            mesh, name = mesh_for(devices, num_replicas), f"{target} {program} {num_replicas}×{size}"
            if program == "training" and size % mesh.devices.shape[1]:
                print(f"{name}: skipped: {mesh.devices.shape[1]} devices cannot share a batch of {size}", flush=True)
                continue
            head = {"target": target, "program": program, "replicas": num_replicas, "batch": size}
            head |= {"batch": 250} if program == "evaluation" else {}
            lowered = trace(program, mesh, dataclasses.replace(config, batch_size=size), num_replicas).lower()
            file = options.text and options.text / f"{name.replace(':', '-').replace(' ', '-')}.txt"
            platform = devices[0].platform
            figures = figures_of(lowered, platform, lambda text, file=file: file and file.write_text(text))
            rows[platform].append(head | figures)
            print(f"{name}: {figures}", flush=True)
    for found in filter(None, rows.values()):
        print(f"\n{table(found)}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
