"""The pure functions of `step.py` as compiled programs over a mesh: what training, evaluation and benchmarks call."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, UInt32

from mnist_flax.augment import Augmentation
from mnist_flax.config import Config
from mnist_flax.data import NUM_CLASSES, Examples, Normalization
from mnist_flax.model import MNISTNet, init_variables
from mnist_flax.ops import Kernels
from mnist_flax.optim import make_optimizer
from mnist_flax.step import (
    DATA,
    EpochPlan,
    StepOptions,
    Totals,
    TrainState,
    each_replica,
    evaluate,
    plan_epoch,
    train_steps,
)
from mnist_flax.teaching import teach
from mnist_flax.training.mesh import (
    BY_EXAMPLE,
    BY_REPLICA,
    EVERYWHERE,
    RUN_ONCE,
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
    """What `config` says about augmentation."""
    scale = config.scale_min, config.scale_max
    return Augmentation(config.rotation, config.translation, scale, config.blur, config.gamma)


def step_options(config: Config, normalization: Normalization, total_steps: int) -> StepOptions:
    """What `config` says about a step."""
    return StepOptions(
        batch_size=config.batch_size,
        normalization=normalization,
        augmentation=augmentation_of(config),
        label_smoothing=config.label_smoothing,
        total_steps=total_steps,
        fade=config.augmentation_fade,
    )


def create_state(
    seed: UInt32[Any, ""], config: Config, total_steps: int, kernels: Kernels = "xla", num_classes: int = NUM_CLASSES
) -> TrainState:
    """A replica's state before the first step. With a teacher all replicas see the same batches, as `teach` needs."""
    init_key, run_key = jax.random.split(jax.random.key(seed))
    if config.teacher is not None:
        _, run_key = jax.random.split(jax.random.key(config.seed))
    tx = make_optimizer(config.optimizer, total_steps, config.max_lr, clip_norm=config.clip_norm)
    return TrainState.create(init_variables(init_key), run_key, MNISTNet(DATA, kernels, num_classes).apply, tx)


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
    return jax.jit(create, out_shardings=NamedSharding(mesh, BY_REPLICA), compiler_options=RUN_ONCE)(seeds)


def shapes_of_states(num_replicas: int, mesh: Mesh, config: Config, total_steps: int) -> TrainState:
    """What `create_states` returns, as shapes: for a mesh whose devices need not be there."""
    seeds = jax.ShapeDtypeStruct((num_replicas,), np.uint32)
    return place(jax.eval_shape(_create_each(config, total_steps, "xla"), seeds), mesh, BY_REPLICA)


def _create_each(config: Config, total_steps: int, kernels: Kernels, num_classes: int = NUM_CLASSES) -> Any:
    fixed = {"config": config, "total_steps": total_steps, "kernels": kernels, "num_classes": num_classes}
    return jax.vmap(functools.partial(create_state, **fixed))


def in_turns(mesh: Mesh) -> bool:
    """Whether a device computes its replicas one after the other; see `step.each_replica`."""
    return platform_of(mesh) == "cpu"


def zero_totals(num_replicas: int, mesh: Mesh) -> Totals:
    """Every replica's `Totals` before an epoch's first step, on the mesh."""
    zeros = jax.tree.map(lambda x: np.zeros(num_replicas, x.dtype), Totals.zero())
    return place(zeros, mesh, BY_REPLICA)


