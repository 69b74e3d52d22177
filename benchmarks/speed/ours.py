"""This package's side of each comparison, run as `mnist_flax/training/loop.py` runs it."""

import ctypes
import dataclasses
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from benchmarks.speed.suite import Work
from mnist_flax import ops, summary
from mnist_flax.augment import Augmentation, augment
from mnist_flax.data import Examples, Normalization
from mnist_flax.model import IMAGE_SHAPE
from mnist_flax.ops import Kernels, library
from mnist_flax.ops.native import BlockedImages
from mnist_flax.presets import PRESETS
from mnist_flax.step import DATA, Batch, train_step
from mnist_flax.training import mesh as meshes
from mnist_flax.training.mesh import EVERYWHERE, compile_per_device, make_mesh, place
from mnist_flax.training.programs import (
    EVALUATION_BATCH,
    TrainingProgram,
    create_state,
    create_states,
    evaluation_program,
    step_options,
    training_program,
    zero_metrics,
)

SEED, MANY_STEPS = np.uint32([0]), 1_000_000
NORMALIZATION = Normalization(0.1307, 0.3081)
SPLIT = PartitionSpec(DATA)


def _examples(num_examples: int) -> Examples:
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (num_examples, *IMAGE_SHAPE[:2])).astype(np.uint8)
    return Examples(images, rng.randint(0, 10, num_examples).astype(np.int32))


def _kernels_of(name: str, mesh: Mesh) -> Kernels:
    """What computes an implementation's convolutions and BatchNorm."""
    return ops.choose("xla" if name == "ours-xla" else "auto", meshes.platform_of(mesh)).name


def _training(mesh: Mesh, batch_size: int, amount: float, kernels: Kernels) -> Work:
    """An optimizer step, its batch spread over the mesh."""
    state = place(create_state(SEED[0], PRESETS["reference"], MANY_STEPS, kernels, axis_name=DATA), mesh)
    examples = _examples(batch_size)
    batch = Batch(NORMALIZATION(examples.images.astype(np.float32)), examples.labels)
    batch = place(batch, mesh, SPLIT)
    function = partial(train_step, label_smoothing=0.1, axis_name=DATA)
    step: Any = compile_per_device(function, mesh, (EVERYWHERE, SPLIT), EVERYWHERE, donate=(0,), kernels=kernels)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return Work(run, amount, jax.block_until_ready)


def step(name: str) -> dict[str, Work]:
    """An optimizer step of 128 images."""
    mesh = make_mesh(128)
    return {name: _training(mesh, 128, 1, _kernels_of(name, mesh))}


def _chunk(mesh: Mesh, batch_size: int, kernels: Kernels) -> tuple[Callable[[], None], TrainingProgram]:
    """What trains a chunk of steps, augmentation included, as often as called, and the program it runs."""
    config = dataclasses.replace(PRESETS["reference"], batch_size=batch_size)
    training = training_program(mesh, step_options(config, NORMALIZATION, MANY_STEPS), _examples(60_000), kernels)
    state, totals = create_states(SEED, mesh, config, MANY_STEPS, kernels), zero_metrics(1, mesh)
    plan = training.plan(state)

    def train() -> None:
        nonlocal state, totals
        state, totals = training(state, totals, plan, np.int32([training.chunk]))
        assert jax.device_get(totals).finite.all(), "training has diverged and stopped early"

    return train, training


def epoch(name: str) -> dict[str, Work]:
    """Training in chunks of steps, and augmentation alone."""
    batch_size, augmentation = PRESETS["reference"].batch_size, Augmentation()
    mesh = make_mesh(batch_size)
    train, training = _chunk(mesh, batch_size, _kernels_of(name, mesh))

    def augment_chunk(key: jax.Array, images: jax.Array) -> jax.Array:
        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            return total + augment(jax.random.fold_in(key, i), images, augmentation)

        return lax.fori_loop(0, training.chunk, add, jnp.zeros(images.shape))

    images = place(_examples(batch_size).images, mesh, SPLIT)
    compiled = compile_per_device(augment_chunk, mesh, (EVERYWHERE, SPLIT), SPLIT)
    only_augment = partial(compiled, jax.random.key(0), images)
    amount = training.chunk / training.steps_per_epoch
    return {name: Work(train, amount), f"{name}: augmentation": Work(only_augment, amount, jax.block_until_ready)}


def augmentation(name: str) -> dict[str, Work]:
    """124 images in one call."""
    compiled = jax.jit(partial(augment, augmentation=Augmentation()))
    return {name: Work(partial(compiled, jax.random.key(0), _examples(124).images), 124, jax.block_until_ready)}


