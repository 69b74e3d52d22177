"""The pure functions of `step.py` as compiled programs over a mesh: what training, evaluation and benchmarks call."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int, UInt32

from mnist_flax.augment import Augmentation
from mnist_flax.config import Config
from mnist_flax.data import NUM_CLASSES, Examples, Normalization
from mnist_flax.distillation import teach
from mnist_flax.model import MNISTNet, init_variables
from mnist_flax.ops import Kernels
from mnist_flax.optim import make_optimizer
from mnist_flax.state import EvalMetrics, TrainMetrics, TrainState
from mnist_flax.step import DATA, EpochPlan, StepOptions, each_replica, evaluate, plan_epoch, train_steps
from mnist_flax.training.mesh import (
    BY_EXAMPLE,
    BY_REPLICA,
    EVERYWHERE,
    FAST_COMPILE,
    compile_per_device,
    place,
    platform_of,
    split_batches,
    to_host,
)

# Steps per dispatch on a CPU: a fraction of a second, so that the progress bar moves and Ctrl-C is answered. On an
# accelerator it is a whole epoch, since there a step is shorter than a round trip to the host.
CPU_CHUNK = 16
# Larger batches fall out of a CPU's caches: 10,000 images take one device 0.58 s in batches of 1,000, 0.43 in these.
EVALUATION_BATCH = 250


def augmentation_of(config: Config) -> Augmentation:
    """The augmentation that `config` asks for."""
    scale = config.scale_min, config.scale_max
    return Augmentation(config.rotation, config.translation, scale, config.blur, config.gamma)


def step_options(config: Config, normalization: Normalization, total_steps: int) -> StepOptions:
    """The options of a training step that `config` asks for."""
    return StepOptions(
        batch_size=config.batch_size,
        normalization=normalization,
        augmentation=augmentation_of(config),
        label_smoothing=config.label_smoothing,
        total_steps=total_steps,
        fade=config.augmentation_fade,
    )


def create_state(
    seed: UInt32[Any, ""] | int,
    config: Config,
    total_steps: int,
    kernels: Kernels = "xla",
    num_classes: int = NUM_CLASSES,
    axis_name: str | None = None,
) -> TrainState:
    """One network's state before the first step. With a teacher all seeds see the same batches, as `teach` needs.

    With `axis_name` each of its steps runs under `shard_map`, on a share of the batch.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    if config.teacher is not None:
        _, run_key = jax.random.split(jax.random.key(config.seed))
    tx = make_optimizer(config.optimizer, total_steps, config.max_lr, clip_norm=config.clip_norm)
    return TrainState.create(init_variables(init_key), run_key, MNISTNet(axis_name, kernels, num_classes).apply, tx)


def create_states(
    seeds: UInt32[np.ndarray, " replicas"],
    mesh: Mesh,
    config: Config,
    total_steps: int,
    kernels: Kernels = "xla",
    num_classes: int = NUM_CLASSES,
) -> TrainState:
    """The states of all replicas, on the mesh."""
    create = _create_each(config, total_steps, kernels, num_classes)
    return jax.jit(create, out_shardings=NamedSharding(mesh, BY_REPLICA), compiler_options=FAST_COMPILE)(seeds)


def shapes_of_states(num_replicas: int, mesh: Mesh, config: Config, total_steps: int) -> TrainState:
    """The shapes of what `create_states` returns, on a mesh whose devices need not be there."""
    seeds = jax.ShapeDtypeStruct((num_replicas,), np.uint32)
    return place(jax.eval_shape(_create_each(config, total_steps, "xla"), seeds), mesh, BY_REPLICA)


def _create_each(
    config: Config, total_steps: int, kernels: Kernels, num_classes: int = NUM_CLASSES
) -> Callable[[Any], TrainState]:
    fixed = {"total_steps": total_steps, "kernels": kernels, "num_classes": num_classes, "axis_name": DATA}
    return jax.vmap(functools.partial(create_state, config=config, **fixed))


def sequential(mesh: Mesh) -> bool:
    """Whether a device computes its replicas one after the other; see `step.each_replica`."""
    return platform_of(mesh) == "cpu"


def zero_metrics(num_replicas: int, mesh: Mesh) -> TrainMetrics:
    """Every replica's `TrainMetrics` before an epoch's first step, on the mesh."""
    zeros = jax.tree.map(lambda x: np.zeros(num_replicas, x.dtype), TrainMetrics.zero())
    return place(zeros, mesh, BY_REPLICA)