class TrainingProgram:
    """`step.train_steps` compiled for a mesh: many steps of many replicas in one dispatch.

    Attributes:
        steps_per_epoch: every one with a full batch.
        chunk: how many of them one call should run, and the most that it may if there are teachers.
    """

    def __init__(
        self,
        mesh: Mesh,
        options: StepOptions,
        examples: Examples,
        kernels: Kernels = "xla",
        num_classes: int = NUM_CLASSES,
        teachers: Any = None,
    ) -> None:
        """`teachers` are variables with a leading axis of networks; None: the labels are what is trained towards."""
        num_examples = examples.labels.shape[0]
        self.mesh, self.steps_per_epoch = mesh, -(-num_examples // options.batch_size)
        self.chunk = CPU_CHUNK if platform_of(mesh) == "cpu" else self.steps_per_epoch
        self._fixed: Any = place((examples, teachers), mesh)
        each = functools.partial(each_replica, in_turns=in_turns(mesh))
        plan = functools.partial(plan_epoch, num_examples=num_examples, options=options)
        self.plan: Any = compile_per_device(functools.partial(each, plan), mesh, BY_REPLICA, BY_REPLICA, **RUN_ONCE)

        apply = MNISTNet(kernels=kernels, num_classes=num_classes).apply

        def train_replicas(state: TrainState, totals: Totals, plan: EpochPlan, num_steps: Array, fixed: Any) -> Any:
            (images, labels), teachers = fixed
            # Flat: a TPU keeps 28×28 images with the images along its lanes, and would read all of them to pick some.
            examples = Examples(images.reshape(num_examples, -1), labels)
            alike = {"examples": examples, "options": options}
            taught = functools.partial(teach, apply_fn=apply, in_turns=in_turns(mesh), **alike)
            targets = None if teachers is None else taught(teachers, state, plan, self.chunk)
            return each(functools.partial(train_steps, targets=targets, **alike), state, totals, plan, num_steps)

        specs = BY_REPLICA, BY_REPLICA, BY_REPLICA, BY_REPLICA, EVERYWHERE
        results = BY_REPLICA, BY_REPLICA
        self.steps: Any = compile_per_device(train_replicas, mesh, specs, results, donate=(0, 1), kernels=kernels)

    def trace(self, state: TrainState) -> Any:
        """Trace, for states, or shapes of states, such as this one: `lower()` and `compile()` come next."""
        replicas = state.step.shape
        totals = jax.tree.map(lambda x: jax.ShapeDtypeStruct(replicas, x.dtype), jax.eval_shape(Totals.zero))
        plan = jax.eval_shape(self.plan, state)
        shapes = place((totals, plan, jax.ShapeDtypeStruct(replicas, np.int32)), self.mesh, BY_REPLICA)
        return self.steps.trace(state, *shapes, self._fixed)

    def compile(self, state: TrainState) -> None:
        """Compile ahead of the first call."""
        self.steps = self.trace(state).lower().compile()

    def __call__(
        self,
        state: TrainState,
        totals: Totals,
        plan: EpochPlan,
        num_steps: Int[np.ndarray, " replicas"],
    ) -> tuple[TrainState, Totals]:
        """`train_steps` of every replica; `state` and `totals` are donated."""
        return self.steps(state, totals, plan, place(num_steps, self.mesh, BY_REPLICA), self._fixed)


class Figures:
    """What an evaluation found, in float64: 9,940 of 10,000 is 0.994, which float32 cannot represent.

    Attributes:
        losses: mean cross-entropy of each replica.
        accuracies: of each replica, as fractions.
        ensemble_accuracy: of all replicas together, by the mean of their probabilities.
    """

    def __init__(self, sums: dict[str, Any]) -> None:
        count = int(sums["count"])
        self.losses: Float[np.ndarray, " replicas"] = sums["loss"].astype(np.float64) / count
        self.accuracies: Float[np.ndarray, " replicas"] = sums["correct"] / count
        self.ensemble_accuracy = int(sums["ensemble_correct"]) / count


class EvaluationProgram:
    """`step.evaluate` compiled for a mesh: loss and accuracy of replicas over a split."""

    def __init__(
        self,
        mesh: Mesh,
        normalization: Normalization,
        kernels: Kernels = "xla",
        num_classes: int = NUM_CLASSES,
        at_a_time: int | None = None,
    ) -> None:
        """Evaluate so many examples `at_a_time`: splits of other sizes need no other program. None: a whole split."""
        self._mesh, self._at_a_time = mesh, at_a_time
        apply = MNISTNet(kernels=kernels, num_classes=num_classes).apply
        self._evaluate: Any = compile_per_device(
            functools.partial(evaluate, apply_fn=apply, normalization=normalization, in_turns=in_turns(mesh)),
            mesh,
            (BY_REPLICA, BY_EXAMPLE),
            {"loss": BY_REPLICA, "correct": BY_REPLICA, "ensemble_correct": EVERYWHERE, "count": EVERYWHERE},
            kernels=kernels,
        )

    def batches(self, examples: Examples) -> list[Examples]:
        """A split on the mesh, in parts of the size that is evaluated at a time."""
        size = self._at_a_time or len(examples.labels)
        parts = [Examples(*(x[i : i + size] for x in examples)) for i in range(0, len(examples.labels), size)]
        return [split_batches(part, EVALUATION_BATCH, self._mesh, size) for part in parts]

    def trace(self, variables: Any, part: Examples) -> Any:
        """Trace, for such arguments, or shapes of them."""
        return self._evaluate.trace(variables, part)

    def __call__(self, variables: Any, parts: list[Examples]) -> Figures:
        """Evaluate `variables`, whose arrays have a leading axis of replicas, on a split."""
        sums = to_host([self._evaluate(variables, part) for part in parts])
        return Figures({name: np.sum([each[name] for each in sums], axis=0) for name in sums[0]})