def evaluation(name: str) -> dict[str, Work]:
    """Loss and hits of 10,000 uint8 images."""
    mesh = make_mesh(EVALUATION_BATCH)
    evaluate = evaluation_program(mesh, NORMALIZATION, _kernels_of(name, mesh))
    variables, batches = (
        create_states(SEED, mesh, PRESETS["reference"], 1).variables,
        evaluate.batches(_examples(10_000)),
    )
    return {name: Work(lambda: evaluate(variables, batches))}


def scaling(name: str) -> dict[str, Work]:
    """Images per second by batch size on one device, and by number of devices; augmentation included."""
    # Every core a device from the start, for meshes of all sizes in one process.
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={meshes.num_cores()}")

    def images(batch_size: int, num_devices: int) -> Work:
        mesh = make_mesh(batch_size, num_devices)
        train, training = _chunk(mesh, batch_size, _kernels_of(name, mesh))
        return Work(train, training.chunk * batch_size)

    devices = [n for n in range(1, jax.device_count() + 1) if 128 % n == 0]
    return {
        **{f"batch {size}": images(size, 1) for size in (32, 64, 128, 256, 512)},
        **{f"devices {n}": images(128, n) for n in devices},
    }


def _compiled(function: Callable[..., Any], amount: float, *arguments: Any) -> Work:
    compiled = jax.jit(function, compiler_options=meshes.compiler_options(jax.devices()[0].platform))
    return Work(partial(compiled, *arguments), amount, jax.block_until_ready)


def _convolutions(num_images: int, kernels: Kernels) -> Iterator[tuple[str, Work]]:
    """Forward, and both gradients together (the first layer needs that of its kernel only); an amount is in GFLOP."""
    rng, previous = np.random.RandomState(0), IMAGE_SHAPE
    for layer in summary.layers():
        inputs, previous = previous, layer.shape
        if not layer.name.endswith(".conv"):
            continue
        name, size = layer.name.removesuffix(".conv"), int(layer.kind[-1])  # "Conv 3×3"
        shapes = (num_images, *inputs), (size, size, inputs[-1], layer.shape[-1]), (num_images, *layer.shape)
        x, kernel, dy = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
        if kernels == "native":
            x, dy = BlockedImages.of(x), BlockedImages.of(dy)
        padding = (layer.shape[0] + size - 1 - inputs[0]) // 2

        def conv(*arguments: Any, padding: int = padding) -> ops.Images:
            return ops.convolve(*arguments, padding, kernels)[0]

        gflop, first = 2e-9 * kernel.size * math.prod(dy.shape[:-1]), inputs == IMAGE_SHAPE
        vjp = jax.vjp(partial(conv, x), kernel)[1] if first else jax.vjp(conv, x, kernel)[1]
        yield f"{name} forward", _compiled(conv, gflop, x, kernel)
        yield f"{name} backward", _compiled(lambda vjp, dy: vjp(dy), gflop if first else 2 * gflop, vjp, dy)


def _multiply_adds() -> dict[str, Work]:
    """What the chip can do at most, where there is a compiler to measure it."""
    if library.compiler() is None:
        return {}
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / "peak.so"
        options = ["-O2", "-march=native", "-ffp-contract=fast", "-Wno-psabi", "-shared", "-fPIC"]
        subprocess.run(
            [*library.compiler(), *options, str(Path(__file__).with_name("peak.cc")), "-o", made], check=True
        )
        loaded, rounds = ctypes.CDLL(str(made)), ctypes.c_long(1_000_000)
    loaded.gflop.restype = ctypes.c_double
    return {"multiply-adds in registers": Work(lambda: loaded.peak(rounds), loaded.gflop(rounds))}


def layers(name: str) -> dict[str, Work]:
    """GFLOP/s of multiply-adds alone, a matrix product, each convolution, all, a step (counting its convolutions)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    mesh, num_images = make_mesh(64, 1), 64
    kernels = _kernels_of(name, mesh)
    matrix, each = jnp.ones((1024, 1024)), dict(_convolutions(num_images, kernels))
    gflop = sum(work.amount for work in each.values())
    works = {
        **_multiply_adds(),
        "matrix product 1024³": _compiled(jnp.matmul, 2e-9 * 1024**3, matrix, matrix),
        **each,
        "all convolutions": Work(lambda: [work.run() for work in each.values()], gflop, jax.block_until_ready),
        "whole training step": _training(mesh, num_images, gflop, kernels),
    }
    return {f"{name}: {row}": work for row, work in works.items()}
