"""A run: what is fixed when it starts (`Run`), and what changes while it trains (`Progress`)."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt32

from mnist_flax.config import ResolvedConfig
from mnist_flax.data import Dataset, Examples
from mnist_flax.ops import Choice
from mnist_flax.optim import Schedule, one_cycle
from mnist_flax.state import TrainMetrics, TrainState
from mnist_flax.step import StepOptions
from mnist_flax.training.mesh import BY_REPLICA, FAST_COMPILE, place
from mnist_flax.training.programs import (
    EVALUATION_BATCH,
    EvaluationProgram,
    TrainingProgram,
    create_states,
    evaluation_program,
    step_options,
    training_program,
    zero_metrics,
)
from mnist_flax.training.selection import Row


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it is fixed when it starts.

    Attributes:
        validation: the validation split on the mesh, as `evaluation` takes it.
        learning_rate: its schedule.
        kernels: what computes its convolutions and BatchNorm.
        initial: loads the variables that it starts from; None if it starts from random ones.
        teachers: variables of the networks whose answers it trains towards, with a leading axis; None: the labels.
    """

    config: ResolvedConfig
    dataset: Dataset
    mesh: Mesh
    options: StepOptions
    training: TrainingProgram
    evaluation: EvaluationProgram
    validation: list[Examples]
    learning_rate: Schedule
    kernels: Choice
    initial: Callable[[], dict[str, Any]] | None = None
    teachers: dict[str, Any] | None = None

    @property
    def seeds(self) -> UInt32[np.ndarray, " replicas"]:
        """One for each replica."""
        return self.config.seed + np.arange(self.config.num_seeds, dtype=np.uint32)

    @property
    def digest(self) -> str:
        """SHA-256 of the data, and of the teachers if there are any; it must match when the run is resumed."""
        if self.teachers is None:
            return self.dataset.digest
        leaves = [leaf.tobytes() for leaf in jax.tree.leaves(self.teachers)]
        return hashlib.sha256(self.dataset.digest.encode() + b"".join(leaves)).hexdigest()

    @property
    def computed_by(self) -> str:
        """Devices, kernels and version of JAX: what its bits depend on, besides its options and `digest`."""
        kind = self.mesh.devices.flat[0].device_kind
        return f"{self.mesh.size} x {kind}, {self.kernels.name} kernels and JAX {jax.__version__}"

    @property
    def epochs(self) -> int:
        """The most epochs it trains for."""
        return self.config.epochs

    @property
    def steps_per_epoch(self) -> int:
        """Every step has a full batch."""
        return self.training.steps_per_epoch

    @property
    def images_per_epoch(self) -> int:
        """Training images; those that fill up an epoch's last batch are not counted again."""
        return len(self.dataset.train.labels)

    def images_after(self, steps: int) -> int:
        """Images that a replica has seen after so many steps, counted like `images_per_epoch`."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * self.images_per_epoch + rest * self.config.batch_size


class Progress(NamedTuple):
    """The progress of a run: all that changes while it trains, and that it needs to go on.

    Attributes:
        state: of all replicas.
        metrics: of the current epoch so far, of each replica.
        histories: of each replica a row for every finished epoch.
        epoch_seconds: what the current epoch has taken so far.
        step: steps that the replica which has gone furthest has taken. Those that still train are all at this step.
    """

    state: TrainState
    metrics: TrainMetrics
    histories: Sequence[Sequence[Row]]
    epoch_seconds: float = 0.0
    step: int = 0


def prepare(
    config: ResolvedConfig,
    dataset: Dataset,
    mesh: Mesh,
    kernels: Choice,
    initial: Callable[[], dict[str, Any]] | None = None,
    teachers: dict[str, Any] | None = None,
) -> Run:
    """A run on a mesh, its data placed and its programs ready to be compiled."""
    total_steps = config.epochs * -(-len(dataset.train.labels) // config.batch_size)
    options = step_options(config, dataset.normalization, total_steps)
    num_classes = len(dataset.class_names)
    part_size = max(len(dataset.validation.labels), EVALUATION_BATCH)  # of the test set too: one program for both
    evaluation = evaluation_program(mesh, dataset.normalization, kernels.name, num_classes, part_size)
    return Run(
        config=config,
        dataset=dataset,
        mesh=mesh,
        options=options,
        training=training_program(mesh, options, dataset.train, kernels.name, num_classes, teachers),
        evaluation=evaluation,
        validation=evaluation.batches(dataset.validation),
        learning_rate=jax.jit(one_cycle(total_steps, config.max_lr)[0], compiler_options=FAST_COMPILE),
        kernels=kernels,
        initial=initial,
        teachers=teachers,
    )


def start(run: Run) -> Progress:
    """The progress of a run before its first step, from random weights."""
    num_classes = len(run.dataset.class_names)
    state = create_states(run.seeds, run.mesh, run.config, run.options.total_steps, run.kernels.name, num_classes)
    return Progress(state, zero_metrics(run.config.num_seeds, run.mesh), [()] * len(run.seeds))


def from_trained(run: Run, progress: Progress, variables: dict[str, Any]) -> Progress:
    """The progress with these variables in every replica's state."""
    each = jax.tree.map(lambda x: np.repeat(x[None], len(run.seeds), axis=0), variables)
    return progress._replace(state=progress.state.replace(**place(each, run.mesh, BY_REPLICA)))


def take_replica(tree: Any, i: int) -> Any:
    """Replica `i` of a tree whose arrays have a leading axis of replicas."""
    return jax.tree.map(lambda x: x[i], tree)
