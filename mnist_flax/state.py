"""What changes in training: a network, its optimizer's memory and a random key; and running sums over steps."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

from mnist_flax.packed import pack


class TrainState(struct.PyTreeNode):
    """All that changes in training; outside the tree, the two functions that change it."""

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
        """What `apply_fn` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Totals(NamedTuple):
    """Running sums over an epoch's steps, and the last step's own figures."""

    loss: Float[Array, "*replicas"]
    correct: Int[Array, "*replicas"]
    grad_norm: Float[Array, "*replicas"]
    steps: Int[Array, "*replicas"]
    last_loss: Float[Array, "*replicas"]
    last_grad_norm: Float[Array, "*replicas"]

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
    def finite(self) -> Bool[Any, "*replicas"]:
        """Whether the last step's loss and gradient are finite; by NumPy alone if these totals are on the host."""
        return abs(self.last_loss + self.last_grad_norm) < math.inf
