"""The training state (a network, its optimizer's memory, a random key), and the metrics of training and evaluation."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from mnist_flax.packed import pack


class TrainState(struct.PyTreeNode):
    """All that changes in training, of one network or with a leading axis of replicas.

    The two functions that change it are not in the tree.
    """

    step: Int[Any, "*replicas"]
    params: Any
    batch_stats: Any
    opt_state: Any
    key: Key[Any, "*replicas"]
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)

    @classmethod
    def create(
        cls,
        variables: dict[str, Any],
        key: Key[Array, ""],
        apply_fn: Callable[..., Any],
        tx: optax.GradientTransformation,
    ) -> "TrainState":
        """The state before the first step."""
        params, batch_stats = variables["params"], variables["batch_stats"]
        packed: Any = pack(params)
        return cls(jnp.int32(0), params, batch_stats, tx.init(packed), key, apply_fn, tx)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that `apply_fn` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class TrainMetrics(NamedTuple):
    """Running sums over an epoch's steps, and the last step's own figures."""

    loss: Float[Array, "*replicas"]
    correct: Int[Array, "*replicas"]
    grad_norm: Float[Array, "*replicas"]
    steps: Int[Array, "*replicas"]
    last_loss: Float[Array, "*replicas"]
    last_grad_norm: Float[Array, "*replicas"]

    @classmethod
    def zero(cls) -> "TrainMetrics":
        """Before the first step."""
        f, i = jnp.float32, jnp.int32
        return cls(f(0), i(0), f(0), i(0), f(0), f(0))

    def add(self, metrics: dict[str, Array]) -> "TrainMetrics":
        """After one more step."""
        return TrainMetrics(
            self.loss + metrics["loss"],
            self.correct + metrics["correct"],
            self.grad_norm + metrics["grad_norm"],
            self.steps + 1,
            metrics["loss"],
            metrics["grad_norm"],
        )

    @property
    def finite(self) -> Bool[Any, "*replicas"]:
        """Whether the last step's loss and gradient are finite; by NumPy alone if these totals are on the host."""
        return abs(self.last_loss + self.last_grad_norm) < math.inf


class EvalMetrics:
    """The metrics of an evaluation, in float64: 9,940 of 10,000 is 0.994, which float32 cannot represent.

    Attributes:
        losses: mean cross-entropy of each replica.
        accuracies: of each replica, as fractions.
        ensemble_accuracy: of all replicas together, by the mean of their probabilities.
    """

    def __init__(self, sums: dict[str, np.ndarray]) -> None:
        count = int(sums["count"])
        self.losses: Float[np.ndarray, " replicas"] = sums["loss"].astype(np.float64) / count
        self.accuracies: Float[np.ndarray, " replicas"] = sums["correct"] / count
        self.ensemble_accuracy = int(sums["ensemble_correct"]) / count
