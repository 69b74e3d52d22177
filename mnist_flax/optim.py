"""The optimizer: clip by global norm, then Adam or Muon under PyTorch's one-cycle schedule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers, scale_by_muon

Schedule = Callable[[Any], Float[Array, ""]]  # of the step, an integer


def _cosine_cycle(total_steps: int, warmup_fraction: float, start: float, peak: float, end: float) -> Schedule:
    """Half a cosine from start to peak during the warm-up, another to the end; PyTorch's phase boundaries."""
    warmup_end, last = warmup_fraction * total_steps - 1, total_steps - 1

    def schedule(step: Int[Any, ""]) -> Float[Array, ""]:
        step = jnp.minimum(step, last)
        warming_up = step <= warmup_end
        nearness = jnp.where(warming_up, step / max(warmup_end, 1), (last - step) / (last - warmup_end))
        # (1 - cos(pi * x)) / 2 is written as sin(pi / 2 * x)^2 and measured from the far end. Far from the peak the
        # result is small: there the first form has no correct digit left in float32, and this one has all of them.
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


def make_optimizer(
    name: str, total_steps: int, max_learning_rate: float, *, clip_norm: float, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Clip the gradient's global norm to `clip_norm`, then one of two optimizers under `one_cycle`.

    "adam" is AdamW (beta2 0.999, epsilon 1e-8), which without weight decay is Adam. "muon" trains the blocks'
    convolution kernels by Muon with weight decay, and the rest by Adam without. Muon treats a kernel as a matrix of
    inputs by outputs; its step is the orthogonal matrix nearest to the momentum, here scaled to a root mean square of
    half the learning rate, so that one learning rate suits both. Weight decay is multiplied by the learning rate.

    Loshchilov & Hutter, 2017, arXiv:1711.05101; Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/; Liu
    et al., 2025, arXiv:2502.16982
    """
    learning_rate, beta1 = one_cycle(total_steps, max_learning_rate)
    adam = optax.inject_hyperparams(optax.adamw, static_args=("b2", "eps", "eps_root", "weight_decay"))
    if name == "muon":
        kernels = optax.chain(
            scale_by_muon(weight_dimension_numbers=_as_matrices),
            optax.stateless(_scale_to_rms_of_half),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )
        rest = adam(learning_rate, b1=beta1, weight_decay=0.0)
        optimizer = optax.partition({True: kernels, False: rest}, _is_kernel)
    else:
        optimizer = adam(learning_rate, b1=beta1, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def _is_kernel(params: Any) -> Any:
    """Which parameters are the blocks' convolution kernels. Muon's authors advise Adam for the last layer."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x.ndim == 4 and path[0].key != "final_conv", params)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _as_matrices(kernels: Any) -> Any:
    """How Muon sees kernels as matrices: height, width and inputs are the rows, outputs the columns."""
    axes = MuonDimensionNumbers((0, 1, 2), 3)
    return jax.tree.map(lambda x: x if _is_masked(x) else axes, kernels, is_leaf=_is_masked)


def _scale_to_rms_of_half(kernels: Any, params: Any) -> Any:
    """Scale each update: an orthogonal matrix of r rows and c columns has a root mean square of max(r, c)^-1/2."""
    return jax.tree.map(lambda x: x * 0.5 * max(x.size // x.shape[-1], x.shape[-1]) ** 0.5, kernels)
