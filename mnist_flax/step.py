"""Training and evaluation as pure functions of explicit state.

`train_step` is one optimizer step on one batch. `train_steps` runs many of them in one dispatch; it picks, augments
and normalises its batches on the device. `evaluate` sums loss and hits over a whole split.

Several seeds train at once as replicas: every array of their state has a leading axis of replicas. Everything runs on
each device under `shard_map`, over a mesh of two axes (`training/mesh.py`): REPLICA splits that leading axis, DATA
splits each batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from mnist_flax import ops
from mnist_flax.augment import Augmentation, Distortions, distort, draw_distortions
from mnist_flax.data import SIDE, Examples, Normalization
from mnist_flax.packed import global_norm, pack, unpack
from mnist_flax.state import TrainMetrics, TrainState

REPLICA, DATA = "replica", "data"  # the mesh's axes


class Batch(NamedTuple):
    """Normalised images and their labels.

    Attributes:
        targets: probabilities to train towards; None: the labels, smoothed.
    """

    images: Float[Array, "n 28 28 1"]
    labels: Int[Array, " n"]
    targets: Float[Array, "n classes"] | None = None


@dataclasses.dataclass(frozen=True)
class StepOptions:
    """The options of a training step, fixed when it is compiled.

    Attributes:
        fade: fraction of the `total_steps`, at their end, over which augmentation fades linearly to nothing.
    """

    batch_size: int
    normalization: Normalization
    augmentation: Augmentation
    label_smoothing: float
    total_steps: int
    fade: float = 0.0

    def strength(self, step: Int[Array, " *steps"]) -> Float[Array, " *steps"]:
        """The factor, in 0..1, by which the augmentation ranges of each of these steps are narrowed."""
        left = (self.total_steps - 1 - step) / max(self.fade * self.total_steps, 1)
        return jnp.clip(left, 0, 1) if self.fade else jnp.ones_like(left)


def loss_fn(
    params: Any, batch_stats: Any, batch: Batch, *, apply_fn: Callable[..., Any], label_smoothing: float = 0.0
) -> tuple[Float[Array, ""], tuple[Float[Array, ""], Any]]:
    """Mean cross-entropy of a batch in training mode; beside it the number of hits and the new running statistics.

    `jax.value_and_grad(loss_fn, has_aux=True)` gives the gradient with respect to `params`.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    logits, updates = apply_fn(variables, batch.images, train=True, mutable=["batch_stats"])
    targets = batch.targets
    if targets is None:
        targets = optax.smooth_labels(jax.nn.one_hot(batch.labels, logits.shape[-1]), label_smoothing)
    losses = optax.softmax_cross_entropy(logits, targets)
    hits = (logits.argmax(-1) == batch.labels).astype(losses.dtype)
    loss, correct = jnp.stack([losses, hits]).sum(1)  # on a GPU two sums would be two kernels
    return loss / len(losses), (correct, updates["batch_stats"])


def train_step(
    state: TrainState, batch: Batch, *, label_smoothing: float = 0.0, axis_name: str | None = None
) -> tuple[TrainState, dict[str, Array]]:
    """One optimizer step.

    `batch` is this device's share; with `axis_name` gradients, BatchNorm statistics and metrics are those of the whole
    batch. Metrics: mean `loss`, number `correct`, `grad_norm` before clipping.
    """
    packed = state.replace(params=pack(state.params))
    packed, metrics = _packed_step(packed, batch, label_smoothing=label_smoothing, axis_name=axis_name)
    return packed.replace(params=unpack(packed.params)), metrics


def _packed_step(
    state: TrainState, batch: Batch, *, label_smoothing: float, axis_name: str | None
) -> tuple[TrainState, dict[str, Array]]:
    """`train_step` of a state whose parameters are packed."""
    loss_and_gradients = jax.value_and_grad(loss_fn, has_aux=True)
    fixed = {"apply_fn": state.apply_fn, "label_smoothing": label_smoothing}
    (loss, (correct, batch_stats)), grads = loss_and_gradients(unpack(state.params), state.batch_stats, batch, **fixed)
    if axis_name is not None:
        loss, grads, correct = lax.psum((loss, grads, correct), axis_name)
    num_shares = 1 if axis_name is None else lax.axis_size(axis_name)
    loss, gradients = jax.tree.map(lambda x: x / num_shares, (loss, pack(grads)))
    metrics = {"loss": loss, "correct": correct.astype(jnp.int32), "grad_norm": global_norm(gradients)}
    with jax.named_scope("optimizer"):
        updates, opt_state = state.tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state), metrics


def each_replica(function: Callable[..., Any], *arguments: Any, sequential: bool) -> Any:
    """Apply `function` to each of this device's replicas, the leading axis of all arguments' and results' arrays.

    Accelerators compute replicas side by side. A CPU computes them `sequential`: a `vmap`ped convolution is a grouped
    one, which its fast kernels do not cover. A step of two replicas of 64 images takes one core 46 ms in turns and
    101 ms side by side.
    """
    if len(jax.tree.leaves(arguments)[0]) == 1:
        result = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], result)
    if sequential:
        return lax.map(lambda replica: function(*replica), arguments)
    return jax.vmap(function)(*arguments)


class EpochPlan(NamedTuple):
    """The order of an epoch's training examples, filled up to whole batches, and how each is distorted.

    Attributes:
        order: the examples' indices.
        distortions: of each image.
    """

    order: Int[Array, "*replicas visits"]
    distortions: Distortions


