"""Training and evaluation as pure functions of explicit state.

`train_step` is one optimizer step on one batch. `train_steps` runs many of them in one dispatch, picking, augmenting
and normalising its batches on the device. `evaluate` sums loss and hits over a whole split. All run per device under
`shard_map` over a one-axis mesh (see `mesh.py`): the state is replicated, the batch is split.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mnist_flax.augment import Augmentation, draw_transforms, warp

AXIS = "data"  # the mesh's one axis


class TrainState(train_state.TrainState):
    """Parameters, optimizer state and step, with BatchNorm's running statistics and the run's random key."""

    batch_stats: Any
    key: Key[Array, ""]

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Batch(NamedTuple):
    """Normalised images and their labels."""

    images: Float[Array, "n 28 28 1"]
    labels: Int[Array, " n"]


class Examples(NamedTuple):
    """A split as it lies on the device: raw images, labels, and which rows are real rather than padding."""

    images: UInt8[Array, "n 28 28"]
    labels: Int[Array, " n"]
    real: Bool[Array, " n"]


class Normalization(NamedTuple):
    """Mean and standard deviation of a training set's pixels, on the scale 0..1."""

    mean: float
    std: float

    def __call__(self, images: Array) -> Float[Array, "n 28 28 1"]:
        """Images in 0..255 as network input."""
        scale = 1 / (255 * self.std)
        return (images * scale - self.mean / self.std)[..., None]


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """What is fixed when a training program is compiled."""

    batch_size: int
    normalization: Normalization
    augmentation: Augmentation
    label_smoothing: float


class Totals(NamedTuple):
    """Running sums over an epoch's steps, and the last step's own figures."""

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    grad_norm: Float[Array, ""]
    steps: Int[Array, ""]
    last_loss: Float[Array, ""]
    last_grad_norm: Float[Array, ""]

    @classmethod
    def zero(cls) -> "Totals":
        """Before the first step."""
        f, i = jnp.float32, jnp.int32
        return cls(f(0), i(0), f(0), i(0), f(0), f(0))

    def add(self, metrics: dict[str, Array]) -> "Totals":
        """After one more step."""
        return Totals(
            self.loss + metrics["loss"],
            self.correct + metrics["correct"],
            self.grad_norm + metrics["grad_norm"],
            self.steps + 1,
            metrics["loss"],
            metrics["grad_norm"],
        )

    @property
    def finite(self) -> Bool[Array, ""]:
        """Whether the last step's loss and gradient were."""
        return jnp.isfinite(self.last_loss) & jnp.isfinite(self.last_grad_norm)


def train_step(
    state: TrainState, batch: Batch, *, label_smoothing: float, axis_name: str | None = None
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step.

    `batch` is this device's share; with `axis_name` gradients, BatchNorm statistics and metrics are those of the whole
    batch. Metrics: mean `loss`, number `correct`, `grad_norm` before clipping.
    """

    def loss_fn(params: Any) -> tuple[Array, tuple[Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(variables, batch.images, train=True, mutable=["batch_stats"])
        targets = optax.smooth_labels(jax.nn.one_hot(batch.labels, logits.shape[-1]), label_smoothing)
        return optax.softmax_cross_entropy(logits, targets).mean(), (logits, updates["batch_stats"])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    correct = (logits.argmax(-1) == batch.labels).sum()
    if axis_name is not None:
        loss, grads = lax.pmean((loss, grads), axis_name)
        correct = lax.psum(correct, axis_name)
    metrics = {"loss": loss, "correct": correct, "grad_norm": optax.global_norm(grads)}
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), metrics


def epoch_order(key: Key[Array, ""], epoch: Int[Array, ""], num_examples: int) -> Int[Array, " n"]:
    """The order in which an epoch visits the training examples."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)


def train_steps(
    state: TrainState, totals: Totals, train: Examples, num_steps: Int[Array, ""], *, options: StepOptions
) -> tuple[TrainState, Totals]:
    """Up to `num_steps` steps within one epoch; stops early after a step whose loss or gradient is not finite.

    The order comes from the epoch, the warps from the step, both through the state's key: how the steps are cut into
    calls, or spread over devices, changes no number a step draws. The last batch of an epoch is filled up from the
    epoch's start, so that every image is seen and every batch is full.

    `num_steps` is traced, and the loop a `while`: one compilation serves every chunk.
    """
    num_examples = train.labels.shape[0]
    steps_per_epoch = -(-num_examples // options.batch_size)
    shuffle_key, warp_key = jax.random.split(state.key)
    order = epoch_order(shuffle_key, state.step // steps_per_epoch, num_examples)
    share = options.batch_size // lax.axis_size(AXIS)
    first = lax.axis_index(AXIS) * share

    def next_batch(step: Array) -> Batch:
        position = step % steps_per_epoch * options.batch_size + first + jnp.arange(share)
        chosen = order[position % num_examples]
        # Every device draws the whole batch's warps and takes its own: numbers do not depend on the device count.
        side = train.images.shape[1]
        transforms = draw_transforms(
            jax.random.fold_in(warp_key, step), options.batch_size, side, options.augmentation
        )
        images = warp(train.images[chosen], lax.dynamic_slice_in_dim(transforms, first, share))
        return Batch(options.normalization(images), train.labels[chosen])

    def unfinished(carry: tuple[TrainState, Totals, Array]) -> Array:
        _, totals, done = carry
        return (done < num_steps) & totals.finite

    def advance(carry: tuple[TrainState, Totals, Array]) -> tuple[TrainState, Totals, Array]:
        state, totals, done = carry
        state, metrics = train_step(
            state, next_batch(state.step), label_smoothing=options.label_smoothing, axis_name=AXIS
        )
        return state, totals.add(metrics), done + 1

    state, totals, _ = lax.while_loop(unfinished, advance, (state, totals, jnp.int32(0)))
    return state, totals