@dataclasses.dataclass(frozen=True)
class TrainingProgram:
    """The compiled functions that train replicas on a mesh; `training_program` makes them.

    Attributes:
        plan: draws every replica's `EpochPlan` of the epoch that its state is in.
        steps: `step.train_steps` of every replica; the last argument is `data`.
        data: training examples, and the teachers' variables or None, on the mesh.
        steps_per_epoch: every one with a full batch.
        chunk: how many of them one call should run, and the most that it may if there are teachers.
    """

    mesh: Mesh
    plan: Callable[[TrainState], EpochPlan]
    steps: Any
    data: tuple[Any, Any]
    steps_per_epoch: int
    chunk: int

    def trace(self, states: TrainState) -> Any:
        """Trace, for states, or shapes of states, such as these: `lower()` and `compile()` come next."""
        replicas = states.step.shape
        metrics = jax.tree.map(lambda x: jax.ShapeDtypeStruct(replicas, x.dtype), jax.eval_shape(TrainMetrics.zero))
        plan = jax.eval_shape(self.plan, states)
        shapes = place((metrics, plan, jax.ShapeDtypeStruct(replicas, np.int32)), self.mesh, BY_REPLICA)
        return self.steps.trace(states, *shapes, self.data)

    def compile(self, states: TrainState) -> "TrainingProgram":
        """The same program, compiled ahead of its first call for states such as these."""
        return dataclasses.replace(self, steps=self.trace(states).lower().compile())

    def __call__(
        self, states: TrainState, metrics: TrainMetrics, plan: EpochPlan, num_steps: Int[np.ndarray, " replicas"]
    ) -> tuple[TrainState, TrainMetrics]:
        """Take up to so many steps of each replica within an epoch. States and metrics are donated."""
        return self.steps(states, metrics, plan, place(num_steps, self.mesh, BY_REPLICA), self.data)

    def epoch(self, states: TrainState) -> tuple[TrainState, TrainMetrics]:
        """Train every replica, donated, for an epoch from its beginning; in one dispatch if there are no teachers."""
        metrics, plan = zero_metrics(len(states.step), self.mesh), self.plan(states)
        most = self.steps_per_epoch if self.data[1] is None else self.chunk
        for done in range(0, self.steps_per_epoch, most):
            num_steps = np.full(len(states.step), min(most, self.steps_per_epoch - done), np.int32)
            states, metrics = self(states, metrics, plan, num_steps)
        return states, metrics


def training_program(
    mesh: Mesh,
    options: StepOptions,
    examples: Examples,
    kernels: Kernels = "xla",
    num_classes: int = NUM_CLASSES,
    teachers: Any = None,
) -> TrainingProgram:
    """The program that trains replicas on a mesh, many steps of each in one dispatch.

    `teachers` are variables with a leading axis of networks; None: the labels are what is trained towards.
    """
    num_examples = examples.labels.shape[0]
    steps_per_epoch = -(-num_examples // options.batch_size)
    chunk = CPU_CHUNK if platform_of(mesh) == "cpu" else steps_per_epoch
    apply = MNISTNet(kernels=kernels, num_classes=num_classes).apply
    each = functools.partial(each_replica, sequential=sequential(mesh))

    def draw_plan(state: TrainState) -> EpochPlan:
        return plan_epoch(state.key, state.step // steps_per_epoch, num_examples=num_examples, options=options)

    def train_replicas(
        states: TrainState, metrics: TrainMetrics, plan: EpochPlan, num_steps: Array, data: tuple[Any, Any]
    ) -> tuple[TrainState, TrainMetrics]:
        (images, labels), teachers = data
        # Flat: a TPU keeps 28×28 images with the images along its lanes, and would read all of them to pick some.
        alike = {"examples": Examples(images.reshape(num_examples, -1), labels), "options": options}
        taught = functools.partial(teach, apply_fn=apply, sequential=sequential(mesh), **alike)
        targets = None if teachers is None else taught(teachers, states.step, plan, chunk)
        return each(functools.partial(train_steps, targets=targets, **alike), states, metrics, plan, num_steps)

    specs, results = (*(BY_REPLICA,) * 4, EVERYWHERE), (BY_REPLICA, BY_REPLICA)
    return TrainingProgram(
        mesh=mesh,
        plan=compile_per_device(functools.partial(each, draw_plan), mesh, BY_REPLICA, BY_REPLICA, **FAST_COMPILE),
        steps=compile_per_device(train_replicas, mesh, specs, results, donate=(0, 1), kernels=kernels),
        data=place((examples, teachers), mesh),
        steps_per_epoch=steps_per_epoch,
        chunk=chunk,
    )


@dataclasses.dataclass(frozen=True)
class EvaluationProgram:
    """`step.evaluate` compiled for a mesh; `evaluation_program` makes it.

    Attributes:
        sums: sums loss and hits over one part of a split.
        part_size: number of examples of a part; None: a split is one part.
    """

    mesh: Mesh
    sums: Any
    part_size: int | None

    def batches(self, examples: Examples) -> list[Examples]:
        """A split on the mesh, in parts of the size that is evaluated at a time."""
        size = self.part_size or len(examples.labels)
        parts = [Examples(*(x[i : i + size] for x in examples)) for i in range(0, len(examples.labels), size)]
        return [split_batches(part, EVALUATION_BATCH, self.mesh, size) for part in parts]

    def __call__(self, variables: Any, parts: list[Examples]) -> EvalMetrics:
        """Evaluate `variables`, whose arrays have a leading axis of replicas, on a split."""
        sums = to_host([self.sums(variables, part) for part in parts])
        return EvalMetrics({name: np.sum([each[name] for each in sums], axis=0) for name in sums[0]})


def evaluation_program(
    mesh: Mesh,
    normalization: Normalization,
    kernels: Kernels = "xla",
    num_classes: int = NUM_CLASSES,
    part_size: int | None = None,
) -> EvaluationProgram:
    """The program that measures replicas' loss and accuracy over a split.

    It takes `part_size` examples at a time, so that one program serves splits of all sizes; by default a whole split.
    """
    apply = MNISTNet(kernels=kernels, num_classes=num_classes).apply
    sums = compile_per_device(
        functools.partial(evaluate, apply_fn=apply, normalization=normalization, sequential=sequential(mesh)),
        mesh,
        (BY_REPLICA, BY_EXAMPLE),
        {"loss": BY_REPLICA, "correct": BY_REPLICA, "ensemble_correct": EVERYWHERE, "count": EVERYWHERE},
        kernels=kernels,
    )
    return EvaluationProgram(mesh, sums, part_size)