def plan_epoch(
    key: Key[Array, ""], epoch: Int[Array, ""] | int, *, num_examples: int, options: StepOptions
) -> EpochPlan:
    """Draw the plan of an epoch, counted from 0, of the run with this key.

    The order is filled up from its start to whole batches: every image is seen and every batch is full. If each step
    drew its own distortions, it would have four kernels more on a GPU.
    """
    steps_per_epoch = -(-num_examples // options.batch_size)
    visits = steps_per_epoch * options.batch_size
    shuffle_key, warp_key = (jax.random.fold_in(half, epoch) for half in jax.random.split(key))
    order = jnp.resize(jax.random.permutation(shuffle_key, num_examples), (visits,))
    strength = options.strength(epoch * steps_per_epoch + jnp.arange(visits) // options.batch_size)
    return EpochPlan(order, draw_distortions(warp_key, visits, SIDE, options.augmentation, strength))


def take_batch(
    plan: EpochPlan,
    step: Int[Any, ""] | int,
    first: Int[Any, ""] | int = 0,
    size: int | None = None,
    *,
    examples: Examples,
    options: StepOptions,
) -> Batch:
    """The batch of a step, augmented and normalised; or of that batch `size` images from `first` on.

    `plan` is that of the step's epoch, and `examples` are the training examples, whose images may be flat.
    """
    size = options.batch_size if size is None else size
    steps_per_epoch = plan.order.shape[0] // options.batch_size
    start = step % steps_per_epoch * options.batch_size + first
    order, distortions = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), plan)
    distortions = ops.materialize(distortions)
    images = examples.images[order].reshape(-1, SIDE, SIDE)
    return Batch(options.normalization(distort(images, distortions)), examples.labels[order])


def share_of(options: StepOptions) -> tuple[int, Array]:
    """How many of a batch's images are this device's, and which is the first."""
    share = options.batch_size // lax.axis_size(DATA)
    return share, lax.axis_index(DATA) * share


def train_steps(
    state: TrainState,
    totals: TrainMetrics,
    plan: EpochPlan,
    num_steps: Int[Array, ""],
    *,
    examples: Examples,
    options: StepOptions,
    targets: Float[Array, "steps share classes"] | None = None,
) -> tuple[TrainState, TrainMetrics]:
    """Take up to `num_steps` steps within one epoch; stop early after a step whose loss or gradient is not finite.

    `plan` and `examples` are as in `take_batch`; `targets` are those of `distillation.teach`, if there are teachers. A
    step depends on the state alone, not on how steps are divided into calls or over devices. `num_steps` is traced.
    """
    (share, first), start = share_of(options), state.step
    end = start + num_steps

    def unfinished(carry: tuple[TrainState, TrainMetrics]) -> Array:
        state, totals = carry
        return (state.step < end) & totals.finite

    def advance(carry: tuple[TrainState, TrainMetrics]) -> tuple[TrainState, TrainMetrics]:
        state, totals = carry
        with jax.named_scope("augmentation"):
            batch = take_batch(plan, state.step, first, share, examples=examples, options=options)
        if targets is not None:
            batch = batch._replace(targets=targets[state.step - start])
        state, metrics = _packed_step(state, batch, label_smoothing=options.label_smoothing, axis_name=DATA)
        return state, totals.add(metrics)

    packed = state.replace(params=pack(state.params))
    packed, totals = lax.while_loop(unfinished, advance, (packed, totals))
    return packed.replace(params=unpack(packed.params)), totals


def evaluate(
    variables: Any, examples: Examples, *, apply_fn: Any, normalization: Normalization, sequential: bool
) -> dict[str, Array]:
    """Sum loss and hits over a split, in evaluation mode.

    The sums: each replica's cross-entropy (`loss`, without smoothing) and hits (`correct`), the hits of the ensemble by
    the mean of all replicas' probabilities (`ensemble_correct`), and the number of examples (`count`).

    `variables` are those of this device's replicas. `examples` has a leading axis of batches and is split over DATA
    along the second axis. Rows labelled -1 are padding and are not counted, so every real example counts once.
    """
    num_replicas = len(jax.tree.leaves(variables)[0])

    def add_batch(totals: dict[str, Array], batch: Examples) -> tuple[dict[str, Array], None]:
        images, real = normalization(batch.images), batch.labels >= 0
        logits = each_replica(lambda variables: apply_fn(variables, images), variables, sequential=sequential)
        targets = jax.nn.one_hot(batch.labels, logits.shape[-1])
        probabilities = lax.psum(jax.nn.softmax(logits).sum(0), REPLICA)
        sums = {
            "loss": jnp.where(real, optax.softmax_cross_entropy(logits, targets), 0).sum(-1),
            "correct": ((logits.argmax(-1) == batch.labels) & real).sum(-1),
            "ensemble_correct": ((probabilities.argmax(-1) == batch.labels) & real).sum(),
            "count": real.sum(),
        }
        return jax.tree.map(jnp.add, totals, sums), None

    each = jnp.zeros(num_replicas, jnp.int32)
    zero = {"loss": each.astype(jnp.float32), "correct": each, "ensemble_correct": jnp.int32(0), "count": jnp.int32(0)}
    sums, _ = lax.scan(add_batch, zero, examples)
    return lax.psum(sums, DATA)
