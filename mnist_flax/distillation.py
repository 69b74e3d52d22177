"""Distillation: the mean answer of trained networks, the teachers, as targets in place of the labels."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from mnist_flax.data import Examples
from mnist_flax.step import EpochPlan, StepOptions, each_replica, share_of, take_batch


def mean_probabilities(
    teachers: Any, images: Float[Array, "n 28 28 1"], *, apply_fn: Any, sequential: bool
) -> Float[Array, "n classes"]:
    """The mean of several networks' probabilities; `teachers` are their variables, with a leading axis of networks."""
    logits = each_replica(lambda variables: apply_fn(variables, images), teachers, sequential=sequential)
    return jax.nn.softmax(logits).mean(0)


def teach(
    teachers: Any,
    steps_taken: Int[Array, " replicas"],
    plans: EpochPlan,
    num_steps: int,
    *,
    examples: Examples,
    options: StepOptions,
    apply_fn: Any,
    sequential: bool,
) -> Float[Array, "steps share classes"]:
    """The teachers' answers to this device's share of each of the next `num_steps` batches.

    All replicas of a run with teachers have one key, so one answer serves them all: that of the replica which has gone
    furthest. Hinton, Vinyals & Dean, 2015, arXiv:1503.02531; on images distorted alike for teachers and student: Beyer
    et al., 2021, arXiv:2106.05237.
    """
    furthest = steps_taken.argmax()
    step, plan = jax.tree.map(lambda x: x[furthest], (steps_taken, plans))
    share, first = share_of(options)

    def answer(i: Array) -> Array:
        images = take_batch(plan, step + i, first, share, examples=examples, options=options).images
        return mean_probabilities(teachers, images, apply_fn=apply_fn, sequential=sequential)

    return lax.map(answer, jnp.arange(num_steps))
