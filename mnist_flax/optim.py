"""The optimizer: clip by global norm, then Adam under PyTorch's one-cycle schedule of learning rate and beta1."""

from collections.abc import Callable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


def _cosine_cycle(total_steps: int, warmup_fraction: float, start: float, peak: float, end: float) -> Schedule:
    """From start to peak over the warm-up, then to end, each half a cosine; PyTorch's phase boundaries."""
    warmup_end, last = warmup_fraction * total_steps - 1, total_steps - 1

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.minimum(step, last)
        warming_up = step <= warmup_end
        nearness = jnp.where(warming_up, step / max(warmup_end, 1), (last - step) / (last - warmup_end))
        # (1 - cos(pi * x)) / 2 written as sin(pi / 2 * x)^2, and measured from the far end: far from the peak, where
        # the result is small, the first form has lost all its digits in float32 and this one none.
        far = jnp.where(warming_up, start, end)
        return far + (peak - far) * jnp.square(jnp.sin(jnp.pi / 2 * nearness))

    return schedule


def one_cycle(
    total_steps: int,
    max_learning_rate: float,
    *,
    warmup_fraction: float = 0.3,
    initial_divisor: float = 25.0,
    final_divisor: float = 1e4,
) -> tuple[Schedule, Schedule]:
    """Learning-rate and beta1 schedules of `torch.optim.lr_scheduler.OneCycleLR`, step for step.

    The learning rate starts at `max / initial_divisor` and ends at `max / (initial_divisor * final_divisor)`; Adam's
    beta1 runs against it, 0.95 -> 0.85 -> 0.95, as PyTorch does by default.

    https://pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.OneCycleLR.html; Smith & Topin, 2017,
    arXiv:1708.07120. (`optax.cosine_onecycle_schedule` puts its phase boundaries elsewhere and has no beta1.)
    """
    initial = max_learning_rate / initial_divisor
    learning_rate = _cosine_cycle(total_steps, warmup_fraction, initial, max_learning_rate, initial / final_divisor)
    beta1 = _cosine_cycle(total_steps, warmup_fraction, 0.95, 0.85, 0.95)
    return learning_rate, beta1


def make_optimizer(total_steps: int, max_learning_rate: float, clip_norm: float) -> optax.GradientTransformation:
    """Clip the gradient's global norm to `clip_norm`, then Adam (beta2 0.999, epsilon 1e-8) under `one_cycle`."""
    learning_rate, beta1 = one_cycle(total_steps, max_learning_rate)
    adam = optax.inject_hyperparams(optax.adam, static_args=("b2", "eps", "eps_root"))
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam(learning_rate, b1=beta1))
